"""Shared by all tests: real data if they are at hand, one thread, the command line as a function."""
import subprocess
import sys

import pytest

from digit69.core import set_threads
from digit69.readers import development_file

set_threads(1)


def real_file(name):
    "A real data file, or a skip that says what is missing."
    path = development_file(name)
    if path is None:
        pytest.skip(f"{name} is neither in $DIGIT69_DATA nor in ../shared/data")
    return path


@pytest.fixture(scope="session")
def digits_file():
    return real_file("digit69_dev.mat")


@pytest.fixture(scope="session")
def miyawaki_file():
    return real_file("miyawaki_structured_28x28.mat")


@pytest.fixture
def digit69():
    "Run the command line in a process of its own; returns the finished process."
    def run(*words, **options):
        return subprocess.run([sys.executable, "-c", "from digit69.cli import main; import sys; sys.exit(main())", *map(str, words)],
                              capture_output=True, text=True, timeout=300, **options)
    return run
