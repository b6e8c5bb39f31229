"""The readability script measures what it says, and holds its bounds."""

import json
import subprocess
import sys

import pytest

from ci_scripts import FOLDER, code_cell, load_script, write_module, write_notebook

readability = load_script("readability")

CLEAN = '''def double(x: float) -> float:
    """Twice x."""
    return 2 * x
'''


def measured(root):
    """The values of the table for a checkout."""
    return readability.summarise(readability.measure_tree(root))


def measured_source(root, source):
    """The values of the table for a checkout of one module."""
    write_module(root, "000_core.ipynb", source)
    return measured(root)


def test_clean_code_violates_nothing(tmp_path):
    values = measured_source(tmp_path, CLEAN)
    assert values["cells"] == values["modules"] == 1
    assert values["cell_max"] == values["module_max"] == 3
    assert readability.violations(values) == []


def test_code_lines_are_neither_blank_nor_comment():
    source = "# a comment\n\nx = 1  # a value\n   # another comment\ny = 2\n"
    assert readability.count_code_lines(source) == 2


def test_only_exported_cells_count(tmp_path):
    test_cell = code_cell("a = 1; b = 2")
    private_cell = code_cell("#| hide\n#| exporti\ndef _f(): pass")
    write_notebook(tmp_path / "nbs" / "000_core.ipynb", test_cell, private_cell)
    write_notebook(
        tmp_path / "nbs" / ".ipynb_checkpoints" / "x.ipynb", code_cell("#| export\nx = 1")
    )
    values = measured(tmp_path)
    assert values["cells"] == 1
    assert values["semicolons"] == 0


@pytest.mark.parametrize(
    "measure, source",
    [
        ("several_definitions", "def f(): pass\ndef g(): pass"),
        ("long_lines", f"x = '{'a' * 110}'"),
        ("long_lines", f"# {'a' * 110}"),
        ("semicolons", "x = 1; y = 2"),
        ("named_lambdas", "f = lambda x: x"),
        ("named_lambdas", "f: object = lambda x: x"),
        ("nested_comprehensions", "x = [[j for j in i] for i in y]"),
        (
            "tuple_attributes",
            "class A:\n    def __init__(self, a, b):\n        self.a, self.b = a, b",
        ),
        ("bare_parameters", "def f(x) -> int: ..."),
        ("bare_parameters", "class A:\n    def f(self, x) -> int: ..."),
    ],
)
def test_finds(tmp_path, measure, source):
    assert measured_source(tmp_path, source)[measure] > 0


@pytest.mark.parametrize(
    "measure, source",
    [
        ("several_definitions", "class A:\n    def f(self): ...\n    def g(self): ..."),
        ("semicolons", "x = 'one; two'  # three; four"),
        ("named_lambdas", "x = sorted(y, key=lambda i: -i)"),
        ("nested_comprehensions", "x = [i for i in y]\nz = [i for i in y]"),
        (
            "tuple_attributes",
            "class A:\n    def __init__(self, pair):\n        a, b = pair\n        self.a = a",
        ),
        ("bare_parameters", "def _f(x): ...\ndef g(x: int, *args, **kwargs): ..."),
        (
            "bare_parameters",
            "class A:\n    def _f(self, x): ...\n    @staticmethod\n    def g(x: int): ...",
        ),
    ],
)
def test_does_not_find(tmp_path, measure, source):
    assert measured_source(tmp_path, source)[measure] == 0


def test_long_cells_and_modules(tmp_path):
    values = measured_source(tmp_path, "\n".join(f"x{i} = {i}" for i in range(301)))
    violated = readability.violations(values)
    assert values["module_max"] == 301
    assert "lines of a module, maximum: 301, at most 300" in violated
    assert "lines of an exported cell, maximum: 301, at most 40" in violated


def test_percentile_is_interpolated():
    assert readability.percentile_90([7]) == 7
    assert readability.percentile_90(list(range(1, 12))) == 10


def test_worst_places_are_named(tmp_path):
    measured_source(tmp_path, f"{CLEAN}\n\ndef poor(x):\n    y = x; return y")
    report = readability.measure_tree(tmp_path)
    worst = readability.worst_places(report, 3)
    assert worst["semicolons per 1,000 lines"] == ["000_core.ipynb cell 1 poor line 8"]
    assert worst["longest modules"] == ["5 digit69/core.py"]


def run_script(root, *options):
    """The script as a process of its own."""
    command = [sys.executable, str(FOLDER / "readability.py"), "--root", str(root), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_command_line(tmp_path):
    measured_source(tmp_path, "x = 1; y = 2")
    checked = run_script(tmp_path, "--check")
    assert checked.returncode == 1
    assert "semicolons per 1,000 lines: 1000, at most 0" in checked.stderr.splitlines()
    as_json = run_script(tmp_path, "--json", "--worst", "1")
    assert as_json.returncode == 0
    assert json.loads(as_json.stdout)["measures"]["semicolons"] == 1000
