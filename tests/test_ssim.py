"""SSIM by other conventions stands beside the standing score, on every path, under its own name."""

import json

import numpy as np
import pandas as pd
import pytest
from skimage.metrics import structural_similarity

from digit69.conventions import SSIM_CONVENTIONS
from digit69.readers import write_split
from digit69.simulation import simulate

NAMES = [metric.name for metric in SSIM_CONVENTIONS.values()]


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


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    split = simulate(n_train=16, n_test=6, n_voxels=40)
    return write_split(split, tmp_path_factory.mktemp("ssim") / "small.mat")


def words(path, data, out, folder):
    common = ["--data", data, "--ssim", "all", "--out", out]
    if path == "run":
        return ["run", "--models", "ridge", "--preset", "smoke", *common]
    if path == "crossval":
        return ["crossval", "--models", "ridge", "--folds", "3", "--repeats", "2", *common]
    file = folder / "theirs.npz"
    np.savez(file, reconstructions=np.random.default_rng(0).random((6, 28, 28)))
    return ["evaluate", "--reconstructions", file, *common]


@pytest.mark.parametrize("path", ["run", "evaluate", "crossval"])
def test_every_command_scores_by_the_conventions_asked_for(path, data, digit69, tmp_path):
    out = tmp_path / path
    done = digit69(*words(path, data, out, tmp_path))
    assert done.returncode == 0, done.stderr
    models = json.loads((out / "metrics.json").read_text())["models"]
    table = pd.read_csv(out / "metrics_per_image.csv")
    targets = np.load(out / "targets.npz")["images"].astype(float)
    for name, entry in models.items():
        with np.load(out / "reconstructions" / f"{name}.npz") as arrays:
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
    assert "SSIM (Gaussian 11x11)" in done.stdout
    page = next((out / "reports").glob("*.html")).read_text()
    assert "SSIM (whole image)" in page


def test_an_unknown_convention_is_refused_before_any_work(data, digit69, tmp_path):
    done = digit69("run", "--data", data, "--ssim", "wang", "--out", tmp_path / "no")
    assert done.returncode == 2 and "choose from uniform7" in done.stderr
    assert not (tmp_path / "no").exists()
