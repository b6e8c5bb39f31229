"""Shared by all tests: real data if at hand, small simulated data, fitted models, the command line."""

import subprocess
import sys
from functools import cache

import pytest

from digit69.core import set_quiet, set_threads
from digit69.files import write_text
from digit69.models.registry import make_model
from digit69.readers import development_file, write_split
from digit69.simulation import simulate

RUN_MAIN = "from digit69.cli import main; import sys; sys.exit(main())"

set_threads(1)
set_quiet()


def real_file(name):
    """A real data file, or a skip that says what is missing."""
    path = development_file(name)
    if path is None:
        pytest.skip(f"{name} is neither in $DIGIT69_DATA nor in ../shared/data")
    return path


@pytest.fixture(scope="session")
def digits_file():
    """The development rows of the handwritten sixes and nines."""
    return real_file("digit69_dev.mat")


@pytest.fixture(scope="session")
def miyawaki_file():
    """The geometric patterns of Miyawaki et al."""
    return real_file("miyawaki_structured_28x28.mat")


@pytest.fixture
def no_pages(monkeypatch):
    "Leave out pages and pictures: they take longer than the fits."

    def write_stub(name, out, **parameters):
        return write_text(out / f"{name}.html", "")

    monkeypatch.setattr("digit69.experiment.run_notebook", write_stub)
    monkeypatch.setattr("digit69.comparison.run_notebook", write_stub)
    monkeypatch.setattr("digit69.experiment.save_figure", lambda figure, path, **options: None)
    monkeypatch.setattr(
        "digit69.run_embeddings.save_figure", lambda figure, path, **options: None
    )
    monkeypatch.setattr("digit69.experiment.run_figures", lambda run: {})


@pytest.fixture(scope="session")
def small_split():
    """A simulated subject, large enough for every model at smoke size."""
    return simulate(n_train=24, n_test=6, n_voxels=80)


@pytest.fixture(scope="session")
def small_file(small_split, tmp_path_factory):
    """The same subject in the published file layout."""
    return write_split(small_split, tmp_path_factory.mktemp("data") / "small.mat")


@pytest.fixture(scope="session")
def fitted_model(small_split):
    """A function: name of a model -> that model at smoke size, fitted once on the small train rows.

    Tests share it and must leave it as it is.
    """

    @cache
    def fit(name):
        return make_model(name, "smoke").fit(small_split.train)

    return fit


@pytest.fixture(scope="session")
def run_digit69():
    """A function that runs the command line in a process of its own; returns the finished process."""

    def run(*words, **options):
        command = [sys.executable, "-c", RUN_MAIN, *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)

    return run


@pytest.fixture
def digit69(run_digit69):
    """The same, under the name that a person types."""
    return run_digit69
