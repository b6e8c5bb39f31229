"""Miyawaki's patterns and any third subject go through the same doors as the digits."""
from dataclasses import replace

import numpy as np
import pytest

from digit69.data import Split
from digit69.splits import leave_stimulus_out, stimulus_ids
from digit69.readers import read_split
from digit69.crossval import cross_validate
from digit69.runs import load_run
from digit69.metrics import binary_metrics, pcc
from digit69.models.base import available_models, load_model, make_model
from digit69.models.pattern_generator import binary_pattern
from digit69.splits import default_protocol
from digit69.augmentation import augment
from digit69.patterns import detect_block_patterns, random_block_figures, render_blocks
from digit69.prior import sample_prior
from digit69.simulation import simulate


@pytest.fixture(scope="module")
def patterns():
    return simulate(64, 8, 150, stimuli="patterns")


def test_the_published_patterns_are_blocks_and_read_as_letters(miyawaki_file):
    images = read_split(miyawaki_file).train.images
    blocks = detect_block_patterns(images)
    assert blocks is not None and np.abs(render_blocks(blocks) - images).max() < .01
    different = blocks[np.unique(stimulus_ids(images), return_index=True)[1]]
    u = np.zeros((10, 10), bool)
    u[2:8, 2:4] = u[2:8, 6:8] = u[6:8, 2:8] = True      # open at the top: upright
    assert (different == u).all((1, 2)).sum() == 1 and not (different == u[::-1]).all((1, 2)).sum() > 1


def test_variations_of_patterns_are_patterns_and_of_digits_are_not(patterns, digits_file):
    assert detect_block_patterns(augment(patterns.train.images, 200, 1., 1)[0]) is not None
    digits = read_split(digits_file).train.images
    assert detect_block_patterns(digits) is None and detect_block_patterns(sample_prior(digits, 50)[0]) is None


def test_the_prior_never_sees_the_held_out_pattern(patterns):
    """What a model imagines depends on its train rows alone: another test set, the same candidates."""
    one, other = (make_model("posterior", "smoke").fit(patterns.train) for _ in range(2))
    assert np.array_equal(one.candidates_, other.candidates_)
    assert detect_block_patterns(one.candidates_.reshape(-1, 28, 28) / 255) is not None


def test_random_figures_know_no_letters():
    """Every figure of up to 3 x 3 cells is as likely as its mirror images: nothing in the generator prefers letters."""
    figures = random_block_figures(20_000, 3)
    mean = figures.mean(0)
    assert np.abs(mean - mean[::-1]).max() < .04 and np.abs(mean - mean.T).max() < .04
    counts = {}
    for f in figures: counts[f.tobytes()] = counts.get(f.tobytes(), 0) + 1
    assert max(counts.values()) < .03 * len(figures)


@pytest.mark.parametrize("name", available_models())
def test_every_model_learns_patterns_unchanged(name, patterns, tmp_path):
    if name == "class_mean": pytest.skip("needs classes, which patterns do not have")
    model = make_model(name, "smoke").fit(patterns.train)
    images = model.reconstruct(patterns.test.fmri)
    assert images.shape == (8, 28, 28) and np.isfinite(images).all()
    assert np.allclose(load_model(model.save(tmp_path / name)).reconstruct(patterns.test.fmri), images, atol=1e-5)


def test_binary_patterns_of_two_stage_beat_a_cut_at_half(miyawaki_file):
    """The learnt threshold and the learnt trust are worth something on stimuli that neither was learnt on."""
    cut = leave_stimulus_out(read_split(miyawaki_file).pooled(), 5)[0]
    model = make_model("two_stage", "smoke").fit(cut.train)
    truth = binary_pattern(cut.test.images, model.size_).numpy() > .5
    dice = lambda a: (2 * (a & truth).sum((1, 2)) / (a.sum((1, 2)) + truth.sum((1, 2)))).mean()
    assert model.size_ == 10 and dice(model.patterns(cut.test.fmri)) > dice(model.local_.blocks(cut.test.fmri) > .5) - .02
    assert dice(model.patterns(cut.test.fmri)) > .6


def test_stimuli_are_left_out_where_they_repeat(patterns, tmp_path):
    data = patterns.pooled()
    assert default_protocol(data) == "leave-stimulus-out"
    cross_validate(data, ["fixed_bases"], tmp_path, default_protocol(data), n_splits=4)
    run = load_run(tmp_path)
    assert run.metrics["data"]["protocol"] == "leave-stimulus-out, 4 folds over 18 stimuli"
    assert all(np.isfinite(v).all() for v in binary_metrics(run.reconstructions["fixed_bases"], run.targets).values())


def test_copying_wins_the_published_split(miyawaki_file):
    """All twelve test images occur in train: whoever recalls them perfectly scores 1."""
    split = read_split(miyawaki_file)
    flat = lambda a: a.reshape(len(a), -1)
    nearest = ((flat(split.test.images)[:, None] - flat(split.train.images)[None])**2).sum(2).argmin(1)
    assert pcc(split.train.images[nearest], split.test.images).min() > .999


def test_a_third_subject_needs_no_code(digit69, tmp_path):
    random = np.random.default_rng(3)
    images = np.clip(random.random((40, 7, 7)).repeat(4, 1).repeat(4, 2), 0, 1)
    fmri = images.reshape(40, -1) @ random.normal(size=(784, 53)) + random.normal(size=(40, 53))
    np.savez(tmp_path / "mine.npz", fmriTrn=fmri[:32], stimTrn=images[:32], fmriTest=fmri[32:])     # no labels, no test images
    done = digit69("run", "--data", tmp_path / "mine.npz", "--models", "mean,ridge,fixed_bases", "--out", tmp_path / "run", "--quiet")
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "run" / "reconstructions" / "fixed_bases.npz") as z: assert z["reconstructions"].shape == (8, 28, 28)
    assert (tmp_path / "run" / "reports" / "evaluate.html").is_file()


def test_copies_of_left_out_patterns_that_chance_makes_are_taken_out_and_counted(patterns):
    from digit69.evaluation import fit_and_reconstruct, detect_leakage
    free = make_model("posterior", "smoke").fit(patterns.train)
    asked = render_blocks(detect_block_patterns(free.candidates_.reshape(-1, 28, 28) / np.float32(255)))              # stimuli that chance did meet
    known = {i.tobytes() for i in patterns.train.images}
    new = np.array([i for i in asked if i.tobytes() not in known])[:8]
    exam = Split(patterns.train, replace(patterns.test, fmri=patterns.test.fmri[:len(new)], images=new))
    assert "image prior holds" in detect_leakage(free, exam)[0]
    model, *_ = fit_and_reconstruct("posterior", exam, "smoke")
    assert detect_leakage(model, exam) == [] and model.copies_taken_out > 0
