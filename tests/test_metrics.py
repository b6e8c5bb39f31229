"""Metrics agree with an independent scorer, and a metric from outside is treated as the package's own."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from digit69.core import DataError
from digit69.manifest import checkout
from digit69.metrics import METRICS, Metric, compute_metrics, register_metric, summarize
from digit69.models.registry import make_model
from digit69.plots import metric_panels
from digit69.readers import read_split, write_split
from digit69.simulation import simulate

SCORER = (checkout() or Path.cwd()).parent / "shared" / "tools" / "score.py"
COMPARED = {"mse", "pcc", "ssim", "psnr", "identification", "within_class_identification", "top1"}


# ---- the independent scorer


def independent_scores(data_file, recon, folder):
    """What the independent scorer says of reconstructions; a skip where it is not at hand."""
    if not SCORER.is_file():
        pytest.skip("the independent scorer is not in ../shared/tools")
    recon_file = folder / "recon.npz"
    np.savez(recon_file, reconstructions=recon)
    command = [sys.executable, SCORER, data_file, recon_file]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def assert_agreement(data_file, recon, folder):
    """Both scorers agree to four decimals on every metric that both know."""
    independent = independent_scores(data_file, recon, folder)
    assert set(independent) >= COMPARED
    test = read_split(data_file).test
    summary = summarize(compute_metrics(recon, test.images, test.labels), labels=test.labels)
    for name in METRICS.keys() & independent.keys():
        assert summary[name]["mean"] == pytest.approx(independent[name], abs=5.1e-5), name


@pytest.mark.parametrize("model", ["mean", "class_mean", "ridge"])
def test_agrees_with_the_independent_scorer_on_real_digits(digits_file, model, tmp_path):
    split = read_split(digits_file)
    recon = make_model(model).fit(split.train).reconstruct(split.test.fmri)
    assert_agreement(digits_file, recon, tmp_path)


def test_agrees_on_unbalanced_classes_and_noise(tmp_path):
    split = simulate(n_train=20, n_test=7, n_voxels=50)
    data_file = write_split(split, tmp_path / "sim.mat")
    noise = np.random.default_rng(0).random((7, 28, 28))
    assert_agreement(data_file, noise, tmp_path)


# ---- metrics from outside the package


def worst_pixel(recon, target):
    """The largest error of each image: less is better."""
    return np.abs(recon - target).max((1, 2))


def brightness_match(recon, target):
    """1 where the mean grey level is right: more is better."""
    return 1 - np.abs(recon.mean((1, 2)) - target.mean((1, 2)))


def rank_among_stimuli(recon, stimuli, shown, labels):
    """How many stimuli there were to choose from, as a stand-in for a rank metric."""
    return np.full(len(recon), float(len(stimuli)))


@pytest.fixture
def guests():
    """Three metrics registered from here, taken out again afterwards."""
    metrics = [
        Metric("worst_pixel", "worst pixel", worst_pixel, higher_is_better=False),
        Metric(
            "brightness_match",
            "brightness",
            brightness_match,
            higher_is_better=True,
            headline=True,
        ),
        Metric("n_stimuli", "candidates", rank_among_stimuli, higher_is_better=True, ranks=True),
    ]
    for metric in metrics:
        register_metric(metric)
    yield metrics
    for metric in metrics:
        del METRICS[metric.name]


@pytest.fixture
def images():
    random = np.random.default_rng(0)
    return random.random((4, 28, 28)), random.random((4, 28, 28))


def test_a_metric_from_outside_is_computed_and_summarised_with_the_others(guests, images):
    recon, target = images
    values = compute_metrics(recon, target)
    np.testing.assert_array_equal(values["worst_pixel"], worst_pixel(recon, target))
    assert list(values) == list(METRICS)
    summary = summarize(values)
    for guest in guests:
        assert (
            summary[guest.name]["lo"] <= summary[guest.name]["mean"] <= summary[guest.name]["hi"]
        )


def test_a_rank_metric_from_outside_sees_all_stimuli(guests, images):
    recon, target = images
    among_more = np.concatenate([target, target[:, ::-1]])
    values = compute_metrics(recon, target, stimuli=among_more, shown=np.arange(4))
    assert set(values["n_stimuli"]) == {8.0}


def test_figures_show_a_metric_from_outside_with_its_direction(guests, images):
    summary = summarize(compute_metrics(*images))
    titles = [ax.get_title(loc="left") for ax in metric_panels({"a model": summary}).axes]
    assert "worst pixel (lower is better)" in titles
    assert titles.index("brightness") < titles.index("top-1")  # headlines come first
    assert "identification within class" not in titles  # there are no labels


def test_a_figure_of_scores_from_before_a_metric_was_registered_can_still_be_drawn(guests):
    old_scores = {"pcc": {"mean": 0.7, "lo": 0.6, "hi": 0.8}}
    new_scores = {**old_scores, "worst_pixel": {"mean": 0.9, "lo": 0.8, "hi": 1.0}}
    figure = metric_panels({"old": old_scores, "new": new_scores})
    assert len([ax for ax in figure.axes if ax.get_visible()]) == 2


def test_a_name_is_registered_once(guests):
    with pytest.raises(DataError, match="already a metric named 'worst_pixel'"):
        register_metric(guests[0])
