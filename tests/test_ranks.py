"""Rank metrics compare with different pictures, on every path: a repeat of a picture is not its rival."""

from dataclasses import replace

import numpy as np
import pytest

from digit69.crossval import cross_validate
from digit69.data import BrainDataset, Split
from digit69.evaluate_files import evaluate_files
from digit69.evaluation import run_models
from digit69.files import write_npz
from digit69.metrics import METRICS, compute_metrics, summarize
from digit69.scoring import fold_scores, score_reconstructions
from digit69.simulation import simulate
from digit69.splits import make_folds, stimulus_ids

RANKS = [metric.name for metric in METRICS.values() if metric.ranks]


def with_repeats(rows: BrainDataset, times: int) -> BrainDataset:
    """Rows whose every picture is shown `times` times, with other voxels each time."""
    return rows.rows(np.repeat(np.arange(rows.n), times))


@pytest.fixture(scope="module")
def once():
    return simulate(n_train=24, n_test=7, n_voxels=60)


def mean_scores(entry):
    return {name: entry[name]["mean"] for name in RANKS}


PERFECT = dict.fromkeys(RANKS, 1.0)


@pytest.mark.parametrize("times", [1, 2, 3, 5])
def test_perfect_reconstructions_are_perfect_however_often_pictures_are_shown(once, times):
    test = with_repeats(once.test, times)
    _, scores = score_reconstructions(test.images, test)
    assert mean_scores(scores) == PERFECT


def test_pictures_that_differ_by_a_grey_level_are_no_rivals(once):
    random = np.random.default_rng(0)
    test = with_repeats(once.test, 3)
    levels = np.round(255 * test.images) + random.integers(-1, 2, test.images.shape)
    rendered = replace(test, images=np.clip(levels, 0, 255).astype(np.float32) / 255)
    _, scores = score_reconstructions(rendered.images, rendered)
    assert mean_scores(scores) == PERFECT


@pytest.mark.parametrize("times", [2, 3])
def test_repeats_change_no_rank_of_any_reconstruction(once, times):
    random = np.random.default_rng(0)
    noisy = np.clip(once.test.images + random.normal(0, 0.6, once.test.images.shape), 0, 1)
    alone, _ = score_reconstructions(noisy, once.test)
    repeated, _ = score_reconstructions(
        np.repeat(noisy, times, 0), with_repeats(once.test, times)
    )
    for name in RANKS:
        np.testing.assert_array_equal(np.repeat(alone[name], times), repeated[name])


@pytest.mark.parametrize("name", RANKS)
def test_each_rank_metric_alone_counts_a_picture_once(once, name):
    images = np.repeat(once.test.images, 3, 0)
    labels = np.repeat(once.test.labels, 3)
    assert set(METRICS[name].function(images, images, None, labels)) == {1.0}


def test_the_mean_over_pairs_counts_different_pictures(once):
    random = np.random.default_rng(1)
    noisy = random.random(once.test.images.shape)
    times = np.array([1, 1, 1, 1, 1, 1, 4])  # one picture is shown more often than the others
    rows = np.repeat(np.arange(7), times)
    test = once.test.rows(rows)
    values = compute_metrics(noisy[rows], test.images, test.labels)
    within = values["within_class_identification"]
    rivals = [np.sum(once.test.labels == label) - 1 for label in test.labels]
    expected = np.average(within, weights=rivals)
    summary = summarize(values, labels=test.labels, groups=stimulus_ids(test.images))
    assert summary["within_class_identification"]["mean"] == pytest.approx(expected)


def test_evaluate_of_perfect_files(once, tmp_path):
    split = Split(once.train, with_repeats(once.test, 3), "repeats")
    file = write_npz(tmp_path / "perfect.npz", reconstructions=split.test.images)
    metrics = evaluate_files(split, [file], tmp_path / "out")
    assert mean_scores(metrics["models"]["perfect"]) == PERFECT
    assert metrics["models"]["mean"]["top1"]["mean"] <= 1 / 7 + 1e-9


@pytest.fixture
def all_knowing(once, monkeypatch):
    """The mean model answers with the picture that was shown: it finds the row among all that there are."""
    rows = np.concatenate([once.train.fmri, once.test.fmri])
    images = np.concatenate([once.train.images, once.test.images])

    def look_up(self, fmri):
        distance = ((fmri[:, None] - rows) ** 2).sum(2)
        return images[distance.argmin(1)]

    monkeypatch.setattr("digit69.models.linear.Mean._reconstruct", look_up)


def test_run_of_a_perfect_model(once, all_knowing, tmp_path):
    split = Split(once.train, with_repeats(once.test, 3), "repeats")
    metrics = run_models(split, ["mean"], tmp_path, preset="smoke")
    assert mean_scores(metrics["models"]["mean"]) == PERFECT


def test_crossval_of_a_perfect_model(once, all_knowing, tmp_path):
    data = with_repeats(once.train, 3)
    metrics = cross_validate(data, ["mean"], tmp_path, "leave-stimulus-out", 4)
    assert mean_scores(metrics["models"]["mean"]) == PERFECT


def test_folds_rank_as_the_whole_does(once):
    data = with_repeats(once.train, 2)
    for fold in make_folds(data, "leave-stimulus-out", 3):
        scores = fold_scores(fold.test.images, fold, data)
        assert {name: set(scores[name]) for name in RANKS} == dict.fromkeys(RANKS, {1.0})
