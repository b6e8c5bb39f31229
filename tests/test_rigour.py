"Accidents, memory and leaks are found out; honest pipelines are not accused."
import json
import threading
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from digit69 import attribution, embeddings, tasks
from digit69.core import DataError, ModelError, set_quiet, set_threads
from digit69.files import read_json
from digit69.data import BrainDataset, Split
from digit69.splits import kfold, leave_stimulus_out
from digit69.encoders import EMBEDDING_PRESETS
from digit69.embeddings import EmbeddingPipeline
from digit69.crossval import cross_validate
from digit69.evaluation import detect_leakage
from digit69.splits import check_train_test_overlap
from digit69.models.base import Reconstructor, make_model
from digit69.quality import audit
from digit69.ceilings import NO_REPEATS, memorization_index, noise_ceiling, voxel_reliability
from digit69.attribution import voxel_importance, haufe_patterns
from digit69.permutation import label_permutation_test, p_value, permutation_null, permute_rows
from digit69.diagnostics import run_diagnostics
from digit69.learning_curve import extrapolate, learning_curve, nested_order
from digit69.prior import deduplicate
from digit69.simulation import simulate

set_threads(1)
set_quiet()


@pytest.fixture(scope="module")
def data():
    return simulate(40, 10, 120, seed=1).pooled()


@pytest.fixture(scope="module")
def deaf(data):
    return replace(data, fmri=np.random.default_rng(0).normal(size=data.fmri.shape).astype(np.float32))


def leaks(split): return {f.check for f in audit(split).leaks}


# ---- planted leaks

def test_test_rows_copied_into_train_are_caught(data):
    split = kfold(data, 5)[0]
    both = replace(split, train=BrainDataset(np.concatenate([split.train.fmri, split.test.fmri[:2]]), np.concatenate([split.train.images, split.test.images[:2]])), test=replace(split.test, labels=None))
    assert leaks(split) == set()
    assert leaks(both) == {"shared stimuli", "shared voxel rows"}
    with pytest.raises(DataError, match="measures recall"): check_train_test_overlap(both)
    hidden = replace(both, train=replace(both.train, images=np.concatenate([split.train.images, split.train.images[:2]])))     # other images: only the voxels tell
    assert leaks(hidden) == {"shared voxel rows"}


def test_scaling_over_all_rows_before_the_folds_is_caught(data):
    x = data.fmri + 3 * data.fmri.std()          # as measured: not centred
    raw, scaled = replace(data, fmri=x), replace(data, fmri=(x - x.mean(0)) / x.std(0))
    assert leaks(kfold(raw, 5)[0]) == set()
    assert leaks(kfold(scaled, 5)[0]) == {"normalisation"}


def test_a_prior_that_holds_test_stimuli_is_caught(data):
    "The candidates of the posterior never come from test: swapping the test images changes none of them. A prior that does hold them is purged, and counted."
    split = kfold(data, 5)[0]
    other = replace(split, test=replace(split.test, images=split.test.images[:, ::-1]))
    a, b = (make_model("posterior", "smoke").fit(s.train) for s in (split, other))
    assert np.array_equal(a.candidates_, b.candidates_)
    with_test = np.concatenate([split.train.images, split.test.images])
    found = deduplicate(with_test, split.test.images)
    assert found.n_exact >= split.test.n and not found.kept[split.train.n:].any()
    cheat = make_model("posterior", "smoke").fit(split.train)
    exact = lambda model: sum((model.candidates_ == np.round(i.ravel() * 255).astype(np.uint8)).all(1).any() for i in split.test.images)
    assert exact(cheat) == 0
    cheat.candidates_ = np.concatenate([cheat.candidates_, np.round(split.test.images.reshape(split.test.n, -1) * 255).astype(np.uint8)])
    assert exact(cheat) == split.test.n                                                                # and the check can fail


def test_a_model_whose_prior_holds_test_stimuli_is_refused(data, tmp_path, monkeypatch):
    from digit69.models import base
    base.available()
    class Cribber(Reconstructor):
        "Ridge, with the answers of all rows among its candidates."
        name = "cribber"
        def _fit(self, train): self.ridge_, self.candidates_ = make_model("ridge").fit(train), np.round(data.images * 255).astype(np.uint8)
        def _reconstruct(self, fmri): return self.ridge_.reconstruct(fmri)
    monkeypatch.setitem(base._registry, "cribber", Cribber)
    found = cross_validate(data, ["cribber", "ridge"], tmp_path, n_splits=5)
    assert "cribber" not in found["models"] and "its image prior holds 10 of 10 test stimuli" in found["skipped"]["cribber"]
    assert "ridge" in found["models"] and detect_leakage(make_model("posterior", "smoke").fit(data.rows(range(40))), Split(data.rows(range(40)), data.rows(range(40, 50)))) == []     # honest ones pass
    assert detect_leakage(Cribber().fit(data), Split(data, data.rows([0, 1]))) == []                          # a stimulus that is in train is another matter: refuse_overlap


def test_a_model_on_embeddings_that_are_not_cross_fitted_is_refused(data, tmp_path, monkeypatch):
    honest = cross_validate(data, ["regression"], tmp_path / "honest", n_splits=2, preset="smoke")
    assert "regression" in honest["models"]
    fit = EmbeddingPipeline.fit
    def cheat(self, train, *more):
        fit(self, train, *more)
        self.cross_fitted_ = self.embed(train.fmri)                                                     # by the encoder that learnt from these rows
        return self
    monkeypatch.setattr(EmbeddingPipeline, "fit", cheat)
    embeddings._fitted.clear()
    with pytest.raises(ModelError, match="they are not cross-fitted"): cross_validate(data, ["regression"], tmp_path / "cheat", n_splits=2, preset="smoke")
    embeddings._fitted.clear()


def test_embeddings_that_are_not_cross_fitted_are_caught(data):
    "A cross-fitted embedding of a row does not change with the row; one that is not cross-fitted does."
    train = kfold(data, 5)[0].train
    stage = EmbeddingPipeline(EMBEDDING_PRESETS["smoke"]).fit(train)
    fmri = train.fmri.copy()
    fmri[3] += 5 * train.fmri.std(0)
    images = train.images.copy()
    images[3] = images[3].T
    changed = EmbeddingPipeline(EMBEDDING_PRESETS["smoke"]).fit(replace(train, fmri=fmri, images=images), stage.image_encoder_)
    def moved(honest):
        "How much the row's own pair moved the encoder that embeds the row, at the row as it was."
        fold = lambda s: next(encoder for encoder, out in s.folds_ if 3 in out)
        import torch
        embed = lambda s: (fold(s) if honest else s.encoder_)(torch.tensor(train.fmri[3:4])).detach().numpy()
        return np.abs(embed(stage) - embed(changed)).max()
    assert moved(honest=True) == 0 and moved(honest=False) > 1e-4


def test_a_row_never_influences_its_own_reconstruction(data, tmp_path):
    changed = data.images.copy()
    changed[7] = changed[7].T
    for name, d in {"a": data, "b": replace(data, images=changed)}.items(): cross_validate(d, ["ridge", "posterior"], tmp_path / name, n_splits=5, preset="smoke")
    for model in ("ridge", "posterior"):
        a, b = (np.load(tmp_path / f / "reconstructions" / f"{model}.npz")["reconstructions"] for f in "ab")
        np.testing.assert_allclose(a[7], b[7], atol=1e-5)
        assert not np.allclose(a, b)


def test_noise_does_not_beat_its_null(deaf, tmp_path):
    "With voxels that are noise, no p-value of an honest model is small."
    found = permutation_null(deaf, ["class_mean", "ridge"], tmp_path, n=39)
    assert all(v["scores"]["pcc"]["p"] > .025 for v in found["models"].values())


# ---- the null

def test_signal_beats_the_null_and_the_null_is_centred_on_chance(data, tmp_path):
    found = permutation_null(data, ["mean", "ridge", "posterior"], tmp_path, n=4, preset="smoke")["models"]
    assert list(found) == ["ridge", "posterior"]
    for v in found.values():
        s = v["scores"]["identification"]
        assert v["permutations"] == 4 and len(s["null"]) == 4 and abs(s["null_mean"] - .5) < .06
    assert found["ridge"]["scores"]["pcc"]["p"] == .2
    assert found["posterior"]["settings"]["n_candidates"] == 2000                # the cheap variant is named


def test_shuffling_keeps_pairs_of_image_and_class_and_breaks_those_with_voxels(data):
    out = permute_rows(data, np.random.default_rng(0))
    assert np.array_equal(out.images, data.images) and np.array_equal(out.labels, data.labels)
    where = [int(np.nonzero((data.fmri == x).all(1))[0][0]) for x in out.fmri]
    assert sorted(where) == list(range(data.n)) and (np.array(where) != np.arange(data.n)).mean() > .8


def test_what_is_remembered_between_permutations_changes_nothing(data):
    "The posterior fitted after another permutation of the same images, and fitted in fresh memory, are the same."
    from digit69.augmentation import _variations, interpolate_shapes
    a, b = (permute_rows(data, np.random.default_rng(k)) for k in (1, 2))
    make_model("posterior", "smoke").fit(a)
    warm = make_model("posterior", "smoke").fit(b).reconstruct(data.fmri[:5])
    for function in (_variations, interpolate_shapes): function.__closure__[[type(c.cell_contents).__name__ for c in function.__closure__].index("OrderedDict")].cell_contents.clear()
    assert np.array_equal(warm, make_model("posterior", "smoke").fit(b).reconstruct(data.fmri[:5]))


def test_answers_dealt_anew_tell_the_class_from_the_trial(data):
    of_class = np.stack([data.images[data.labels == c].mean(0) for c in data.labels])
    assert label_permutation_test(of_class, data.images, np.zeros(data.n, int))["p"] < .001 and label_permutation_test(of_class, data.images, data.labels)["p"] == 1
    random = np.random.default_rng(0)
    luck = [label_permutation_test(random.random(data.images.shape), data.images, data.labels, n=200, seed=k)["p"] for k in range(40)]
    assert .25 < np.mean(luck) < .75 and min(luck) > 0


def test_an_expensive_model_can_be_left_out_of_the_null(data, tmp_path):
    assert list(permutation_null(data, ["class_mean", "ridge"], tmp_path, n=1, leave=("ridge",))["models"]) == ["class_mean"]


def test_the_null_resumes_and_is_the_same_with_two_jobs_or_another_batch(data, tmp_path, monkeypatch):
    one = permutation_null(data, ["ridge"], tmp_path / "one", n=8)
    assert permutation_null(data, ["ridge"], tmp_path / "two", n=8, n_jobs=2, batch=3) == one
    calls = []
    real = tasks.run_parallel
    monkeypatch.setattr(tasks, "run_parallel", lambda n_jobs, todo, scheduler=None: (calls.append(len(todo)), real(n_jobs, todo, scheduler))[1])
    (tmp_path / "one" / "null" / "ridge" / "0005.json").write_text("{")
    assert permutation_null(data, ["ridge"], tmp_path / "one", n=8) == one
    assert calls == [1]
    assert permutation_null(data, ["ridge"], tmp_path / "one", n=8, seed=1) != one and calls == [1, 2]      # another seed is another null


def test_an_expensive_model_is_examined_on_a_stated_subsample(data, tmp_path, monkeypatch):
    from digit69.models import base
    base.available()
    class Slow(Reconstructor):
        name = "slow"
        def _fit(self, train): self.image_ = train.images.mean(0)
        def _reconstruct(self, fmri): return np.repeat(self.image_[None], len(fmri), 0)
    monkeypatch.setitem(base._registry, "slow", Slow)
    found = permutation_null(data, ["slow"], tmp_path, n=200)["models"]["slow"]
    assert found["permutations"] == 19 and found["rows"].startswith("the first 1 of 3 folds")


def test_p_values_count_the_truth_itself():
    assert p_value(.9, np.zeros(199)) == 1 / 200 and p_value(.01, np.ones(199), "mse") == 1 / 200 and p_value(0., np.zeros(9)) == 1


# ---- learning curve

def test_subsets_are_nested_balanced_and_keep_repeats_together(data):
    twice = BrainDataset(np.concatenate([data.fmri] * 2), np.concatenate([data.images] * 2), np.concatenate([data.labels] * 2), name="twice")
    order = nested_order(twice, np.random.default_rng(0))
    assert sorted(order) == list(range(100))
    assert all(abs(order[i] - order[i + 1]) == 50 for i in range(0, 100, 2))
    assert abs((twice.labels[order[:20]] == 1).sum() - 10) <= 2


def test_the_curve_of_ridge_rises_and_says_how_unsure_it_is(data, tmp_path):
    found = learning_curve(data, ["ridge"], tmp_path, n_splits=4, n_repeats=2)["models"]["ridge"]["pcc"]
    measured = [v["mean"] for v in found["measured"]]
    assert measured[-1] > measured[0] and found["sizes"] == sorted(found["sizes"])
    ahead = found["extrapolated"]
    assert ahead[0]["rows"] == 2 * round(found["sizes"][-1]) or abs(ahead[0]["rows"] - 2 * found["sizes"][-1]) <= 1
    assert ahead[1]["mean"] >= ahead[0]["mean"] >= measured[-1] - .02
    width = lambda v: v["hi"] - v["lo"]
    assert width(ahead[1]) >= width(ahead[0]) * .9 and found["limit"]["hi"] <= 1


def test_errors_fall_and_never_below_zero():
    sizes = np.array([10, 20, 40, 80])
    values = (.02 + .5 * sizes ** -1.)[:, None] + np.random.default_rng(0).normal(0, .002, (1, 50))
    found = extrapolate(sizes, values, metric="mse")
    assert .015 < found["extrapolated"][0]["mean"] < found["measured"][-1]["mean"] and found["limit"]["lo"] >= 0


# ---- ceiling, memory, carriers

def test_without_repeats_there_is_no_ceiling_and_with_them_there_is(data):
    assert noise_ceiling(data.images, data.images) == voxel_reliability(data) == NO_REPEATS
    random = np.random.default_rng(0)
    shown = np.repeat(data.images[:10], 5, 0)
    noisy = np.clip(shown * .6 + .2 + .2 * random.normal(size=shown.shape), 0, 1)
    found = noise_ceiling(noisy, shown)
    assert found["stimuli"] == 10 and found["repeats"] == 5
    assert found["single"]["mean"] < found["ceiling"]["mean"] + .03 and found["averaged"]["mean"] > found["single"]["mean"] + .1
    perfect = noise_ceiling(shown, shown)
    assert perfect["ceiling"]["mean"] == pytest.approx(1) == perfect["single"]["mean"]
    assert abs(voxel_reliability(BrainDataset(random.normal(size=(50, 300)), shown))["50%"]) < .05


def test_a_memoriser_is_exposed(data, tmp_path, monkeypatch):
    "Answering with the nearest training row's image: index 0, every answer a copy."
    from digit69.models import base
    base.available()
    class Copy(Reconstructor):
        name = "copy"
        def _fit(self, train): self.fmri_, self.images_ = train.fmri, train.images
        def _reconstruct(self, fmri): return self.images_[((fmri[:, None] - self.fmri_[None]) ** 2).sum(-1).argmin(1)]
    monkeypatch.setitem(base._registry, "copy", Copy)
    cross_validate(data, ["copy"], tmp_path, n_splits=5)
    found = memorization_index(pd.read_csv(tmp_path / "metrics_per_image.csv"))
    assert found["copy"]["copies"] == 1 and found["copy"]["nearer_to_train"] == 1 and found["copy"]["mean"] < .01 < .1 < found["ridge"]["mean"]


def test_patterns_are_stable_only_where_there_is_signal(data, deaf, tmp_path):
    signal, noise = voxel_importance(data, ["ridge"], tmp_path / "a"), voxel_importance(deaf, ["ridge"], tmp_path / "b")
    assert signal["models"]["ridge"]["stability_halves"] > .3 > .2 > abs(noise["models"]["ridge"]["stability_halves"])
    assert noise["models"]["ridge"]["stability_folds"] > noise["models"]["ridge"]["stability_halves"]      # folds share rows: agreement by itself means little
    assert "no voxel coordinates" in signal["note"]


def test_patterns_do_not_depend_on_the_units_of_the_scanner(data):
    weights = make_model("ridge").fit(data).weights_.T
    a = haufe_patterns(data.fmri, weights)[2]
    b = haufe_patterns(data.fmri * 7 + 3, weights / 7)[2]
    np.testing.assert_allclose(a, b, atol=1e-4)
    assert ((0 <= a) & (a <= 1 + 1e-6)).all()


def test_examine_writes_one_file_that_a_page_can_read(data, tmp_path):
    cross_validate(data, ["ridge"], tmp_path, n_splits=4)
    found = run_diagnostics(data, tmp_path)
    assert found == read_json(tmp_path / "rigour.json") == json.loads((tmp_path / "rigour.json").read_text())
    assert found["noise_ceiling"] == NO_REPEATS and found["calibration"] == {} and found["ceilings"]["ridge"]["pcc"] > .8
    assert found["collapse"]["mean"]["ratio"] < 1


def test_repeated_stimuli_give_a_ceiling_from_out_of_fold_answers(tmp_path):
    base = simulate(16, 4, 120, seed=3).pooled()
    random = np.random.default_rng(0)
    fmri = np.repeat(base.fmri, 4, 0)
    data = BrainDataset(fmri + .3 * fmri.std(0) * random.normal(size=fmri.shape), np.repeat(base.images, 4, 0), None, name="repeated")
    assert all(len(set(map(bytes, c.train.images)) & set(map(bytes, c.test.images))) == 0 for c in leave_stimulus_out(data, 5))
    cross_validate(data, ["ridge"], tmp_path, protocol="leave-stimulus-out", n_splits=5)
    ceiling = run_diagnostics(data, tmp_path)["noise_ceiling"]["ridge"]
    assert ceiling["stimuli"] == 20 and ceiling["single"]["mean"] < ceiling["ceiling"]["mean"]


# ---- a batch on a cluster

def test_a_batch_runs_on_a_cluster_and_collects_one_comparison(data, tmp_path):
    from distributed import LocalCluster

    from digit69.readers import write_split
    from digit69.batch import run_batch
    file = write_split(Split(data.rows(np.arange(40)), data.rows(np.arange(40, 50))), tmp_path / "d.npz")
    (tmp_path / "grid.yaml").write_text(f"command: run\nfixed: {{data: {file}, models: ridge, preset: smoke}}\ngrid: {{seed: [0, 1]}}\n")
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1", silence_logs=50) as cluster:
        page = run_batch(tmp_path / "grid.yaml", tmp_path / "out", scheduler=cluster.scheduler_address)
    assert page.is_file() and "Published results" in page.read_text()
    table = pd.read_csv(tmp_path / "out" / "comparison.csv")
    assert list(table.model) == ["mean", "class_mean", "ridge"] * 2 and sorted(set(table.seed)) == [0, 1]
    stamp = (tmp_path / "out" / "run_seed-0" / "metrics.json").stat().st_mtime_ns
    run_batch(tmp_path / "grid.yaml", tmp_path / "out")
    assert (tmp_path / "out" / "run_seed-0" / "metrics.json").stat().st_mtime_ns == stamp                # finished: not run again


def test_tasks_that_run_tasks_do_not_wait_for_themselves():
    from digit69.parallel import run_isolated
    done = []
    worker = threading.Thread(target=lambda: done.append(run_isolated(run_isolated, pow, 2, 3)), daemon=True)
    worker.start()
    worker.join(10)
    assert done == [8]


def test_a_read_out_is_needed():
    assert attribution.linear_readout(make_model("mean")) is None
    with pytest.raises(ModelError): tasks.make_fast_variant("oracle")
