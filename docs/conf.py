"""Settings of the website: every notebook as a page, and a reference page for every module.

Notebooks are shown with the outputs that are stored in them; nothing is run. book.py holds what Sphinx does
not know by itself: the directives of nbdev, the comments behind parameters, and formulas without a network.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

project = "digit69"
author = "The digit69 founders"
copyright = "2026 onwards, the digit69 founders"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "book"]
exclude_patterns = ["_build"]

floors = [
    "Ground floor",
    "Data",
    "Metrics, figures, training",
    "Where stimuli come from",
    "Quality, encoding, embeddings",
    "Models",
    "Evaluation",
    "Experiments and reports",
    "Command line",
    "Guides",
]

nb_execution_mode = "off"
nb_output_stderr = "remove"
nb_render_markdown_format = "myst"  # tables that a cell shows are tables
nb_ipywidgets_js = {}
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 4

default_role = "code"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": True, "show-inheritance": True}
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80
napoleon_google_docstring = False
# What stands behind a parameter is a shape and a meaning, not a type to be looked up.
napoleon_use_param = False
napoleon_use_rtype = False
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = "digit69"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_math_renderer = "mathml"
html_show_sourcelink = False
html_copy_source = False
html_js_files = ["search_from_disk.js"]
