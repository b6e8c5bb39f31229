"""Planted leaks are named, honest data stay unaccused."""

import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from digit69.data import BrainDataset, Split
from digit69.quality import CHECKS, audit
from digit69.quality_figure import quality_figure
from digit69.quality_scaling import normalization_source
from digit69.quality_voxels import LEVELS, SplitStatistics
from digit69.readers import read_split
from digit69.splits import leave_stimulus_out

N_VOXELS = 80


def experiment(n_train=60, n_test=12, n_voxels=N_VOXELS, seed=0):
    """Random coarse images and voxels that respond to them, with noise."""
    random = np.random.default_rng(seed)
    n = n_train + n_test
    coarse = random.random((n, 7, 7))
    responses = coarse.reshape(n, 49) @ random.normal(size=(49, n_voxels))
    fmri = responses + random.normal(size=(n, n_voxels))
    images = np.kron(coarse, np.ones((4, 4)))
    rows = BrainDataset(fmri - fmri[:1], images, np.arange(n) % 2, name="toy")
    return Split(rows.rows(np.arange(n_train)), rows.rows(np.arange(n_train, n)), name="toy")


@pytest.fixture(scope="module")
def honest():
    return experiment()


def with_voxels(split, train, test):
    return replace(
        split, train=replace(split.train, fmri=train), test=replace(split.test, fmri=test)
    )


def leaks(split):
    return {finding.check for finding in audit(split).leaks}


def z_score(rows, on):
    return (rows - on.mean(0)) / on.std(0)


def min_max(rows, on):
    return (rows - on.min(0)) / np.ptp(on, axis=0)


def scaled(split, train_by, test_by, scale=z_score):
    """Voxels of train and test, scaled by the rows named: train, test or all."""
    rows = {"train": split.train.fmri, "test": split.test.fmri}
    rows["all"] = np.concatenate([rows["train"], rows["test"]])
    return with_voxels(
        split, scale(rows["train"], rows[train_by]), scale(rows["test"], rows[test_by])
    )


def scaling(split):
    return normalization_source(SplitStatistics(split))


def scaling_source(split):
    return scaling(split).values["learnt_on"]


# --- honest data ---


@pytest.mark.parametrize("seed", range(3))
def test_an_honest_split_has_no_leak(seed):
    assert leaks(experiment(seed=seed)) == set()


def test_no_false_alarm_on_voxels_that_vary_around_zero():
    random = np.random.default_rng(0)
    for _ in range(200):
        n_train, n_test, n_voxels = (
            random.integers(4, 40),
            random.integers(1, 6),
            random.integers(2, 60),
        )
        fmri = random.normal(size=(n_train + n_test, n_voxels))
        train = BrainDataset(fmri[:n_train], np.zeros((n_train, 28, 28)))
        assert scaling(Split(train, BrainDataset(fmri[n_train:]))).level != "leak"


# --- copies ---


def unchanged(images):
    return images


def dimmed(images):
    return 0.7 * images


def noisy(images):
    noise = 0.01 * np.random.default_rng(1).normal(size=images.shape)
    return np.clip(images + noise, 0, 1)


@pytest.mark.parametrize("change", [unchanged, dimmed, noisy])
def test_copied_stimuli_are_found_also_when_dimmed_or_noisy(honest, change):
    images = np.concatenate([change(honest.test.images[:3]), honest.train.images[3:]])
    report = audit(replace(honest, train=replace(honest.train, images=images)))
    assert [leak.check for leak in report.leaks] == ["shared stimuli"]
    assert report["shared stimuli"].values["rows"] == [0, 1, 2]


@pytest.mark.parametrize("noise", [0, 0.01, 0.05])
def test_copied_voxel_rows_are_found_also_with_a_little_noise(honest, noise):
    train, test = honest.train.fmri, honest.test.fmri
    copies = test[:2] + noise * train.std(0) * np.random.default_rng(1).normal(size=(2, N_VOXELS))
    report = audit(with_voxels(honest, np.concatenate([copies, train[2:]]), test))
    assert [leak.check for leak in report.leaks] == ["shared voxel rows"]
    assert report["shared voxel rows"].values["rows"] == [0, 1]


# --- scaling ---


@pytest.mark.parametrize("scale", [z_score, min_max])
@pytest.mark.parametrize(
    "train_by, test_by, source",
    [
        ("train", "train", "train"),
        ("all", "all", "pooled"),
        ("train", "test", "test"),
        ("test", "test", "test"),
    ],
)
def test_the_audit_tells_on_which_rows_a_scaling_was_learnt(
    honest, scale, train_by, test_by, source
):
    finding = scaling(scaled(honest, train_by, test_by, scale))
    assert finding.values["learnt_on"] == source
    assert (finding.level == "leak") == (source != "train")


@pytest.mark.parametrize("n_test", [1, 2, 3, 5])
def test_pooled_scaling_is_seen_with_few_test_rows_and_train_scaling_is_not_accused(n_test):
    split = experiment(n_test=n_test)
    assert scaling(scaled(split, "all", "all")).level == "leak"
    assert scaling(scaled(split, "train", "train")).level == "ok"
    assert scaling(split).level == "ok"


def test_a_row_dropped_after_pooled_scaling_does_not_hide_it(honest):
    split = scaled(honest, "all", "all")
    assert scaling_source(replace(split, train=split.train.rows(np.arange(1, 60)))) == "pooled"


# --- the audit itself ---


def test_the_audit_repeats_itself_and_is_plain_json(honest):
    report = audit(honest, seed=3)
    assert report.to_dict() == audit(honest, seed=3).to_dict()
    assert json.loads(json.dumps(report.to_dict()))["schema_version"] == 1
    assert len(report.table()) == len(CHECKS)
    assert set(report.table().level) <= set(LEVELS)


def blind(split):
    return replace(split, test=split.test.blind())


def one_test_row(split):
    return replace(split, test=split.test.rows([0]))


def one_row_each(split):
    return Split(split.train.rows([0]), split.test.rows([0]))


def unlabelled(split):
    return Split(replace(split.train, labels=None), replace(split.test, labels=None))


def with_constant_voxels(split):
    fmri = split.train.fmri.copy()
    fmri[:, :5] = 1
    return with_voxels(split, fmri, split.test.fmri)


@pytest.mark.parametrize(
    "change", [blind, one_test_row, one_row_each, unlabelled, with_constant_voxels]
)
def test_incomplete_data_are_audited_without_accusation_and_drawn(honest, change):
    split = change(honest)
    report = audit(split)
    assert report.leaks == []
    quality_figure(split, report)


def test_large_data_need_no_square_matrices_of_voxels():
    split = experiment(n_train=500, n_test=50, n_voxels=8000)
    tracemalloc.start()
    audit(split)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12 * split.train.fmri.nbytes  # a voxels x voxels matrix alone would be 16 times


# --- published data ---


@pytest.fixture(scope="module")
def patterns(miyawaki_file):
    return read_split(miyawaki_file)


def test_the_published_split_of_the_patterns_overlaps_12_of_12_and_was_scaled_over_all_rows(
    patterns,
):
    report = audit(patterns)
    assert "12 of 12 test stimuli occur in train" in report["shared stimuli"].text
    assert {leak.check for leak in report.leaks} == {"shared stimuli", "normalisation"}
    assert report["copy attack"].values["oracle"]["pcc"] > 0.99


def test_patterns_left_out_by_stimulus_share_none(patterns):
    split = leave_stimulus_out(patterns.pooled(), 5)[0]
    assert audit(split)["shared stimuli"].level != "leak"


def test_the_digits_have_no_leak(digits_file):
    assert leaks(read_split(digits_file)) == set()
