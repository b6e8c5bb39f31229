"Planted leaks are named, honest data stay unaccused."
from dataclasses import replace

import numpy as np
import pytest

from digit69.data import BrainDataset, Split
from digit69.readers import development_file, read_split
from digit69.splits import leave_stimulus_out
from digit69.quality import CHECKS, audit
from digit69.quality_voxels import LEVELS
from digit69.quality_leakage import normalization_source
from digit69.quality_figure import quality_figure


def experiment(n=60, m=12, voxels=80, seed=0, offset=0.):
    "Random coarse images and voxels that respond to them, with noise."
    random = np.random.default_rng(seed)
    coarse = random.random((n + m, 7, 7))
    fmri = offset + coarse.reshape(n + m, 49) @ random.normal(size=(49, voxels)) + random.normal(size=(n + m, voxels))
    all_rows = BrainDataset(fmri - fmri[:1], np.kron(coarse, np.ones((4, 4))), np.arange(n + m) % 2, name="toy")
    return Split(all_rows.rows(np.arange(n)), all_rows.rows(np.arange(n, n + m)), name="toy")


def with_voxels(split, train, test):
    return replace(split, train=replace(split.train, fmri=train), test=replace(split.test, fmri=test))


def leaks(split): return {f.check for f in audit(split).leaks}


def scaled(split, on_train, on_test, kind="z"):
    a, b = split.train.fmri, split.test.fmri
    rows = {"train": a, "test": b, "all": np.concatenate([a, b])}
    z = lambda x, on: (x - on.mean(0)) / on.std(0) if kind == "z" else (x - on.min(0)) / np.ptp(on, axis=0)
    return with_voxels(split, z(a, rows[on_train]), z(b, rows[on_test]))


@pytest.mark.parametrize("seed", range(3))
def test_an_honest_split_has_no_leak(seed):
    assert leaks(experiment(seed=seed)) == set()


def test_copied_stimuli_are_found_also_when_dimmed_or_noisy():
    split = experiment()
    for change in (lambda x: x, lambda x: .7 * x, lambda x: np.clip(x + .01 * np.random.default_rng(1).normal(size=x.shape), 0, 1)):
        images = np.concatenate([change(split.test.images[:3]), split.train.images[3:]])
        planted = replace(split, train=replace(split.train, images=images))
        assert leaks(planted) == {"shared stimuli"}
        assert audit(planted)["shared stimuli"].values["rows"] == [0, 1, 2]


@pytest.mark.parametrize("noise", [0, .01, .05])
def test_copied_voxel_rows_are_found_also_with_a_little_noise(noise):
    split = experiment()
    copies = split.test.fmri[:2] + noise * split.train.fmri.std(0) * np.random.default_rng(1).normal(size=(2, 80))
    planted = with_voxels(split, np.concatenate([copies, split.train.fmri[2:]]), split.test.fmri)
    assert leaks(planted) == {"shared voxel rows"}
    assert audit(planted)["shared voxel rows"].values["rows"] == [0, 1]


@pytest.mark.parametrize("kind", ["z", "min-max"])
@pytest.mark.parametrize("on_train, on_test, verdict", [("train", "train", "train"), ("all", "all", "pooled"), ("train", "test", "test"), ("test", "test", "test")])
def test_the_audit_tells_whom_a_scaling_was_learnt_on(kind, on_train, on_test, verdict):
    finding = normalization_source(scaled(experiment(), on_train, on_test, kind))
    assert finding.values["learnt_on"] == verdict
    assert (finding.level == "leak") == (verdict != "train")


@pytest.mark.parametrize("m", [1, 2, 3, 5])
def test_pooled_scaling_is_seen_with_few_test_rows_and_train_scaling_is_not_accused(m):
    split = experiment(m=m)
    assert normalization_source(scaled(split, "all", "all")).level == "leak"
    assert normalization_source(scaled(split, "train", "train")).level == "ok"
    assert normalization_source(split).level == "ok"


def test_a_row_dropped_after_pooled_scaling_does_not_hide_it():
    split = scaled(experiment(), "all", "all")
    assert normalization_source(replace(split, train=split.train.rows(np.arange(1, 60)))).values["learnt_on"] == "pooled"


def test_no_false_alarm_on_voxels_that_vary_around_zero():
    random = np.random.default_rng(0)
    for _ in range(200):
        n, m, v = random.integers(4, 40), random.integers(1, 6), random.integers(2, 60)
        x = random.normal(size=(n + m, v))
        assert normalization_source(Split(BrainDataset(x[:n], np.zeros((n, 28, 28))), BrainDataset(x[n:]))).level != "leak"


def test_the_audit_repeats_itself_and_is_plain_json():
    import json
    split = experiment()
    one = audit(split, seed=3)
    assert one.to_dict() == audit(split, seed=3).to_dict()
    assert json.loads(json.dumps(one.to_dict()))["schema_version"] == 1
    assert len(one.table()) == len(CHECKS) and set(one.table().level) <= set(LEVELS)


def test_blind_unlabelled_constant_and_single_rows_are_audited_and_drawn():
    split = experiment()
    flat = split.train.fmri.copy(); flat[:, :5] = 1
    for s in (replace(split, test=split.test.blind()), replace(split, test=split.test.rows([0])), with_voxels(split, flat, split.test.fmri),
              Split(replace(split.train, labels=None), replace(split.test, labels=None)), Split(split.train.rows([0]), split.test.rows([0]))):
        report = audit(s)
        assert report.leaks == []
        quality_figure(s, report)


def test_large_data_need_no_square_matrices_of_voxels():
    import tracemalloc
    split = experiment(n=1500, m=50, voxels=6000)
    tracemalloc.start()
    audit(split)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * split.train.fmri.nbytes          # a V x V matrix alone would be 8 times


def real(name):
    path = development_file(name)
    if path is None: pytest.skip(f"{name} is not here")
    return read_split(path)


def test_miyawaki_published_split_overlaps_12_of_12():
    split = real("miyawaki_structured_28x28.mat")
    report = audit(split)
    assert "12 of 12 test stimuli occur in train" in report["shared stimuli"].text
    assert {f.check for f in report.leaks} == {"shared stimuli", "normalisation"}
    assert report["copy attack"].values["oracle"]["pcc"] > .99


def test_miyawaki_left_out_by_stimulus_shares_none():
    assert audit(leave_stimulus_out(real("miyawaki_structured_28x28.mat").pooled(), 5)[0])["shared stimuli"].level != "leak"


def test_digit69_has_no_leak():
    assert leaks(real("digit69_dev.mat")) == set()
