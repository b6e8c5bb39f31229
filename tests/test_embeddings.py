"Encoding model, simulator and embeddings: who may learn from whom, with any data that passes the door."
from dataclasses import replace

import numpy as np
import pytest
import torch

from digit69.core import DataError, ModelError, set_quiet
from digit69.data import BrainDataset
from digit69.readers import read_split
from digit69.encoders import EMBEDDING_PRESETS
from digit69.embeddings import EmbeddingPipeline, fit_embedding_pipeline
from digit69.splits import stimulus_groups
from digit69.retrieval import retrieval_scores, retrieval_table
from digit69.receptive_fields import EncodingConfig, ReceptiveFieldRidge
from digit69.encoding import EncodingModel, VoxelSimulator
from digit69.simulation import simulate

set_quiet()
SMOKE, LIGHT = EMBEDDING_PRESETS["smoke"], EncodingConfig()


@pytest.fixture(scope="module")
def split():
    return simulate(24, 6, 80)


@pytest.fixture(scope="module")
def stage(split):
    return EmbeddingPipeline(SMOKE).fit(split.train)


def weights(net):
    return list(net.state_dict().values())


def test_a_row_never_influences_its_own_left_out_prediction():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(12, 4)), random.normal(size=(12, 3))
    stimuli = np.arange(12) // 2                                     # each stimulus twice: its repeat must not answer for it either
    ridge, other = ReceptiveFieldRidge(x[stimuli * 2], np.ones((1, 4)), (1.,), stimuli), y.copy()
    other[4:6] += 50
    np.testing.assert_allclose((y - ridge.fit(y)[2])[4:6], (other - ridge.fit(other)[2])[4:6], atol=1e-7)


def test_the_encoding_model_explains_held_out_rows(split):
    data = simulate(90, 20, 200)
    model = EncodingModel(replace(LIGHT, voxels=40)).fit(data.train)
    truth = model.standardize(data.test.fmri)
    assert ((truth - model.predict(data.test.images)) ** 2).sum() < .9 * (truth ** 2).sum()


def test_simulated_noise_has_the_measured_variance(split):
    model = EncodingModel(LIGHT).fit(split.train)
    rows = VoxelSimulator(model, split.test.images[:1])(torch.zeros(4000, dtype=torch.long), 1., torch.Generator().manual_seed(0))
    np.testing.assert_allclose(rows.std(0), model.residuals_.std(0), rtol=.1)


def test_voxels_are_ranked_by_train_alone(split):
    twice = BrainDataset(split.train.fmri * 7 + 3, split.train.images)      # units of the scanner do not matter
    a, b = EncodingModel(LIGHT).fit(split.train), EncodingModel(LIGHT).fit(twice)
    np.testing.assert_allclose(a.r2_, b.r2_, atol=1e-3)
    np.testing.assert_allclose(a.standardize(split.test.fmri), b.standardize(split.test.fmri * 7 + 3), atol=1e-3)


def test_a_row_never_influences_the_encoder_that_embeds_it(split, stage):
    images, fmri = split.train.images.copy(), split.train.fmri.copy()
    images[3], fmri[3] = 1 - images[3], -50.
    changed = EmbeddingPipeline(SMOKE).fit(replace(split.train, images=images, fmri=fmri), stage.image_encoder_)
    for (before, out), (after, _) in zip(stage.folds_, changed.folds_):
        assert all(map(torch.equal, weights(before), weights(after))) == (3 in out)
    assert not all(map(torch.equal, weights(stage.encoder_), weights(changed.encoder_)))


def test_embedding_one_row_does_not_depend_on_the_others(split, stage):
    whole, alone = stage.embed(split.test.fmri), stage.embed(split.test.fmri[2:3])
    np.testing.assert_allclose(whole[2:3], alone, atol=1e-5)


def test_the_same_seed_gives_the_same_embeddings(split, stage):
    again, other = EmbeddingPipeline(SMOKE).fit(split.train), EmbeddingPipeline(SMOKE, 1).fit(split.train)
    np.testing.assert_array_equal(again.cross_fitted_, stage.cross_fitted_)
    np.testing.assert_array_equal(again.embed(split.test.fmri), stage.embed(split.test.fmri))
    assert not np.array_equal(other.cross_fitted_, stage.cross_fitted_)


def test_held_stimuli_are_never_drawn(split, stage):
    embeddings, images = stage.sample_batch(400, torch.Generator().manual_seed(0), measured_fraction=.5, exclude_rows=[0, 5, 9])
    forbidden = [*split.train.images[[0, 5, 9]], *stage.augmented_images_[np.isin(stage.augmented_stimuli_, [0, 5, 9])]]
    assert not {i.numpy().tobytes() for i in images} & {i.tobytes() for i in forbidden}
    assert embeddings.shape == (400, 512) and torch.allclose(embeddings.norm(dim=1), torch.ones(400), atol=1e-4)
    with pytest.raises(ModelError, match="nothing left"):
        stage.sample_batch(4, torch.Generator(), exclude_rows=np.arange(24))


def test_a_saved_stage_answers_the_same(split, stage):
    again = EmbeddingPipeline.from_state({k: np.array(v) for k, v in stage.state().items()})
    for question, x in (("embed", split.test.fmri), ("embed_images", split.test.images), ("original_fmri", split.test.fmri)):
        np.testing.assert_array_equal(getattr(again, question)(x), getattr(stage, question)(x))


def test_the_stage_is_fitted_once_per_train_set(split):
    assert fit_embedding_pipeline(split.train, "smoke") is fit_embedding_pipeline(split.train, "smoke")
    with pytest.raises(ModelError, match="choose smoke, quick, full"):
        fit_embedding_pipeline(split.train, "turbo")


@pytest.mark.parametrize("change", [lambda d: replace(d, labels=None), lambda d: d.rows(np.r_[:5, -5:0]), lambda d: BrainDataset(d.fmri[:, :1], d.images),
                                    lambda d: d.rows(np.arange(24) // 3), lambda d: BrainDataset(np.zeros_like(d.fmri), d.images, d.labels)],
                         ids=["no labels", "ten rows", "one voxel", "repeats", "dead voxels"])
def test_any_data_that_passes_the_door_is_embedded(split, change):
    data = change(split.train)
    stage = EmbeddingPipeline(SMOKE).fit(data)
    assert np.isfinite(stage.cross_fitted_).all() and np.isfinite(stage.embed(data.fmri)).all() and np.isfinite(stage.original_fmri(data.fmri)).all()


def test_what_cannot_be_learnt_from_is_refused(split):
    with pytest.raises(DataError, match="four different stimuli"):
        EmbeddingPipeline(SMOKE).fit(split.train.rows(np.arange(24) % 3))
    with pytest.raises(DataError, match="needs images"):
        EmbeddingPipeline(SMOKE).fit(split.train.blind())


def test_repeats_of_a_stimulus_stay_together(miyawaki_file):
    train = read_split(miyawaki_file).train
    stage, stimuli = EmbeddingPipeline(SMOKE).fit(train), stimulus_groups(train.images)
    for _, out in stage.folds_:
        assert not np.isin(stimuli[out], np.delete(stimuli, out)).any()
    assert stage.embed(train.fmri).shape == (train.n, 512)


def test_retrieval_of_noise_is_at_chance_and_of_truth_perfect():
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 300, 64))
    for v in retrieval_table(retrieval_scores(a, b, ways=10), 10).values():
        assert abs(v["mean"] - v["chance"]) < .06
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    assert min(v.min() for v in retrieval_scores(a, a).values()) == 1
