"""The posterior: honest inside, the same through the command line, on files without images and with any number of voxels."""
import copy
import json
from dataclasses import replace

import numpy as np
import pytest

from digit69.core import ModelError
from digit69.data import BrainDataset
from digit69.readers import write_split
from digit69.receptive_fields import EncodingConfig
from digit69.metrics import pcc
from digit69.models.base import Reconstructor, make_model
from digit69.models.candidates import make_candidates, compute_features, sample_indices, posterior_weights
from digit69.models.prior_selection import cross_validate_prior, fit_inner_likelihoods
from digit69.augmentation import interpolate_shapes
from digit69.simulation import simulate

LIGHT = dict(n_candidates=3000, exponents=(.15,), strengths=(1.,), voxels=(100, 200), draws=16, steps=10, network_steps=60, width=128)


@pytest.fixture(scope="module")
def split():
    return simulate(60, 12, 300, seed=3)


@pytest.fixture(scope="module")
def fitted(split):
    return make_model("posterior", **LIGHT).fit(split.train)


def test_it_beats_ridge_on_a_simulated_subject(split, fitted):
    ours, ridge = (pcc(m.reconstruct(split.test.fmri), split.test.images).mean() for m in (fitted, make_model("ridge").fit(split.train)))
    assert ours > ridge


def test_each_estimate_is_best_at_its_own(split, fitted):
    found = fitted.estimates(split.test.fmri)
    error = {k: ((v - split.test.images)**2).mean() for k, v in found.items()}
    assert error["mean"] < error["probable"]
    assert all(v.shape == (12, 28, 28) and v.dtype == np.float32 for v in found.values())


def test_rows_without_information_give_back_the_prior(split, fitted):
    blank = np.repeat(split.train.fmri.mean(0)[None], 2, 0)
    assert fitted.uncertainty(blank).mean() > fitted.uncertainty(split.test.fmri).mean()


def test_a_noisier_row_is_answered_less_surely(split, fitted):
    noise = np.random.default_rng(0).normal(size=split.test.fmri.shape) * split.train.fmri.std(0)
    doubt = [fitted.uncertainty((split.test.fmri + k * noise).astype(np.float32)).mean() for k in (0, 1, 3)]
    assert doubt[0] < doubt[1] < doubt[2]


def test_intervals_hold_draws_and_widen_with_the_level(split, fitted):
    (lo, hi), (lower, higher) = fitted.intervals(split.test.fmri, .5), fitted.intervals(split.test.fmri, .9)
    assert (lower <= lo).all() and (hi <= higher).all() and (hi - lo).mean() < (higher - lower).mean()


def test_selection_never_sees_candidates_of_held_out_stimuli(split):
    images, parents = make_candidates(split.train, 300, seed=0)
    inner = fit_inner_likelihoods(split.train, EncodingConfig(voxels=100), (100,), n_splits=4)
    assert sorted(np.concatenate([out for out, _ in inner])) == list(range(split.train.n))
    honest, leaky = (cross_validate_prior(split.train, {1.: compute_features(images, p, EncodingConfig())}, inner) for p in (parents, np.repeat(np.arange(300)[:, None] % 9, 3, 1)))
    assert max(p for p, _ in leaky.values()) > max(p for p, _ in honest.values()) + .02                  # hardly anything barred: the answer is among the candidates


def test_shuffled_pairs_decode_nothing(split):
    order = np.random.default_rng(0).permutation(split.train.n)
    shuffled = BrainDataset(split.train.fmri[order], split.train.images, split.train.labels)
    wrong = make_model("posterior", **LIGHT).fit(shuffled)
    mean = make_model("mean").fit(split.train)
    assert pcc(wrong.reconstruct(split.test.fmri), split.test.images).mean() < pcc(mean.reconstruct(split.test.fmri), split.test.images).mean() + .05


def test_saved_and_read_back(split, fitted, tmp_path):
    again = Reconstructor.load(fitted.save(tmp_path))
    assert np.array_equal(again.reconstruct(split.test.fmri), fitted.reconstruct(split.test.fmri))
    assert np.array_equal(again.sample(split.test.fmri, 4, 1), fitted.sample(split.test.fmri, 4, 1))


@pytest.mark.parametrize("fact", ["usual_", "warmth_"])
def test_a_folder_of_an_earlier_version_is_refused_in_one_line(fitted, tmp_path, fact):
    folder = fitted.save(tmp_path)
    card = json.loads((folder / "model.json").read_text())
    del card["facts"][fact]
    (folder / "model.json").write_text(json.dumps(card))
    with pytest.raises(ModelError, match="train the model again"): Reconstructor.load(folder)


def test_constant_voxels_few_rows_and_no_labels(split):
    fmri = split.train.fmri.copy()
    fmri[:, :40] = 3.
    for part in (BrainDataset(fmri, split.train.images), replace(split.train, labels=None).rows(np.arange(5)), split.train.rows(np.r_[0:4, 0:4])):
        model = make_model("posterior", "smoke").fit(part)
        assert np.isfinite(model.reconstruct(split.test.fmri)).all()
    with pytest.raises(ModelError, match="estimate"):
        make_model("posterior", estimate="median").fit(split.train)


def test_morph_of_one_class_stays_in_it(split):
    _, parents = interpolate_shapes(split.train.images, 40, split.train.labels)
    assert all(len(set(split.train.labels[p])) == 1 for p in parents)


@pytest.mark.parametrize("voxels", [300, 37])
def test_a_file_without_test_images_through_the_command_line(digit69, tmp_path, split, voxels):
    fewer = lambda part: replace(part, fmri=part.fmri[:, :voxels])
    data = write_split(replace(split, train=fewer(split.train), test=fewer(split.test).blind()), tmp_path / "blind.mat")
    done = digit69("train", "--data", data, "--model", "posterior", "--preset", "smoke", "--out", tmp_path / "m")
    assert done.returncode == 0, done.stderr
    done = digit69("reconstruct", "--model", tmp_path / "m", "--data", data, "--out", tmp_path / "r.npz", "--samples", 3)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "r.npz") as z:
        assert z["reconstructions"].shape == (12, 28, 28) and z["samples"].shape == (12, 3, 28, 28)


def test_draws_are_as_warm_as_the_energy_score_asks(split, fitted):
    exponent, strength, temperature, warm = fitted.choice_
    assert np.isclose(fitted.warmth_ * temperature, warm)
    colder = copy.copy(fitted)
    colder.warmth_ = fitted.warmth_ / 4
    assert colder.uncertainty(split.test.fmri).mean() < fitted.uncertainty(split.test.fmri).mean()
    assert np.array_equal(colder.reconstruct(split.test.fmri), fitted.reconstruct(split.test.fmri))      # point estimates have a temperature of their own


def test_barred_candidates_get_no_weight(split, fitted):
    barred = np.arange(len(fitted.latents_)) % 2 == 0
    weights = posterior_weights(fitted.given, fitted.given.sufficient_statistics(split.test.fmri), fitted.latents_, 6., barred)
    assert (weights[:, barred] == 0).all() and np.allclose(weights.sum(1), 1, atol=1e-4)
    picked = sample_indices(weights, 40, 0)
    assert not barred[picked].any()
    counts = np.stack([np.bincount(row, minlength=len(barred)) for row in picked])
    assert (np.abs(counts - 40 * weights) < 1 + 1e-3).all()                                               # stratified: to within one
