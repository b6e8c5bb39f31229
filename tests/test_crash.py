"""A command that is killed at any rename gives, when it is given again, what an undisturbed one gives.

`python tests/kills.py 20 --seed 1` kills more often and elsewhere, `--pages` also while a report is made.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# How often each command is killed; those with workers take longer.
KILLS = {
    "run": 2,
    "run --jobs 2": 1,
    "crossval": 2,
    "crossval --jobs 2": 1,
    "train": 2,
    "batch": 2,
    "batch --jobs 2": 1,
}


@pytest.mark.skipif(os.name != "posix", reason="makes copies of a process")
@pytest.mark.parametrize("name", KILLS)
def test_a_killed_command_ends_as_if_it_had_not_been(name):
    script = Path(__file__).with_name("kills.py")
    words = [sys.executable, str(script), str(KILLS[name]), "--seed", "5", "--only", name]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{KILLS[name]} of {KILLS[name]} recovered" in done.stdout
