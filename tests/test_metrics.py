"""Our metrics against an independent scorer: they must agree to four decimals."""
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from digit69.manifest import checkout
from digit69.readers import read_split, write_split
from digit69.metrics import METRICS, compute_metrics, summarize
from digit69.models.base import make_model
from digit69.simulation import simulate

scorer = (checkout() or Path.cwd()).parent / "shared" / "tools" / "score.py"


def agree(file, recon, tmp_path):
    if not scorer.is_file():
        pytest.skip("the independent scorer is not in ../shared/tools")
    np.savez(tmp_path / "recon.npz", reconstructions=recon)
    theirs = json.loads(subprocess.run([sys.executable, scorer, file, tmp_path / "recon.npz"], capture_output=True, text=True, check=True).stdout)
    test = read_split(file).test
    ours = summarize(compute_metrics(recon, test.images, test.labels), labels=test.labels)
    for key in METRICS:
        if key in theirs:
            assert abs(ours[key]["mean"] - theirs[key]) <= 5.1e-5, (key, ours[key]["mean"], theirs[key])
    assert {"mse", "pcc", "ssim", "psnr", "identification", "within_class_identification", "top1"} <= set(theirs)


@pytest.mark.parametrize("model", ["mean", "class_mean", "ridge"])
def test_agrees_with_the_independent_scorer_on_real_digits(digits_file, model, tmp_path):
    split = read_split(digits_file)
    agree(digits_file, make_model(model).fit(split.train).reconstruct(split.test.fmri), tmp_path)


def test_agrees_on_unbalanced_classes_and_noise(tmp_path):
    split = simulate(n_train=20, n_test=7, n_voxels=50)
    file = write_split(split, tmp_path / "sim.mat")
    agree(file, np.random.default_rng(0).random((7, 28, 28)), tmp_path)
