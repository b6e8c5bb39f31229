"""What another version of digit69 wrote is read, or refused in one line that names both versions."""

import json

import pytest

from digit69 import __version__
from digit69.core import DataError, ModelError
from digit69.models.base import load_model
from digit69.runs import load_run
from digit69.training_run import train_to_folder


def change(file, **entries):
    "Other entries in a JSON file."
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


@pytest.fixture
def model_folder(small_split, tmp_path):
    train_to_folder(small_split, "mean", tmp_path / "mean", preset="smoke")
    return tmp_path / "mean"


def test_a_model_of_a_newer_version_names_both(model_folder):
    change(model_folder / "model.json", schema_version=99, digit69="99.0")
    with pytest.raises(ModelError) as refused:
        load_model(model_folder)
    message = str(refused.value)
    assert "schema 99: digit69 99.0" in message and f"digit69 {__version__}" in message
    assert "update digit69" in message and "\n" not in message


def test_a_model_of_an_older_version_says_what_to_do(model_folder):
    change(model_folder / "model.json", schema_version=1)
    with pytest.raises(ModelError, match="schema 1.*train it again"):
        load_model(model_folder)


def test_a_run_of_a_newer_version_names_both_schemas(tmp_path):
    (tmp_path / "metrics.json").write_text('{"schema_version": 99}')
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match="newer version.*schema 99, this one reads 1.*update"):
        load_run(tmp_path)
