"""Pictures larger than 28x28 are scored at their first size as well, wherever rows are scored."""

import numpy as np
import pytest

from digit69.core import DataError
from digit69.data import BrainDataset
from digit69.evaluate_files import evaluate_files
from digit69.evaluation import run_models
from digit69.experiment import run_crossval_experiment
from digit69.files import read_json
from digit69.further_scores import add_original_size
from digit69.original_size import ORIGINAL_SIZE_METRICS, enlarge
from digit69.readers import read_split, write_split
from digit69.simulation import simulate

NAMES = {metric.name for metric in ORIGINAL_SIZE_METRICS}
SIZE = 70


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    "A data file whose pictures have 70x70 pixels."
    path = write_split(simulate(24, 6, 40), tmp_path_factory.mktemp("large") / "large.npz")
    with np.load(path) as arrays:
        arrays = dict(arrays)
    for key in ("stimTrn", "stimTest"):
        upright = arrays[key].reshape(-1, 28, 28).transpose(0, 2, 1) / 255
        arrays[key] = np.rint(255 * enlarge(upright, SIZE)).astype(np.uint8)
    np.savez(path, **arrays)
    return path


def test_pictures_are_kept_as_they_were(file):
    split = read_split(file)
    with np.load(file) as arrays:
        np.testing.assert_array_equal(split.test.originals, arrays["stimTest"])
    assert split.pooled().originals.shape == (30, SIZE, SIZE)
    assert split.test.rows([2, 0]).originals.shape == (2, SIZE, SIZE)
    assert split.test.blind().originals is None


def test_small_pictures_have_no_such_scores(tmp_path):
    split = simulate(24, 6, 40)
    run_models(split, ["mean"], tmp_path)
    add_original_size(tmp_path, split.test)
    assert not NAMES & read_json(tmp_path / "metrics.json")["models"]["mean"].keys()


def test_what_was_shown_itself_is_perfect_at_its_own_size_only_when_given_so(file, tmp_path):
    split = read_split(file)
    np.save(tmp_path / "large.npy", split.test.originals)
    np.save(tmp_path / "small.npy", split.test.images)
    evaluate_files(split, [tmp_path / "large.npy", tmp_path / "small.npy"], tmp_path)
    add_original_size(tmp_path, split.test)
    models = read_json(tmp_path / "metrics.json")["models"]
    for name in ("large", "small"):
        assert models[name]["pcc"]["mean"] == pytest.approx(1)
    assert models["large"]["ssim_original"]["mean"] == pytest.approx(1)
    assert 0.5 < models["small"]["ssim_original"]["mean"] < 0.999


def test_a_cross_validation_has_them_for_every_row(file, tmp_path):
    run = run_crossval_experiment(
        read_split(file).pooled(), ["mean"], tmp_path / "cv", n_splits=3, preset="smoke"
    )
    assert run.metrics["models"]["mean"].keys() >= NAMES
    assert "SSIM (original size)" in (tmp_path / "cv" / "reports" / "crossval.html").read_text()


@pytest.mark.parametrize(
    "originals",
    [np.zeros((2, 56, 56)), np.zeros((3, 56, 56), np.uint8), np.zeros((2, 56), np.uint8)],
)
def test_other_originals_are_refused(originals):
    with pytest.raises(DataError, match="originals are"):
        BrainDataset(np.ones((2, 3)), originals=originals)
