"""A run writes its own methods paragraph and data dictionary, and invents nothing."""

import json

import numpy as np
import pandas as pd
import pytest

from digit69.data_dictionary import describe_column, describe_file
from digit69.readers import write_split
from digit69.simulation import simulate


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    split = simulate(n_train=18, n_test=6, n_voxels=40)
    return write_split(split, tmp_path_factory.mktemp("methods") / "small.mat")


COMMANDS = {
    "run": ["run", "--models", "ridge,regression", "--preset", "smoke", "--seed", "3"],
    "crossval": ["crossval", "--models", "ridge", "--folds", "3", "--null", "19", "--seed", "3"],
    "evaluate": ["evaluate", "--seed", "3"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_run_writes_its_methods(command, data, digit69, tmp_path):
    out = tmp_path / command
    words = [*COMMANDS[command], "--data", data, "--ssim", "global", "--out", out]
    if command == "evaluate":
        np.save(tmp_path / "theirs.npy", np.random.default_rng(0).random((6, 28, 28)))
        words += ["--reconstructions", tmp_path / "theirs.npy"]
    done = digit69(*words)
    assert done.returncode == 0, done.stderr
    text = (out / "methods.md").read_text()
    metrics = json.loads((out / "metrics.json").read_text())
    facts = [
        "40 voxels",
        f"{metrics['data']['n_train']} training rows",
        f"{metrics['data']['n_test']} test rows",
        metrics["data"]["protocol"],
        metrics["data"]["sha256"][:16],
        "seed 3",
        f"`digit69 {command}`",
        "a single window as large as the image",
        *(f"`{name}`" for name in metrics["models"]),
    ]
    if command == "crossval":
        facts.append("19 permutations")
    for fact in facts:
        assert fact in text, fact
    for unknown in ("None", "nan", "{"):
        assert unknown not in text, unknown
    assert ("not for a paper" in text) == (command == "run")  # a test of the plumbing
    page = next((out / "reports").glob("*.html")).read_text()
    assert "Methods, for a paper" in page and "Two-way identification is the fraction" in page


def test_nothing_in_a_run_folder_is_without_an_explanation(data, digit69, tmp_path):
    out = tmp_path / "run"
    words = ["--models", "ridge,cvae", "--prior", "own", "--preset", "smoke", "--ssim", "all"]
    done = digit69("run", "--data", data, *words, "--out", out)
    assert done.returncode == 0, done.stderr
    names = [path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()]
    unexplained = [name for name in names if not describe_file(name) and name != "methods.md"]
    assert unexplained == []
    columns = pd.read_csv(out / "metrics_per_image.csv").columns
    assert [name for name in columns if not describe_column(name)] == []
    text = (out / "methods.md").read_text()
    for name in columns:
        assert f"| `{name}` |" in text
    with np.load(out / "reconstructions" / "cvae.npz") as arrays:
        for name in arrays.files:
            assert f"- `{name}` (" in text
    assert "see the documentation" not in text
