"""What a scored run leaves behind: SSIM by other conventions, methods for a paper, a data dictionary.

One run of each command serves all tests of this file."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pandas as pd
import pytest
from skimage.metrics import structural_similarity

from digit69.conventions import SSIM_CONVENTIONS
from digit69.data_dictionary import describe_column, describe_file
from digit69.readers import write_split
from digit69.simulation import simulate

NAMES = [metric.name for metric in SSIM_CONVENTIONS.values()]
COMMANDS = {
    "run": ["run", "--models", "ridge,cvae", "--prior", "own", "--preset", "smoke"],
    "crossval": [
        "crossval",
        "--models",
        "ridge",
        "--folds",
        "3",
        "--repeats",
        "2",
        "--null",
        "19",
    ],
    "evaluate": ["evaluate"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    split = simulate(n_train=18, n_test=6, n_voxels=40)
    return write_split(split, tmp_path_factory.mktemp("scored") / "small.mat")


@dataclass
class Finished:
    "A command that ended, and its folder."

    process: CompletedProcess
    folder: Path

    @property
    def metrics(self):
        return json.loads((self.folder / "metrics.json").read_text())

    @property
    def page(self):
        return next((self.folder / "reports").glob("*.html")).read_text()


@pytest.fixture(scope="module")
def finished(data, run_digit69, tmp_path_factory):
    """A function: name of a command -> that command, run once."""

    @cache
    def run_once(command):
        folder = tmp_path_factory.mktemp(command)
        words = [*COMMANDS[command], "--data", data, "--ssim", "all", "--seed", "3"]
        if command == "evaluate":
            np.save(folder / "theirs.npy", np.random.default_rng(0).random((6, 28, 28)))
            words += ["--reconstructions", folder / "theirs.npy"]
        done = run_digit69(*words, "--out", folder / "out")
        assert done.returncode == 0, done.stderr
        return Finished(done, folder / "out")

    return run_once


def independent(recon, target):
    """SSIM by scikit-image and by hand."""
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    mean_r, mean_t = recon.mean(), target.mean()
    covariance = ((recon - mean_r) * (target - mean_t)).mean()
    luminance = (2 * mean_r * mean_t + 1e-4) / (mean_r**2 + mean_t**2 + 1e-4)
    structure = (2 * covariance + 9e-4) / (recon.var() + target.var() + 9e-4)
    return {
        "ssim_uniform7": structural_similarity(recon, target, data_range=1.0),
        "ssim_gaussian11": structural_similarity(recon, target, data_range=1.0, **gaussian),
        "ssim_global": luminance * structure,
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_scores_by_the_conventions_asked_for(command, finished):
    done = finished(command)
    table = pd.read_csv(done.folder / "metrics_per_image.csv")
    targets = np.load(done.folder / "targets.npz")["images"].astype(float)
    for name, entry in done.metrics["models"].items():
        with np.load(done.folder / "reconstructions" / f"{name}.npz") as arrays:
            repeats = (
                arrays["repeats"] if "repeats" in arrays.files else [arrays["reconstructions"]]
            )
        expected = [
            pd.DataFrame([independent(*pair) for pair in zip(np.float64(once), targets)])
            for once in repeats
        ]
        for metric in NAMES:
            values = np.mean([frame[metric] for frame in expected], axis=0)
            of_model = table[table.model == name].sort_values("row")[metric]
            np.testing.assert_allclose(of_model, values, atol=1e-5)
            assert entry[metric]["mean"] == pytest.approx(values.mean(), abs=1e-5)
            assert entry[metric]["lo"] <= entry[metric]["mean"] <= entry[metric]["hi"]
        assert entry["ssim"] == entry["ssim_uniform7"]
    assert "SSIM (Gaussian 11x11)" in done.process.stdout
    assert "SSIM (whole image)" in done.page


def test_an_unknown_convention_is_refused_before_any_work(data, digit69, tmp_path):
    done = digit69("run", "--data", data, "--ssim", "wang", "--out", tmp_path / "no")
    assert done.returncode == 2 and "choose from uniform7" in done.stderr
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_run_writes_its_methods(command, finished):
    done = finished(command)
    text = (done.folder / "methods.md").read_text()
    metrics = done.metrics
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
    assert "Methods, for a paper" in done.page
    assert "Two-way identification is the fraction" in done.page


def test_nothing_in_a_run_folder_is_without_an_explanation(finished):
    out = finished("run").folder
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
