"""Accidents, memory and missing repeats are named; nulls, curves and importance mean what they say."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from digit69 import tasks
from digit69.attribution import haufe_patterns, linear_readout, voxel_importance
from digit69.ceilings import NO_REPEATS, memorization_index, noise_ceiling, voxel_reliability
from digit69.core import ModelError, set_quiet, set_threads
from digit69.crossval import cross_validate
from digit69.data import BrainDataset
from digit69.diagnostics import run_diagnostics
from digit69.files import read_json
from digit69.learning_curve import extrapolate, learning_curve, nested_order
from digit69.metrics import METRICS, Metric, register_metric
from digit69.model_ceiling import (
    MODEL_CEILING,
    bounded_metrics,
    ceiling_by_simulation,
    score_fold,
    score_model_ceiling,
)
from digit69.models.base import Reconstructor
from digit69.models.registry import MODELS, make_model, register
from digit69.permutation import label_permutation_test, p_value, permutation_null, permute_rows
from digit69.simulation import draw_subject, simulate, simulate_responses
from digit69.splits import leave_stimulus_out
from digit69.tasks import CheckConfig

set_threads(1)
set_quiet()


@pytest.fixture(scope="module")
def data():
    return simulate(80, 20, 120, seed=1).pooled()


@pytest.fixture(scope="module")
def noise_only(data):
    fmri = np.random.default_rng(0).normal(size=data.fmri.shape)
    return replace(data, fmri=fmri.astype(np.float32))


@pytest.fixture
def register_model(monkeypatch):
    """Register a model for one test."""

    def add(name, estimator):
        monkeypatch.setitem(MODELS, name, None)  # taken out again after the test
        register(name)(estimator)

    return add


# --- the permutation null -----------------------------------------------------------------------------------


def test_signal_beats_its_null_and_the_null_is_centred_on_chance(data, tmp_path):
    models = ["mean", "ridge", "posterior"]
    null = permutation_null(data, models, tmp_path, 4, preset="smoke")["models"]
    assert list(null) == ["ridge", "posterior"]
    for result in null.values():
        score = result["scores"]["identification"]
        assert result["permutations"] == len(score["null"]) == 4
        assert abs(score["null_mean"] - 0.5) < 0.06
    assert null["ridge"]["scores"]["pcc"]["p"] == 0.2
    assert null["posterior"]["settings"]["n_candidates"] == 2000  # the fast variant is named


def test_noise_does_not_beat_its_null(noise_only, tmp_path):
    null = permutation_null(noise_only, ["class_mean", "ridge"], tmp_path, 19)
    assert all(result["scores"]["pcc"]["p"] > 1 / 20 for result in null["models"].values())


def test_shuffling_keeps_images_with_their_classes_and_parts_them_from_voxels(data):
    shuffled = permute_rows(data, np.random.default_rng(0))
    assert np.array_equal(shuffled.images, data.images)
    assert np.array_equal(shuffled.labels, data.labels)
    origin = np.array([np.nonzero((data.fmri == row).all(1))[0][0] for row in shuffled.fmri])
    assert sorted(origin) == list(range(data.n))
    assert (origin != np.arange(data.n)).mean() > 0.8


def test_what_is_remembered_between_permutations_changes_nothing(data):
    from digit69.augmentation import augment_any, interpolate_shapes

    first, second = (permute_rows(data, np.random.default_rng(k)) for k in (1, 2))
    make_model("posterior", "smoke").fit(first)
    remembered = make_model("posterior", "smoke").fit(second).reconstruct(data.fmri[:5])
    augment_any.cache_clear()
    interpolate_shapes.cache_clear()
    fresh = make_model("posterior", "smoke").fit(second).reconstruct(data.fmri[:5])
    assert np.array_equal(remembered, fresh)


def test_a_model_can_be_left_out_of_the_null(data, tmp_path):
    null = permutation_null(data, ["class_mean", "ridge"], tmp_path, 1, leave=("ridge",))
    assert list(null["models"]) == ["class_mean"]


def test_the_null_is_the_same_with_two_jobs_or_another_batch(data, tmp_path):
    one = permutation_null(data, ["ridge"], tmp_path / "one", 4)
    assert permutation_null(data, ["ridge"], tmp_path / "two", 4, n_jobs=2, batch=3) == one


def test_the_null_resumes_and_another_seed_is_another_null(data, tmp_path, monkeypatch):
    n_computed = []
    run_parallel = tasks.run_parallel

    def count(n_jobs, calls, scheduler=None):
        n_computed.append(len(calls))
        return run_parallel(n_jobs, calls, scheduler)

    monkeypatch.setattr(tasks, "run_parallel", count)
    null = permutation_null(data, ["ridge"], tmp_path, 8)
    (tmp_path / "null" / "ridge" / "0005.json").write_text("{")
    assert permutation_null(data, ["ridge"], tmp_path, 8) == null
    assert permutation_null(data, ["ridge"], tmp_path, 8, seed=1) != null
    assert n_computed == [2, 1, 2]


def test_a_slow_model_is_examined_on_a_stated_subsample(data, tmp_path, register_model):
    class Slow(Reconstructor):
        def _fit(self, train, options):
            self.image_ = train.images.mean(0)

        def _reconstruct(self, fmri):
            return np.repeat(self.image_[None], len(fmri), 0)

    register_model("slow", Slow)
    result = permutation_null(data, ["slow"], tmp_path, 200)["models"]["slow"]
    assert result["permutations"] == 19
    assert result["rows"].startswith("the first 1 of 3 folds")


def test_p_values_count_the_truth_itself():
    assert p_value(0.9, np.zeros(199)) == 1 / 200
    assert p_value(0.01, np.ones(199), "mse") == 1 / 200
    assert p_value(0.0, np.zeros(9)) == 1


def test_a_metric_from_outside_has_a_null_and_a_learning_curve_in_its_own_direction(
    data, tmp_path, monkeypatch
):
    def missing_ink(recon, target):
        return np.maximum(target - recon, 0).sum((1, 2)) / target.sum((1, 2))

    monkeypatch.setitem(METRICS, "missing_ink", None)
    del METRICS["missing_ink"]  # put back, that is taken out, after the test
    register_metric(Metric("missing_ink", "missing ink", missing_ink, higher_is_better=False))
    null = permutation_null(data, ["ridge"], tmp_path, 4)["models"]["ridge"]["scores"][
        "missing_ink"
    ]
    assert null["p"] == 0.2 and null["observed"] < min(null["null"])
    curve = learning_curve(data, ["ridge"], tmp_path, n_repeats=1)["models"]["ridge"][
        "missing_ink"
    ]
    assert curve["measured"][-1]["mean"] < curve["measured"][0]["mean"]
    assert curve["limit"]["lo"] >= 0


def test_permuted_reconstructions_tell_the_class_from_the_trial(data):
    class_means = np.stack([data.images[data.labels == c].mean(0) for c in data.labels])
    one_group = np.zeros(data.n, int)
    assert label_permutation_test(class_means, data.images, one_group)["p"] < 0.001
    assert label_permutation_test(class_means, data.images, data.labels)["p"] == 1


def test_p_of_the_label_permutation_test_is_uniform_without_information(data):
    random = np.random.default_rng(0)
    p = []
    for seed in range(40):
        recon = random.random(data.images.shape)
        test = label_permutation_test(
            recon, data.images, data.labels, n_permutations=200, seed=seed
        )
        p.append(test["p"])
    assert 0.25 < np.mean(p) < 0.75
    assert min(p) > 0


# --- the learning curve -------------------------------------------------------------------------------------


def test_subsets_are_nested_balanced_and_keep_repeats_together(data):
    twice = data.rows(np.tile(np.arange(data.n), 2))
    order = nested_order(twice, np.random.default_rng(0))
    assert sorted(order) == list(range(2 * data.n))
    assert (np.abs(order[::2] - order[1::2]) == data.n).all()
    assert abs((twice.labels[order[:20]] == 1).sum() - 10) <= 2


def test_the_curve_of_ridge_rises_and_says_how_unsure_it_is(data, tmp_path):
    curve = learning_curve(data, ["ridge"], tmp_path, n_splits=4, n_repeats=2)["models"]["ridge"][
        "pcc"
    ]
    measured = [point["mean"] for point in curve["measured"]]
    assert measured[-1] > measured[0]
    assert curve["sizes"] == sorted(curve["sizes"])
    double, fourfold = curve["extrapolated"]
    assert abs(double["rows"] - 2 * curve["sizes"][-1]) <= 1
    assert fourfold["mean"] >= double["mean"] >= measured[-1] - 0.02
    assert fourfold["hi"] - fourfold["lo"] >= 0.9 * (double["hi"] - double["lo"])
    assert curve["limit"]["hi"] <= 1


def test_errors_fall_and_never_below_zero():
    sizes = np.array([10, 20, 40, 80])
    noise = np.random.default_rng(0).normal(0, 0.002, (1, 50))
    values = (0.02 + 0.5 / sizes)[:, None] + noise
    curve = extrapolate(sizes, values, metric="mse")
    assert 0.015 < curve["extrapolated"][0]["mean"] < curve["measured"][-1]["mean"]
    assert curve["limit"]["lo"] >= 0


# --- ceilings and memory ------------------------------------------------------------------------------------


def test_without_repeats_there_is_no_ceiling(data):
    assert noise_ceiling(data.images, data.images) == NO_REPEATS
    assert voxel_reliability(data) == NO_REPEATS


def test_with_repeats_averaging_beats_single_trials_up_to_the_ceiling(data):
    random = np.random.default_rng(0)
    shown = np.repeat(data.images[:10], 5, 0)
    noisy = np.clip(shown * 0.6 + 0.2 + 0.2 * random.normal(size=shown.shape), 0, 1)
    ceiling = noise_ceiling(noisy, shown)
    assert ceiling["stimuli"] == 10 and ceiling["repeats"] == 5
    assert ceiling["single"]["mean"] < ceiling["ceiling"]["mean"] + 0.03
    assert ceiling["averaged"]["mean"] > ceiling["single"]["mean"] + 0.1
    perfect = noise_ceiling(shown, shown)
    assert perfect["ceiling"]["mean"] == pytest.approx(1)
    assert perfect["single"]["mean"] == pytest.approx(1)
    pure_noise = BrainDataset(random.normal(size=(50, 300)), shown)
    assert abs(voxel_reliability(pure_noise)["50%"]) < 0.05


def test_repeated_stimuli_give_a_ceiling_from_out_of_fold_reconstructions(tmp_path):
    once = simulate(16, 4, 120, seed=3).pooled()
    fmri = np.repeat(once.fmri, 4, 0)
    noise = np.random.default_rng(0).normal(size=fmri.shape)
    repeated = BrainDataset(
        fmri + 0.3 * fmri.std(0) * noise, np.repeat(once.images, 4, 0), None, name="repeated"
    )
    for fold in leave_stimulus_out(repeated, 5):
        assert not set(map(bytes, fold.train.images)) & set(map(bytes, fold.test.images))
    cross_validate(repeated, ["ridge"], tmp_path, protocol="leave-stimulus-out", n_splits=5)
    ceiling = run_diagnostics(repeated, tmp_path)["noise_ceiling"]["ridge"]
    assert ceiling["stimuli"] == 20
    assert ceiling["single"]["mean"] < ceiling["ceiling"]["mean"]


@pytest.mark.parametrize("name", ["ridge", "posterior"])
def test_the_ceiling_by_simulation_is_near_the_score_of_new_responses_of_the_same_subject(name):
    """Above it, since the encoding model does not know everything, and nearer with more rows."""
    gaps = []
    for n_train in (45, 600):
        split = simulate(n_train, 40, 300, seed=0)
        model = make_model(name, "smoke").fit(split.train)
        shown = np.repeat(split.test.images, 4, axis=0)
        new_rows = simulate_responses(draw_subject(300, seed=0), shown, seed=0, name="new")
        truth = bounded_metrics(model.reconstruct(new_rows), split.test.images)["pcc"].mean()
        simulated = ceiling_by_simulation(model, split.train, split.test.images)["pcc"].mean()
        gaps.append(simulated - truth)
    assert gaps[0] > gaps[1] > -0.02
    assert gaps[1] < 0.06


def test_held_out_rows_have_no_say_in_the_ceiling_by_simulation(data):
    """Other voxels of the held-out rows change the measured score; the ceiling stays."""
    config = CheckConfig("kfold", 5)
    train = config.folds(data)[0].train
    held_out = ~(data.fmri[:, None] == train.fmri[None]).all(2).any(1)
    fmri = data.fmri.copy()
    fmri[held_out] = np.random.default_rng(0).permutation(fmri[held_out])
    shuffled = replace(data, fmri=fmri)
    found, other = (score_fold("ridge", rows, config, 0) for rows in (data, shuffled))
    assert np.array_equal(found[1]["pcc"], other[1]["pcc"])
    assert not np.array_equal(found[0]["pcc"], other[0]["pcc"])


def test_without_signal_the_ceiling_by_simulation_is_low(data, noise_only):
    config = CheckConfig("kfold", 5)
    signal, noise = (score_model_ceiling("ridge", rows, config) for rows in (data, noise_only))
    assert signal["what"] == MODEL_CEILING and signal["rows"] == data.n
    assert noise["pcc"]["ceiling"]["mean"] < signal["pcc"]["measured"]["mean"]
    assert abs(noise["pcc"]["gap"]["mean"]) < 0.1


def test_a_model_that_recalls_training_images_is_exposed(data, tmp_path, register_model):
    class NearestRow(Reconstructor):
        def _fit(self, train, options):
            self.fmri_ = train.fmri
            self.images_ = train.images

        def _reconstruct(self, fmri):
            distances = ((fmri[:, None] - self.fmri_[None]) ** 2).sum(-1)
            return self.images_[distances.argmin(1)]

    register_model("nearest_row", NearestRow)
    cross_validate(data, ["nearest_row"], tmp_path, n_splits=5)
    memory = memorization_index(pd.read_csv(tmp_path / "metrics_per_image.csv"))
    assert memory["nearest_row"]["copies"] == memory["nearest_row"]["nearer_to_train"] == 1
    assert memory["nearest_row"]["mean"] < 0.01 < 0.1 < memory["ridge"]["mean"]


# --- attribution --------------------------------------------------------------------------------------------


def test_importance_is_stable_only_where_there_is_signal(data, noise_only, tmp_path):
    signal = voxel_importance(data, ["ridge"], tmp_path / "signal")
    in_signal = signal["models"]["ridge"]
    in_noise = voxel_importance(noise_only, ["ridge"], tmp_path / "noise")["models"]["ridge"]
    assert in_signal["stability_halves"] > 0.3 > 0.2 > abs(in_noise["stability_halves"])
    assert in_noise["stability_folds"] > in_noise["stability_halves"]  # folds share rows
    assert "no voxel coordinates" in signal["note"]


def test_importance_does_not_depend_on_the_units_of_the_scanner(data):
    weights = make_model("ridge").fit(data).weights_.T
    importance = haufe_patterns(data.fmri, weights).importance
    in_other_units = haufe_patterns(data.fmri * 7 + 3, weights / 7).importance
    np.testing.assert_allclose(importance, in_other_units, atol=1e-4)
    assert (importance >= 0).all()
    assert (importance <= 1 + 1e-6).all()


def test_a_model_without_a_linear_readout_has_none():
    assert linear_readout(make_model("mean")) is None


# --- all of it ----------------------------------------------------------------------------------------------


def test_diagnostics_are_one_file_that_a_page_can_read(data, tmp_path):
    cross_validate(data, ["ridge"], tmp_path, n_splits=4)
    diagnostics = run_diagnostics(data, tmp_path)
    file = tmp_path / "rigour.json"
    assert diagnostics == read_json(file) == json.loads(file.read_text())
    assert diagnostics["noise_ceiling"] == NO_REPEATS
    assert diagnostics["calibration"] == {}
    assert diagnostics["ceilings"]["ridge"]["pcc"] > 0.8
    assert diagnostics["model_ceilings"]["ridge"]["what"] == MODEL_CEILING
    assert "mean" not in diagnostics["model_ceilings"]
    assert diagnostics["collapse"]["mean"]["ratio"] < 1


def test_an_unknown_model_has_no_fast_variant():
    with pytest.raises(ModelError):
        tasks.make_fast_variant("oracle")
