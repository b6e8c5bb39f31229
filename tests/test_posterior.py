"""The posterior: honest inside, and the same through the command line, on files without images."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest

from digit69.augmentation import interpolate_shapes
from digit69.candidates import (
    draw_candidates,
    posterior_weights,
    sample_indices,
)
from digit69.core import ModelError
from digit69.data import BrainDataset
from digit69.models.base import Reconstructor
from digit69.models.registry import make_model
from digit69.pixel_metrics import pcc
from digit69.prior import StimulusPrior
from digit69.prior_selection import (
    cross_validate_prior,
    fit_inner_likelihoods,
)
from digit69.readers import write_split
from digit69.receptive_fields import EncodingConfig
from digit69.simulation import simulate

LIGHT = {
    "n_candidates": 2000,
    "exponents": (0.15,),
    "augmentation_strengths": (1.0,),
    "voxel_counts": (100, 200),
    "n_samples": 16,
    "ascent_steps": 10,
    "decoder_steps": 40,
    "decoder_width": 128,
    "n_splits": 3,
}


@pytest.fixture(scope="module")
def split():
    return simulate(60, 12, 300, seed=3)


@pytest.fixture(scope="module")
def fitted(split):
    return make_model("posterior", **LIGHT).fit(split.train)


def mean_pcc(model, test):
    return pcc(model.reconstruct(test.fmri), test.images).mean()


# --- what it can do ----------------------------------------------------------------------------------------


def test_it_beats_ridge_on_a_simulated_subject(split, fitted):
    assert mean_pcc(fitted, split.test) > mean_pcc(
        make_model("ridge").fit(split.train), split.test
    )


def test_the_posterior_mean_has_less_squared_error_than_the_map_estimate(split, fitted):
    estimates = fitted.estimates(split.test.fmri)
    error = {
        kind: ((images - split.test.images) ** 2).mean() for kind, images in estimates.items()
    }
    assert error["mean"] < error["map"]
    assert all(images.shape == (12, 28, 28) for images in estimates.values())
    assert all(images.dtype == np.float32 for images in estimates.values())


def test_rows_without_information_give_back_the_prior(split, fitted):
    average_row = split.train.fmri.mean(0)[None]
    assert fitted.uncertainty(average_row).mean() > fitted.uncertainty(split.test.fmri).mean()


def test_a_noisier_row_is_answered_less_surely(split, fitted):
    noise = np.random.default_rng(0).normal(size=split.test.fmri.shape) * split.train.fmri.std(0)
    rows = [(split.test.fmri + level * noise).astype(np.float32) for level in (0, 1, 3)]
    clean, noisy, noisiest = (fitted.uncertainty(row).mean() for row in rows)
    assert clean < noisy < noisiest


def test_wider_intervals_hold_narrower_ones(split, fitted):
    lo, hi = fitted.intervals(split.test.fmri, 0.5)
    lower, higher = fitted.intervals(split.test.fmri, 0.9)
    assert (lower <= lo).all()
    assert (hi <= higher).all()
    assert (hi - lo).mean() < (higher - lower).mean()


def test_samples_have_a_temperature_of_their_own(split, fitted):
    selected = fitted.selected_params_
    assert np.isclose(
        fitted.sample_temperature_ratio_ * selected.temperature, selected.sample_temperature
    )
    colder = copy.copy(fitted)
    colder.sample_temperature_ratio_ = fitted.sample_temperature_ratio_ / 4
    rows = split.test.fmri
    assert colder.uncertainty(rows).mean() < fitted.uncertainty(rows).mean()
    assert np.array_equal(colder.reconstruct(rows), fitted.reconstruct(rows))


# --- honesty -----------------------------------------------------------------------------------------------


def best_inner_pcc(split, inner, candidates):
    scores = cross_validate_prior(split.train, {1.0: candidates}, inner)
    return max(score.pcc for score in scores.values())


def test_selection_never_sees_candidates_of_left_out_stimuli(split):
    prior = StimulusPrior(split.train, strength=1.0)
    candidates = draw_candidates(prior, 300, EncodingConfig())
    inner = fit_inner_likelihoods(split.train, EncodingConfig(n_selected=100), (100,), n_splits=4)
    left_out = np.concatenate([fold.validation_idx for fold in inner])
    assert sorted(left_out) == list(range(split.train.n))
    wrong_parents = np.repeat(
        np.arange(300)[:, None] % 9, 3, 1
    )  # hardly any candidate is excluded
    honest = best_inner_pcc(split, inner, candidates)
    leaky = best_inner_pcc(split, inner, replace(candidates, parents=wrong_parents))
    assert leaky > honest + 0.02  # the stimulus itself is among the candidates


def test_excluded_candidates_get_no_weight_and_are_not_drawn(split, fitted):
    excluded = np.arange(len(fitted.candidate_latents_)) % 2 == 0
    likelihood = fitted.likelihood_
    statistics = likelihood.sufficient_statistics(split.test.fmri)
    weights = posterior_weights(likelihood, statistics, fitted.candidate_latents_, 6.0, excluded)
    assert (weights[:, excluded] == 0).all()
    assert np.allclose(weights.sum(1), 1, atol=1e-4)
    drawn = sample_indices(weights, 40)
    assert not excluded[drawn].any()
    counts = np.stack([np.bincount(row, minlength=len(excluded)) for row in drawn])
    assert (np.abs(counts - 40 * weights) < 1 + 1e-3).all()  # systematic: to within one


def test_shuffled_pairs_decode_nothing(split):
    order = np.random.default_rng(0).permutation(split.train.n)
    shuffled = BrainDataset(split.train.fmri[order], split.train.images, split.train.labels)
    wrong = make_model("posterior", **LIGHT).fit(shuffled)
    mean = make_model("mean").fit(split.train)
    assert mean_pcc(wrong, split.test) < mean_pcc(mean, split.test) + 0.05


def test_images_between_stimuli_of_one_class_stay_in_it(split):
    _, parents = interpolate_shapes(split.train.images, 40, split.train.labels)
    labels = split.train.labels[parents]
    assert (labels == labels[:, :1]).all()


# --- files -------------------------------------------------------------------------------------------------


def test_a_saved_model_answers_the_same(split, fitted, tmp_path):
    restored = Reconstructor.load(fitted.save(tmp_path))
    rows = split.test.fmri
    assert np.array_equal(restored.reconstruct(rows), fitted.reconstruct(rows))
    assert np.array_equal(restored.sample(rows, 4, 1), fitted.sample(rows, 4, 1))


@pytest.mark.parametrize("fact", ["median_noise_level", "sample_temperature_ratio_"])
def test_a_folder_that_lacks_a_fact_is_refused_in_one_line(fitted, tmp_path, fact):
    folder = fitted.save(tmp_path)
    card = json.loads((folder / "model.json").read_text())
    del card["facts"][fact]
    (folder / "model.json").write_text(json.dumps(card))
    with pytest.raises(ModelError, match="train the model again"):
        Reconstructor.load(folder)


def fits_and_answers(train, test):
    model = make_model("posterior", "smoke").fit(train)
    return np.isfinite(model.reconstruct(test.fmri)).all()


def test_constant_voxels_few_rows_repeats_and_no_labels_are_no_obstacle(split):
    fmri = split.train.fmri.copy()
    fmri[:, :40] = 3.0
    assert fits_and_answers(BrainDataset(fmri, split.train.images), split.test)
    assert fits_and_answers(replace(split.train, labels=None).rows(np.arange(5)), split.test)
    assert fits_and_answers(split.train.rows(np.r_[0:4, 0:4]), split.test)


def test_an_unknown_estimate_is_refused(split):
    with pytest.raises(ModelError, match="estimate"):
        make_model("posterior", estimate="median").fit(split.train)


def test_a_file_with_few_voxels_and_without_test_images_through_the_command_line(
    digit69, tmp_path, split
):
    train = replace(split.train, fmri=split.train.fmri[:, :37])
    test = replace(split.test, fmri=split.test.fmri[:, :37]).blind()
    data = write_split(replace(split, train=train, test=test), tmp_path / "blind.mat")
    model, out = tmp_path / "model", tmp_path / "reconstructions.npz"
    done = digit69(
        "train", "--data", data, "--model", "posterior", "--preset", "smoke", "--out", model
    )
    assert done.returncode == 0, done.stderr
    done = digit69("reconstruct", "--model", model, "--data", data, "--out", out, "--samples", 3)
    assert done.returncode == 0, done.stderr
    with np.load(out) as arrays:
        assert arrays["reconstructions"].shape == (12, 28, 28)
        assert arrays["samples"].shape == (12, 3, 28, 28)
