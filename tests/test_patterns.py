"""Patterns of blocks, and any third subject, are decoded by the same code as digits."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from digit69.augmentation import augment
from digit69.crossval import cross_validate
from digit69.data import Split
from digit69.evaluation import fit_and_reconstruct
from digit69.leaks import detect_leakage
from digit69.metrics import binary_metrics
from digit69.models.base import load_model
from digit69.models.pattern_generator import binary_pattern
from digit69.models.registry import available_models, get_model_spec, make_model
from digit69.patterns import detect_block_patterns, random_block_figures, render_blocks
from digit69.pixel_metrics import pcc
from digit69.prior import sample_prior
from digit69.readers import read_split
from digit69.runs import load_run
from digit69.simulation import simulate
from digit69.splits import default_protocol, leave_stimulus_out, stimulus_ids


@pytest.fixture(scope="module")
def patterns():
    """A simulated person who looked at random figures of blocks."""
    return simulate(64, 8, 150, stimuli="patterns")


@pytest.fixture(scope="module")
def posterior(patterns):
    """A posterior model that was fitted without an exclusion list."""
    return make_model("posterior", "smoke").fit(patterns.train)


def candidate_images(model):
    """The candidates of a fitted posterior as images (M,28,28) in [0,1]."""
    return model.candidates_.reshape(-1, 28, 28) / np.float32(255)


# --- stimuli -----------------------------------------------------------------------------------------------


def test_the_published_patterns_are_blocks_and_read_as_letters(miyawaki_file):
    images = read_split(miyawaki_file).train.images
    blocks = detect_block_patterns(images)
    assert np.abs(render_blocks(blocks) - images).max() < 0.01
    different = blocks[np.unique(stimulus_ids(images), return_index=True)[1]]
    letter_u = np.zeros((10, 10), bool)
    letter_u[2:8, 2:4] = True
    letter_u[2:8, 6:8] = True
    letter_u[6:8, 2:8] = True
    upright = (different == letter_u).all((1, 2)).sum()
    upside_down = (different == letter_u[::-1]).all((1, 2)).sum()
    assert upright == 1
    assert upside_down <= 1


def test_variations_of_patterns_are_patterns(patterns):
    varied, _ = augment(patterns.train.images, 200, 1.0, 1)
    assert detect_block_patterns(varied) is not None


def test_handwriting_and_its_variations_are_no_patterns(digits_file):
    digits = read_split(digits_file).train.images
    assert detect_block_patterns(digits) is None
    assert detect_block_patterns(sample_prior(digits, 50)[0]) is None


def test_random_figures_know_no_letters():
    """Every figure of up to 3 x 3 cells is as likely as its mirror images: no letter is preferred."""
    figures = random_block_figures(20_000, 3)
    mean = figures.mean(0)
    assert np.abs(mean - mean[::-1]).max() < 0.04
    assert np.abs(mean - mean.T).max() < 0.04
    counts = Counter(figure.tobytes() for figure in figures)
    assert max(counts.values()) < 0.03 * len(figures)


# --- models ------------------------------------------------------------------------------------------------


def test_what_a_model_imagines_depends_on_its_train_rows_alone(patterns, posterior):
    again = make_model("posterior", "smoke").fit(patterns.train)
    assert np.array_equal(again.candidates_, posterior.candidates_)
    assert detect_block_patterns(candidate_images(posterior)) is not None


@pytest.mark.parametrize("name", available_models())
def test_every_model_learns_patterns_unchanged(name, patterns, tmp_path):
    if "labels" in get_model_spec(name).estimator.needs:
        pytest.skip("needs classes, which patterns do not have")
    model = make_model(name, "smoke").fit(patterns.train)
    images = model.reconstruct(patterns.test.fmri)
    assert images.shape == (8, 28, 28)
    assert np.isfinite(images).all()
    loaded = load_model(model.save(tmp_path / name))
    assert np.allclose(loaded.reconstruct(patterns.test.fmri), images, atol=1e-5)


def test_binary_patterns_of_two_stage_beat_a_cut_at_half(miyawaki_file):
    """Threshold and calibration are worth something on stimuli that neither was learnt on."""
    fold = leave_stimulus_out(read_split(miyawaki_file).pooled(), 5)[0]
    model = make_model("two_stage", "smoke").fit(fold.train)
    truth = binary_pattern(fold.test.images, model.size_).numpy() > 0.5

    def dice(predicted):
        overlap = (predicted & truth).sum((1, 2))
        return (2 * overlap / (predicted.sum((1, 2)) + truth.sum((1, 2)))).mean()

    learnt = dice(model.patterns(fold.test.fmri))
    cut_at_half = dice(model.local_decoders_.decode_blocks(fold.test.fmri) > 0.5)
    assert model.size_ == 10
    assert learnt > cut_at_half - 0.02
    assert learnt > 0.6


def test_copies_of_left_out_patterns_that_chance_makes_are_taken_out_and_counted(
    patterns, posterior
):
    known = {image.tobytes() for image in patterns.train.images}
    imagined = render_blocks(detect_block_patterns(candidate_images(posterior)))
    met_by_chance = np.array([image for image in imagined if image.tobytes() not in known])[:8]
    test = replace(
        patterns.test, fmri=patterns.test.fmri[: len(met_by_chance)], images=met_by_chance
    )
    split = Split(patterns.train, test)
    assert "image prior holds" in detect_leakage(posterior, split)[0]
    result = fit_and_reconstruct("posterior", split, "smoke")
    assert detect_leakage(result.model, split) == []
    assert result.n_replaced > 0


# --- protocols ---------------------------------------------------------------------------------------------


def test_stimuli_are_left_out_where_they_repeat(patterns, tmp_path):
    data = patterns.pooled()
    protocol = default_protocol(data)
    assert protocol == "leave-stimulus-out"
    cross_validate(data, ["fixed_bases"], tmp_path, protocol, n_splits=4)
    run = load_run(tmp_path)
    assert run.metrics["data"]["protocol"] == "leave-stimulus-out, 4 folds over 18 stimuli"
    scores = binary_metrics(run.reconstructions["fixed_bases"], run.targets)
    assert all(np.isfinite(values).all() for values in scores.values())


def test_copying_wins_the_published_split(miyawaki_file):
    """All twelve test images occur in train: whoever recalls them perfectly scores 1."""
    split = read_split(miyawaki_file)
    train, test = (
        images.reshape(len(images), -1) for images in (split.train.images, split.test.images)
    )
    nearest = ((test[:, None] - train[None]) ** 2).sum(2).argmin(1)
    assert pcc(split.train.images[nearest], split.test.images).min() > 0.999


def test_a_third_subject_needs_no_code(digit69, tmp_path):
    """A file without labels and without test images is decoded from the command line."""
    random = np.random.default_rng(3)
    images = random.random((40, 7, 7)).repeat(4, 1).repeat(4, 2)
    fmri = images.reshape(40, -1) @ random.normal(size=(784, 53)) + random.normal(size=(40, 53))
    file, run = tmp_path / "mine.npz", tmp_path / "run"
    np.savez(file, fmriTrn=fmri[:32], stimTrn=images[:32], fmriTest=fmri[32:])
    words = ("--data", file, "--models", "mean,ridge,fixed_bases", "--out", run, "--quiet")
    finished = digit69("run", *words)
    assert finished.returncode == 0, finished.stderr
    with np.load(run / "reconstructions" / "fixed_bases.npz") as saved:
        assert saved["reconstructions"].shape == (8, 28, 28)
    assert (run / "reports" / "evaluate.html").is_file()
