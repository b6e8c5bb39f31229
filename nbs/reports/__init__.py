"""Parameterised report notebooks, shipped as the package digit69.reports and run by papermill."""
