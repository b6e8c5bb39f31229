"""The floors script finds every import that does not run downward."""

import pytest

from ci_scripts import code_cell, load_script, write_module, write_notebook

floors = load_script("floors")


@pytest.fixture
def house(tmp_path):
    """A checkout with a module on three floors."""
    write_module(tmp_path, "000_core.ipynb", "x = 1")
    write_module(tmp_path, "500_models.base.ipynb", "from ..core import x")
    write_module(tmp_path, "520_models.ldm.ipynb", "import digit69.core\nfrom .base import x")
    return tmp_path


def test_downward_imports_are_fine(house):
    assert floors.violations(house) == []


@pytest.mark.parametrize(
    "statement",
    [
        "from digit69.models.ldm import x",
        "import digit69.models.ldm as ldm",
        "from digit69.models import ldm",
        "from .ldm import x",
        "from . import ldm",
        "def f():\n    from .ldm import x",
        "import importlib\nimportlib.import_module('digit69.models.ldm')",
    ],
)
def test_upward_imports_are_found(house, statement):
    write_module(house, "500_models.base.ipynb", statement)
    [line] = floors.violations(house)
    assert line.startswith("digit69.models.base line")
    assert line.endswith("imports models.ldm (520), which is not below 500")


def test_two_and_three_digits_stand_on_the_same_floor(house):
    write_module(house, "60_report.ipynb", "from .models.ldm import x")
    write_module(house, "54_bench.ipynb", "from .report import x")
    assert floors.violations(house) == [
        "digit69.bench line 4: imports report (60), which is not below 54"
    ]


def test_names_that_do_not_place_a_module(house):
    cell = code_cell("#| default_exp core")
    write_notebook(house / "nbs" / "010_other.ipynb", cell)
    write_notebook(house / "nbs" / "unnumbered.ipynb", cell)
    write_notebook(house / "nbs" / "index.ipynb", code_cell("1"))
    (house / "digit69" / "stray.py").write_text("x = 1\n", encoding="utf-8")
    write_module(house, "500_twin.ipynb", "x = 1")
    assert floors.violations(house) == [
        "010_other.ipynb: exports core, but is named other",
        "500_twin.ipynb: 500_models.base.ipynb has the same number",
        "unnumbered.ipynb: exports core, but its name has no number",
        "digit69.stray: no notebook with a place exports it",
        "digit69.twin: no notebook with a place exports it",
    ]
