"""Commands that are asked to stop: by SIGTERM as by Ctrl-C, with their workers, also during the report."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import RUN_MAIN

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at /proc")


def members(group):
    "Processes of a process group that run."
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue  # it has just ended
        if int(its_group) == group and state != "Z":
            found.append(int(stat.parent.name))
    return found


def wait_until(condition, child):
    "Wait for something that a command does."
    deadline = time.monotonic() + 240
    while not condition() and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.05)
    assert condition() and child.poll() is None


def start(*words):
    "A command in a process group of its own."
    command = [sys.executable, "-c", RUN_MAIN, *map(str, words), "--quiet"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, start_new_session=True, **quiet)


def end(child):
    "Whatever is left of a command."
    if members(child.pid):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def test_sigterm_ends_the_workers_too(small_file, tmp_path):
    out = tmp_path / "cv"
    words = ("crossval", "--models", "ridge", "--folds", 5, "--repeats", 20, "--jobs", 2)
    child = start(*words, "--data", small_file, "--out", out)
    try:
        wait_until(lambda: list(out.glob("folds/*/0*.npz")), child)
        assert len(members(child.pid)) >= 3
        child.send_signal(signal.SIGTERM)
        error = child.communicate(timeout=120)[1]
        deadline = time.monotonic() + 20
        while members(child.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert members(child.pid) == []
    finally:
        end(child)
    assert child.returncode == 143
    assert "fitted folds" in error and "to go on: " in error and "Traceback" not in error


def test_ctrl_c_during_the_report_says_what_is_kept(small_file, tmp_path):
    out = tmp_path / "run"
    words = ("run", "--models", "mean", "--preset", "smoke", "--jobs", 1)
    child = start(*words, "--data", small_file, "--out", out)
    try:
        wait_until((out / "MODEL_CARD.md").is_file, child)
        os.killpg(child.pid, signal.SIGINT)  # as a terminal does
        error = child.communicate(timeout=120)[1]
    finally:
        end(child)
    assert child.returncode == 130, error
    stopped, again = error.strip().splitlines()[-2:]
    assert "keeps fitted class_mean, mean, ridge" in stopped
    assert again.startswith("to go on: ") and again.endswith("--resume")
    assert "Traceback" not in error
