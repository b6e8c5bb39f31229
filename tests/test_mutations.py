"""Damaged files of every kind are read or refused in one line: no traceback, and no waiting.

`python tests/mutations.py 200 1` tries more of them, and other ones.
"""

from pathlib import Path

import pytest

from digit69.core import DataError
from mutations import build_kinds, command, failures, outcome, settings_failures

# Every kind of file, and how many damaged ones are tried; those that load a model take longer.
MUTANTS = {
    "data .npz": 60,
    "data .mat": 60,
    "reconstructions": 60,
    "ridge model.json": 30,
    "ridge weights": 30,
    "class_mean model.json": 30,
    "class_mean weights": 30,
    "posterior model.json": 30,
    "posterior weights": 30,
    "run metrics.json": 100,
    "run manifest.json": 100,
    "run table": 60,
    "run targets": 60,
    "embeddings .pkl": 60,
    "grid": 100,
    "state dict": 60,
    "checkpoint": 60,
}
SEED = 11


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    "One whole file of each kind."
    return build_kinds(tmp_path_factory.mktemp("kinds"))


def test_every_kind_of_file_is_damaged(kinds):
    assert list(kinds) == list(MUTANTS)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_damaged_file_is_read_or_refused_in_one_line(name, kinds):
    assert failures(kinds[name], MUTANTS[name], SEED) == []


def test_odd_values_of_set_are_read_or_refused_in_one_line():
    assert settings_failures(200, SEED) == []


# --- the tests themselves ----------------------------------------------------------------------------------


def refuse_in_two_lines(file):
    raise DataError("one\ntwo")


def refuse_without_words(file):
    raise DataError(" ")


def break_down(file):
    raise KeyError("mean")


@pytest.mark.parametrize(
    "read, problem",
    [
        (refuse_in_two_lines, "not one line"),
        (refuse_without_words, "not one line"),
        (break_down, "KeyError"),
        (lambda file: command("dance", "--x"), None),
        (lambda file: None, None),
    ],
)
def test_what_counts_as_a_failure(read, problem):
    found = outcome(read, Path("none"))
    assert (found or "").startswith(problem or "") and bool(found) == bool(problem)
