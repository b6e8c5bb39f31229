"""Running a notebook again keeps its results and ids, and nothing that changes from run to run."""

import json

import pytest

from ci_scripts import code_cell, load_script, write_notebook

book = load_script("book")

NOISY = """import sys, warnings
warnings.warn("beware")
print("50 %|#####     |", file=sys.stderr)
print("a result")
21 * 2"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """How the run of a notebook ended, and the cell that it wrote."""
    file = write_notebook(tmp_path_factory.mktemp("nbs") / "000_core.ipynb", code_cell(NOISY))
    written = json.loads(file.read_text(encoding="utf-8"))["cells"][0]
    execution = book.execute(file)
    return execution, written, json.loads(file.read_text(encoding="utf-8"))["cells"][0]


def test_results_are_kept_and_progress_is_not(executed):
    execution, _, cell = executed
    assert execution.error == ""
    assert [output["output_type"] for output in cell["outputs"]] == ["stream", "execute_result"]
    assert cell["outputs"][0]["text"] == ["a result\n"]


def test_warnings_are_reported(executed):
    assert any("UserWarning: beware" in line for line in executed[0].warnings)


def test_source_and_id_stay(executed):
    _, before, after = executed
    assert after["id"] == before["id"]
    assert after["source"] == before["source"]
    assert after["metadata"] == {}


def test_failed_notebook_stays_as_it_was(tmp_path):
    file = write_notebook(tmp_path / "000_core.ipynb", code_cell("print(1)"), code_cell("1 / 0"))
    before = file.read_bytes()
    assert "ZeroDivisionError" in book.execute(file).error
    assert file.read_bytes() == before


def test_unknown_chapters_are_refused():
    with pytest.raises(SystemExit, match="no such chapter: 999_nothing"):
        book.find_notebooks(["999_nothing"])
    assert [file.name for file in book.find_notebooks(["nbs/index.ipynb"])] == ["index.ipynb"]
