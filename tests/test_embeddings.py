"""Encoding model, simulator and embeddings: who may learn from whom, with any data that can be read."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from digit69.core import DataError, ModelError, set_quiet
from digit69.data import BrainDataset
from digit69.embeddings import EmbeddingPipeline, fit_embedding_pipeline
from digit69.encoders import EMBEDDING_PRESETS, EmbeddingConfig
from digit69.encoding import EncodingModel, VoxelSimulator
from digit69.likelihood_pipeline import LikelihoodConfig
from digit69.readers import read_split
from digit69.receptive_fields import EncodingConfig, ReceptiveFieldRidge
from digit69.retrieval import retrieval_scores, retrieval_table
from digit69.simulation import simulate
from digit69.splits import stimulus_groups
from digit69.training import TrainingConfig

set_quiet()
SMOKE = EMBEDDING_PRESETS["smoke"]
SHORT = EmbeddingConfig(
    image_training=TrainingConfig(steps=40, batch=64, lr=2e-3),
    fmri_training=TrainingConfig(steps=100, batch=128, lr=3e-3),
    likelihood=LikelihoodConfig(n_candidates=3000, exponents=(0.15,), voxel_counts=(200,)),
    n_views=1024,
    n_targets=3000,
)


@pytest.fixture(scope="module")
def split():
    return simulate(24, 6, 80)


@pytest.fixture(scope="module")
def pipeline(split):
    return EmbeddingPipeline(SMOKE).fit(split.train)


def same_weights(a, b):
    return all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))


def same_directions(a, b):
    """Whether two likelihoods weigh voxels alike, but for the scale of each number that they read."""
    first, second = (
        weights / (np.linalg.norm(weights, axis=0) + 1e-30)
        for weights in (a.evidence_weights, b.evidence_weights)
    )
    return np.allclose(first, second, atol=1e-5)


# --- the encoding model ------------------------------------------------------------------------------------


def test_a_row_never_influences_its_own_left_out_prediction():
    random = np.random.default_rng(0)
    features = random.normal(size=(12, 4))
    responses = random.normal(size=(12, 3))
    stimuli = np.arange(12) // 2  # each stimulus twice: its repeat must not answer for it either
    ridge = ReceptiveFieldRidge(features[stimuli * 2], np.ones((1, 4)), (1.0,), stimuli)
    changed = responses.copy()
    changed[4:6] += 50
    before = responses - ridge.fit(responses).loo_residuals
    after = changed - ridge.fit(changed).loo_residuals
    np.testing.assert_allclose(before[4:6], after[4:6], atol=1e-7)


def test_the_encoding_model_explains_held_out_rows():
    data = simulate(90, 20, 200)
    model = EncodingModel(EncodingConfig(n_selected=40)).fit(data.train)
    measured = model.standardize(data.test.fmri)
    errors = measured - model.predict(data.test.images)
    assert (errors**2).sum() < 0.9 * (measured**2).sum()


def test_simulated_noise_has_the_measured_variance(split):
    model = EncodingModel(EncodingConfig()).fit(split.train)
    simulator = VoxelSimulator(model, split.test.images[:1])
    rows = simulator(torch.zeros(4000, dtype=torch.long), 1.0, torch.Generator().manual_seed(0))
    np.testing.assert_allclose(rows.std(0), model.residuals_.std(0), rtol=0.1)


def test_units_of_the_scanner_do_not_matter(split):
    rescaled = BrainDataset(split.train.fmri * 7 + 3, split.train.images)
    a = EncodingModel(EncodingConfig()).fit(split.train)
    b = EncodingModel(EncodingConfig()).fit(rescaled)
    np.testing.assert_allclose(a.r2_, b.r2_, atol=1e-3)
    rows = split.test.fmri
    np.testing.assert_allclose(a.standardize(rows), b.standardize(rows * 7 + 3), atol=1e-3)


# --- the embedding pipeline --------------------------------------------------------------------------------


def test_a_row_never_influences_the_likelihood_that_reads_it(split, pipeline):
    """The calibration, which all left-out rows share, scales what it reads and changes nothing else."""
    images = split.train.images.copy()
    images[3] = 1 - images[3]
    fmri = split.train.fmri.copy()
    fmri[3] = -50.0
    nonsense = replace(split.train, images=images, fmri=fmri)
    changed = EmbeddingPipeline(SMOKE).fit(nonsense, pipeline.image_encoder_)
    for (before, left_out), (after, _) in zip(pipeline.folds_, changed.folds_):
        assert same_directions(before, after) == (3 in left_out)
    assert not same_weights(pipeline.encoder_, changed.encoder_)


def test_real_and_simulated_rows_are_embedded_alike():
    """Left-out rows lie as near to their images as simulated ones do; self-seen rows lie nearer."""
    train = simulate(90, 2, 400, seed=1).train
    fitted = EmbeddingPipeline(SHORT).fit(train)
    generator = torch.Generator().manual_seed(0)
    simulated, images = fitted.sample_batch(1000, generator, measured_fraction=0)
    own = fitted.embed_images(train.images)
    cross_fitted = (fitted.cross_fitted_ * own).sum(1).mean()
    self_seen = (fitted.embed(train.fmri) * own).sum(1).mean()
    of_simulated = (simulated.numpy() * fitted.embed_images(images.numpy())).sum(1).mean()
    assert abs(cross_fitted - of_simulated) < 0.1
    assert self_seen > max(cross_fitted, of_simulated)


def test_embedding_one_row_does_not_depend_on_the_others(split, pipeline):
    together = pipeline.embed(split.test.fmri)
    alone = pipeline.embed(split.test.fmri[2:3])
    np.testing.assert_allclose(together[2:3], alone, atol=1e-5)


def test_the_same_seed_gives_the_same_embeddings(split, pipeline):
    again = EmbeddingPipeline(SMOKE).fit(split.train)
    other = EmbeddingPipeline(SMOKE, seed=1).fit(split.train)
    np.testing.assert_array_equal(again.cross_fitted_, pipeline.cross_fitted_)
    np.testing.assert_array_equal(again.embed(split.test.fmri), pipeline.embed(split.test.fmri))
    assert not np.array_equal(other.cross_fitted_, pipeline.cross_fitted_)


def test_excluded_stimuli_never_occur_in_a_batch(split, pipeline):
    excluded = [0, 5, 9]
    generator = torch.Generator().manual_seed(0)
    embeddings, images = pipeline.sample_batch(
        400, generator, measured_fraction=0.5, exclude_rows=excluded
    )
    made_from_them = np.isin(pipeline.augmented_stimuli_, excluded).any(1)
    augmented = pipeline.augmented_images_[made_from_them] / np.float32(255)
    assert len(augmented)
    forbidden = {image.tobytes() for image in (*split.train.images[excluded], *augmented)}
    assert not forbidden & {image.numpy().tobytes() for image in images}
    assert embeddings.shape == (400, 512)
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(400), atol=1e-4)
    with pytest.raises(ModelError, match="nothing left"):
        pipeline.sample_batch(4, torch.Generator(), exclude_rows=np.arange(24))


def test_the_stimuli_of_a_batch_are_those_of_its_images(split, pipeline):
    generator = torch.Generator().manual_seed(0)
    _, images, stimuli = pipeline.sample_batch(
        50, generator, measured_fraction=1.0, return_stimuli=True
    )
    np.testing.assert_array_equal(images, split.train.images[stimuli])


def test_a_saved_pipeline_embeds_the_same(split, pipeline):
    again = EmbeddingPipeline.from_state(
        {name: np.array(array) for name, array in pipeline.state().items()}
    )
    np.testing.assert_array_equal(again.embed(split.test.fmri), pipeline.embed(split.test.fmri))
    np.testing.assert_array_equal(
        again.embed_images(split.test.images), pipeline.embed_images(split.test.images)
    )
    np.testing.assert_array_equal(
        again.original_fmri(split.test.fmri), pipeline.original_fmri(split.test.fmri)
    )


def test_the_pipeline_is_fitted_once_per_train_set(split):
    assert fit_embedding_pipeline(split.train, "smoke") is fit_embedding_pipeline(
        split.train, "smoke"
    )
    with pytest.raises(ModelError, match="choose smoke, quick, full"):
        fit_embedding_pipeline(split.train, "turbo")


ODD_DATA = {
    "no labels": lambda data: replace(data, labels=None),
    "ten rows": lambda data: data.rows(np.r_[:5, -5:0]),
    "one voxel": lambda data: BrainDataset(data.fmri[:, :1], data.images),
    "repeats": lambda data: data.rows(np.arange(24) // 3),
    "dead voxels": lambda data: BrainDataset(np.zeros_like(data.fmri), data.images, data.labels),
}


@pytest.mark.parametrize("change", ODD_DATA.values(), ids=ODD_DATA.keys())
def test_any_data_that_can_be_read_is_embedded(split, pipeline, change):
    data = change(split.train)
    fitted = EmbeddingPipeline(SMOKE).fit(data)
    assert np.isfinite(fitted.cross_fitted_).all()
    assert np.isfinite(fitted.embed(data.fmri)).all()
    assert np.isfinite(fitted.original_fmri(data.fmri)).all()


def test_too_few_stimuli_and_missing_images_are_refused(split):
    with pytest.raises(DataError, match="four different stimuli"):
        EmbeddingPipeline(SMOKE).fit(split.train.rows(np.arange(24) % 3))
    with pytest.raises(DataError, match="needs images"):
        EmbeddingPipeline(SMOKE).fit(split.train.blind())


def test_repeats_of_a_stimulus_stay_together(miyawaki_file):
    train = read_split(miyawaki_file).train
    fitted = EmbeddingPipeline(SMOKE).fit(train)
    stimuli = stimulus_groups(train.images)
    assert sum(len(left_out) for _, left_out in fitted.folds_) == train.n
    for _, left_out in fitted.folds_:
        learnt_from = np.delete(stimuli, left_out)
        assert not np.isin(stimuli[left_out], learnt_from).any()
    assert fitted.embed(train.fmri).shape == (train.n, 512)


# --- retrieval ---------------------------------------------------------------------------------------------


def test_retrieval_of_noise_is_at_chance_and_of_the_truth_perfect():
    noise, other_noise = np.random.default_rng(0).normal(size=(2, 300, 64))
    scores = retrieval_scores(noise, other_noise, n_candidates=10)
    for entry in retrieval_table(scores, 10).values():
        assert abs(entry["mean"] - entry["chance"]) < 0.06
    unit = noise / np.linalg.norm(noise, axis=1, keepdims=True)
    assert min(values.min() for values in retrieval_scores(unit, unit).values()) == 1
