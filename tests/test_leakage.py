"""Planted leaks are found; honest pipelines are not accused."""

from dataclasses import replace

import numpy as np
import pytest

from digit69 import embeddings
from digit69.core import DataError, ModelError, set_quiet, set_threads
from digit69.crossval import cross_validate
from digit69.data import BrainDataset, Split
from digit69.embeddings import EmbeddingPipeline
from digit69.encoders import EMBEDDING_PRESETS
from digit69.leaks import detect_leakage
from digit69.models.base import Reconstructor
from digit69.models.registry import MODELS, make_model, register
from digit69.outside_images import deduplicate
from digit69.quality import audit
from digit69.simulation import simulate
from digit69.splits import check_train_test_overlap, kfold

set_threads(1)
set_quiet()


@pytest.fixture(scope="module")
def data():
    return simulate(40, 10, 120, seed=1).pooled()


@pytest.fixture(scope="module")
def split(data):
    return kfold(data, 5)[0]


@pytest.fixture(scope="module")
def posterior(split):
    return make_model("posterior", "smoke").fit(split.train)


def as_bytes(images):
    return np.round(images.reshape(len(images), -1) * 255).astype(np.uint8)


def leaks(split):
    return {finding.check for finding in audit(split).leaks}


# --- in the data --------------------------------------------------------------------------------------------


def append_rows(train, fmri, images):
    return BrainDataset(
        np.concatenate([train.fmri, fmri]), np.concatenate([train.images, images])
    )


def test_test_rows_copied_into_train_are_caught(split):
    test = replace(split.test, labels=None)
    fmri, images = split.test.fmri[:2], split.test.images[:2]
    copied = replace(split, train=append_rows(split.train, fmri, images), test=test)
    assert leaks(split) == set()
    assert leaks(copied) == {"shared stimuli", "shared voxel rows"}
    with pytest.raises(DataError, match="measures recall"):
        check_train_test_overlap(copied)


def test_copied_voxels_are_caught_even_beside_other_images(split):
    test = replace(split.test, labels=None)
    fmri, images = split.test.fmri[:2], split.train.images[:2]
    copied = replace(split, train=append_rows(split.train, fmri, images), test=test)
    assert leaks(copied) == {"shared voxel rows"}


def test_scaling_over_all_rows_before_the_folds_is_caught(data):
    fmri = data.fmri + 3 * data.fmri.std()  # as measured: not centred
    raw = replace(data, fmri=fmri)
    scaled = replace(data, fmri=(fmri - fmri.mean(0)) / fmri.std(0))
    assert leaks(kfold(raw, 5)[0]) == set()
    assert leaks(kfold(scaled, 5)[0]) == {"normalisation"}


# --- in the image prior -------------------------------------------------------------------------------------


def count_test_stimuli(candidates, test):
    return sum((candidates == stimulus).all(1).any() for stimulus in as_bytes(test.images))


def test_candidates_do_not_depend_on_test_images(split, posterior):
    mirrored = replace(split, test=replace(split.test, images=split.test.images[:, ::-1]))
    other = make_model("posterior", "smoke").fit(mirrored.train)
    assert np.array_equal(posterior.candidates_, other.candidates_)
    assert count_test_stimuli(posterior.candidates_, split.test) == 0
    cheating = np.concatenate([posterior.candidates_, as_bytes(split.test.images)])
    assert count_test_stimuli(cheating, split.test) == split.test.n  # the check can fail


def test_a_prior_that_holds_test_stimuli_is_purged_and_the_purge_is_counted(split):
    prior = np.concatenate([split.train.images, split.test.images])
    purged = deduplicate(prior, split.test.images)
    assert purged.n_exact >= split.test.n
    assert not purged.kept[split.train.n :].any()


class Cribber(Reconstructor):
    """Ridge with the images of all rows among its candidates."""

    all_images = None

    def _fit(self, train, options):
        self.ridge_ = make_model("ridge").fit(train)
        self.candidates_ = np.round(self.all_images * 255).astype(np.uint8)

    def _reconstruct(self, fmri):
        return self.ridge_.reconstruct(fmri)


@pytest.fixture
def cribber(data, monkeypatch):
    monkeypatch.setitem(MODELS, "cribber", None)  # taken out again after the test
    monkeypatch.setattr(Cribber, "all_images", data.images)
    return register("cribber", fast_params={})(Cribber)


def test_a_model_whose_prior_holds_test_stimuli_is_refused(data, tmp_path, cribber):
    metrics = cross_validate(data, ["cribber", "ridge"], tmp_path, n_splits=5)
    assert "cribber" not in metrics["models"]
    assert "its image prior holds 10 of 10 test stimuli" in metrics["skipped"]["cribber"]
    assert "ridge" in metrics["models"]


def test_an_honest_prior_is_not_accused(data, split, posterior, cribber):
    assert detect_leakage(posterior, split) == []
    recall = Split(data, data.rows([0, 1]))  # a stimulus that is in train too is another matter
    assert detect_leakage(cribber().fit(data), recall) == []


# --- in embeddings ------------------------------------------------------------------------------------------


def test_a_model_on_embeddings_that_are_not_cross_fitted_is_refused(data, tmp_path, monkeypatch):
    where = {"n_splits": 2, "preset": "smoke"}
    honest = cross_validate(data, ["regression"], tmp_path / "honest", **where)
    assert "regression" in honest["models"]
    fit = EmbeddingPipeline.fit

    def cheat(self, train, *more, **options):
        fit(self, train, *more, **options)
        self.cross_fitted_ = self.embed(train.fmri)  # by the encoder that learnt from these rows
        return self

    monkeypatch.setattr(EmbeddingPipeline, "fit", cheat)
    monkeypatch.setattr(embeddings, "_fitted", type(embeddings._fitted)("embeddings"))
    with pytest.raises(ModelError, match="they are not cross-fitted"):
        cross_validate(data, ["regression"], tmp_path / "cheat", **where)


def test_the_likelihood_that_reads_a_row_has_not_learnt_from_it(split):
    """Changing a row moves the likelihood that learnt from it, not the one that reads it in training.

    Only the calibration, which all left-out rows share, rescales what that one reads."""
    train, row = split.train, 3
    fmri, images = train.fmri.copy(), train.images.copy()
    fmri[row] += 5 * train.fmri.std(0)
    images[row] = images[row].T
    before = EmbeddingPipeline(EMBEDDING_PRESETS["smoke"]).fit(train)
    changed = replace(train, fmri=fmri, images=images)
    after = EmbeddingPipeline(EMBEDDING_PRESETS["smoke"]).fit(changed, before.image_encoder_)

    def directions(weights):
        return weights / (np.linalg.norm(weights, axis=0) + 1e-30)

    def weights_that_read_the_row(pipeline):
        likelihood = next(likelihood for likelihood, rows in pipeline.folds_ if row in rows)
        return directions(likelihood.evidence_weights)

    def weights_of_all_rows(pipeline):
        return directions(pipeline.encoder_.evidence_weights.numpy())

    def distance(weights):
        return np.abs(weights(before) - weights(after)).max()

    assert distance(weights_that_read_the_row) < 1e-5
    assert before.encoder_.voxels.tolist() == after.encoder_.voxels.tolist()
    assert distance(weights_of_all_rows) > 1e-2


def test_a_row_never_influences_its_own_reconstruction(data, tmp_path):
    images = data.images.copy()
    images[7] = images[7].T
    changed = replace(data, images=images)
    for run, rows in {"a": data, "b": changed}.items():
        cross_validate(rows, ["ridge", "posterior"], tmp_path / run, n_splits=2, preset="smoke")
    for model in ("ridge", "posterior"):
        files = [tmp_path / run / "reconstructions" / f"{model}.npz" for run in "ab"]
        before, after = (np.load(file)["reconstructions"] for file in files)
        np.testing.assert_allclose(before[7], after[7], atol=1e-5)
        assert not np.allclose(before, after)
