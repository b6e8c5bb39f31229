"""Every promise of the page `860_promises` has a test that exists."""

import json
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
NOTEBOOKS = TESTS.parent / "nbs"
PAGE = NOTEBOOKS / "860_promises.ipynb"


def rows():
    "The rows of all tables of the page: (promise, test)."
    cells = json.loads(PAGE.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells)
    found = re.findall(r"^\| (.+) \| (.+) \|$", text, re.MULTILINE)
    return [row for row in found if row != ("promise", "test")]


def exists(test):
    "Whether there is a test `FILE::NAME`, or a notebook that checks something."
    file, _, name = test.partition("::")
    if name:
        path = TESTS / file
        return path.is_file() and f"\ndef {name}(" in path.read_text(encoding="utf-8")
    path = NOTEBOOKS / f"{file}.ipynb"
    return path.is_file() and "test_eq(" in path.read_text(encoding="utf-8")


def test_the_page_has_promises():
    assert len(rows()) >= 20


@pytest.mark.parametrize("promise, test", rows())
def test_a_promise_names_a_test_that_exists(promise, test):
    assert promise.endswith(".")
    assert re.fullmatch(r"`\S+`", test) and exists(test.strip("`"))


@pytest.mark.parametrize("test", ["test_crash.py::test_none", "test_none.py::test_x", "999_none"])
def test_a_test_that_is_not_there_is_noticed(test):
    assert not exists(test)
