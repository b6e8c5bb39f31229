"Cross-validation gives one result wherever it runs, and starts again where it stopped."
import json
import os
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from digit69 import crossval, parallel
from digit69.core import DataError, ModelError, set_quiet, set_threads
from digit69.crossval import cross_validate
from digit69.scoring import paired_differences, drop_timings
from digit69.runs import load_reconstructions
from digit69.splits import make_folds
from digit69.parallel import run_isolated, run_parallel
from digit69.datasets import load_dataset
from digit69.simulation import simulate

set_threads(1)
set_quiet()


@pytest.fixture(scope="module")
def data():
    return simulate(40, 10, 120).pooled()


@pytest.fixture(scope="module")
def local(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("local")
    cross_validate(data, ["ridge"], out, n_splits=5, n_repeats=2, seed=3)
    return out


def same(a, b):
    "Two run folders hold the same results, clocks apart."
    read = lambda f, name: json.loads((f / name).read_text())
    assert drop_timings(read(a, "metrics.json")) == drop_timings(read(b, "metrics.json"))
    assert read(a, "differences.json") == read(b, "differences.json")
    assert (a / "metrics_per_image.csv").read_bytes() == (b / "metrics_per_image.csv").read_bytes()
    return True


@pytest.fixture(scope="module")
def cluster():
    from distributed import LocalCluster
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1", silence_logs=50) as c:
        yield c


def test_the_same_seed_gives_the_same_metrics_with_one_job_or_two(data, local, tmp_path):
    for n_jobs in (1, 2):
        cross_validate(data, ["ridge"], tmp_path / str(n_jobs), n_splits=5, n_repeats=2, seed=3, n_jobs=n_jobs)
        assert same(local, tmp_path / str(n_jobs))
    other = cross_validate(data, ["ridge"], tmp_path / "seed", n_splits=5, n_repeats=2, seed=4)
    assert drop_timings(other) != drop_timings(json.loads((local / "metrics.json").read_text()))


def test_a_cluster_that_loses_a_worker_midway_gives_the_same_metrics(data, local, tmp_path, cluster, monkeypatch):
    "Two worker processes, one of them shot after the second fold; results come back over the wire, workers write no files."
    victims, written = [w.pid for w in cluster.workers.values()], []
    def watch(path, **arrays):
        written.append(path)
        if len(written) == 6: os.kill(victims[0], signal.SIGKILL)     # three models: the second fold has come back
        return keep(path, **arrays)
    keep = crossval.write_npz
    monkeypatch.setattr(crossval, "write_npz", watch)
    cross_validate(data, ["ridge"], tmp_path / "dask", n_splits=5, n_repeats=2, seed=3, scheduler=cluster.scheduler_address)
    assert victims[0] not in [w.pid for w in cluster.workers.values()]          # it is gone (a nanny has put another in its place)
    assert len(list((tmp_path / "dask" / "folds").rglob("*.npz"))) == 30
    assert same(local, tmp_path / "dask")


def test_the_command_line_reaches_the_cluster(digit69, data, tmp_path, cluster):
    from digit69.data import Split
    from digit69.readers import write_split
    file = write_split(Split(data.rows(np.arange(40)), data.rows(np.arange(40, 50))), tmp_path / "d.npz")
    done = digit69("crossval", "--data", file, "--models", "ridge", "--folds", 3, "--quiet", "--engine", "dask", "--scheduler", cluster.scheduler_address, "--out", tmp_path / "dask")
    assert done.returncode == 0, done.stderr
    cross_validate(load_dataset(str(file)).pooled(), ["ridge"], tmp_path / "local", n_splits=3)
    assert same(tmp_path / "local", tmp_path / "dask")


def test_a_killed_cross_validation_goes_on_where_it_was(data, local, tmp_path):
    "Shot with SIGKILL after some folds; the same call finishes the rest with two jobs, redoes nothing, and the result is that of an undisturbed run."
    import subprocess
    import sys
    script = """if __name__ == "__main__":
    import sys, time
    from digit69 import crossval
    from digit69.core import set_quiet
    from digit69.simulation import simulate
    set_quiet()
    keep = crossval.write_npz
    def slowly(*a, **k): time.sleep(.2); return keep(*a, **k)
    crossval.write_npz = slowly
    crossval.cross_validate(simulate(40, 10, 120).pooled(), ["ridge"], sys.argv[1], n_splits=5, n_repeats=2, seed=3)"""
    out = tmp_path / "cv"
    victim = subprocess.Popen([sys.executable, "-c", script, str(out)], start_new_session=True)
    deadline = time.monotonic() + 120
    while len(list(out.glob("folds/ridge/0*.npz"))) < 3 and time.monotonic() < deadline and victim.poll() is None: time.sleep(.01)
    os.killpg(victim.pid, signal.SIGKILL)
    victim.wait()
    before = {f: f.stat().st_mtime_ns for f in out.glob("folds/*/0*.npz")}
    assert 3 <= len(list(out.glob("folds/ridge/0*.npz"))) < 10 and not (out / "metrics.json").exists()
    cross_validate(data, ["ridge"], out, n_splits=5, n_repeats=2, seed=3, n_jobs=2)
    assert before == {f: f.stat().st_mtime_ns for f in before}
    assert same(local, out)


def test_an_expensive_model_is_examined_once_and_its_row_says_so(data, local, tmp_path):
    cross_validate(data, ["ridge"], tmp_path, n_splits=5, n_repeats=2, seed=3, once=("ridge",))
    result = json.loads((tmp_path / "metrics.json").read_text())
    assert result["protocols"] == {"ridge": "stratified 5-fold x 1"} and len(list((tmp_path / "folds" / "ridge").iterdir())) == 5
    full = json.loads((local / "metrics.json").read_text())
    assert result["models"]["mean"]["pcc"] == full["models"]["mean"]["pcc"] and result["models"]["ridge"]["pcc"] != full["models"]["ridge"]["pcc"]
    cross_validate(data, ["ridge"], tmp_path, n_splits=5, n_repeats=2, seed=3)                  # asked in full later: only what is missing is done
    assert same(local, tmp_path)


def test_leaving_stimuli_out_can_be_repeated(data):
    cuts = make_folds(data, "leave-stimulus-out", 5, 2)
    tested = [np.sort(np.concatenate([c.provenance["test_rows"] for c in cuts[k:k + 5]])) for k in (0, 5)]
    assert len(cuts) == 10 and all(np.array_equal(t, np.arange(data.n)) for t in tested) and cuts[0].provenance["protocol"].endswith(" x 2")
    assert not np.array_equal(cuts[0].provenance["test_rows"], cuts[5].provenance["test_rows"])
    with pytest.raises(DataError, match="cannot be repeated"): make_folds(data, "leave-one-class-out", n_repeats=2)


@pytest.mark.parametrize("more, says", [(["--engine", "dask"], "needs --scheduler"), (["--once", "diffusion"], "not among the models"), (["--scheduler", "tcp://h:1"], "goes with --engine dask"), (["--protocol", "horoscope"], "choose from kfold"),
                                        (["--engine", "dask", "--scheduler", "tcp://127.0.0.1:9"], "no Dask scheduler answers"), (["--engine", "mpi"], "engine")])
def test_wrong_words_are_one_line(more, says, capsys, tmp_path):
    from digit69.cli import main
    assert main(["crossval", "--data", "simulated", *more, "--out", str(tmp_path / "x"), "--quiet"]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1 and not (tmp_path / "x").exists(), err


def test_a_scheduler_without_workers_is_said(tmp_path):
    from distributed import LocalCluster
    with LocalCluster(n_workers=0, dashboard_address=None, host="127.0.0.1", silence_logs=50) as empty:
        with pytest.raises(ModelError, match="no worker of tcp"): parallel.connect_to_dask(empty.scheduler_address, patience=1)


def test_tasks_of_one_process_run_one_after_another_with_one_thread():
    from threadpoolctl import threadpool_info
    running, most, threads = 0, 0, set()
    def task():
        nonlocal running, most
        running += 1
        most = max(most, running)
        threads.update(i["num_threads"] for i in threadpool_info())
        time.sleep(.02)
        running -= 1
    workers = [threading.Thread(target=run_isolated, args=(task,)) for _ in range(4)]
    for w in workers: w.start()
    for w in workers: w.join()
    assert most == 1 and threads == {1}


def test_a_damaged_or_missing_fold_is_redone_and_no_other(data, tmp_path):
    cross_validate(data, ["ridge"], tmp_path, n_splits=5)
    files = sorted((tmp_path / "folds" / "ridge").iterdir())
    before = [f.stat().st_mtime_ns for f in files]
    files[1].write_bytes(b"half")
    files[3].unlink()
    cross_validate(data, ["ridge"], tmp_path, n_splits=5)
    assert [f.stat().st_mtime_ns != b for f, b in zip(files, before)] == [False, True, False, True, False]


# ---- leave one class out

def test_a_left_out_class_never_reaches_train(data, tmp_path):
    for cut in make_folds(data, "leave-one-class-out"):
        assert not set(cut.train.labels) & set(cut.test.labels)
        assert cut.train.n + cut.test.n == data.n
    result = cross_validate(data, ["ridge"], tmp_path, protocol="leave-one-class-out")
    with_it = cross_validate(data, ["ridge"], tmp_path / "kfold", n_splits=5)
    assert list(result["models"]) == ["mean", "class_mean", "ridge"]                       # the class mean works with one class, and is the mean
    assert result["models"]["class_mean"]["pcc"] == result["models"]["mean"]["pcc"]
    assert result["models"]["ridge"]["pcc"]["mean"] < with_it["models"]["ridge"]["pcc"]["mean"]
    flipped = data.images.copy()
    flipped[data.labels == 2] = flipped[data.labels == 2][:, ::-1]
    cross_validate(replace(data, images=flipped), ["ridge"], tmp_path / "flipped", protocol="leave-one-class-out")
    a, b = (load_reconstructions(tmp_path / f / "reconstructions" / "ridge.npz") for f in (".", "flipped"))
    assert np.array_equal(a[data.labels == 2], b[data.labels == 2]) and not np.array_equal(a[data.labels == 1], b[data.labels == 1])


def test_a_model_that_cannot_learn_from_a_fold_is_left_out_with_its_reason(data, tmp_path, monkeypatch):
    from digit69.models import base
    base.available()
    class Picky(base.Reconstructor):
        name = "picky"
        def _fit(self, train):
            if len(np.unique(train.labels)) < 2: raise ModelError("picky needs two classes")
            self.image_ = train.images.mean(0)
        def _reconstruct(self, fmri): return np.repeat(self.image_[None], len(fmri), 0)
    monkeypatch.setitem(base._registry, "picky", Picky)
    result = cross_validate(data, ["ridge", "picky"], tmp_path, protocol="leave-one-class-out")
    assert "picky" not in result["models"] and "picky needs two classes" in result["skipped"]["picky"]
    with pytest.raises(ModelError, match="needs two classes"): cross_validate(data, ["picky"], tmp_path / "alone", protocol="leave-one-class-out")
    assert "picky" in cross_validate(data, ["picky"], tmp_path / "fine", n_splits=5)["models"]


def test_protocols_that_the_data_cannot_carry_are_refused(data):
    with pytest.raises(DataError, match="two classes"): make_folds(data.rows(np.nonzero(data.labels == 1)[0]), "leave-one-class-out")
    with pytest.raises(DataError, match="labels"): make_folds(replace(data, labels=None), "leave-one-class-out")


# ---- differences

def test_every_pair_of_models_is_compared_image_by_image(local):
    found = json.loads((local / "differences.json").read_text())
    assert [(a, b) for a, row in found["pairs"].items() for b in row] == [("mean", "class_mean"), ("mean", "ridge"), ("class_mean", "ridge")]
    models = json.loads((local / "metrics.json").read_text())["models"]
    gap = found["pairs"]["mean"]["ridge"]["pcc"]
    assert abs(gap["mean"] - (models["mean"]["pcc"]["mean"] - models["ridge"]["pcc"]["mean"])) < 1e-5
    assert gap["lo"] < gap["mean"] < gap["hi"] < 0


def test_a_model_does_not_differ_from_itself():
    import pandas as pd

    from digit69.metrics import METRICS
    table = pd.DataFrame({m: np.random.default_rng(0).normal(size=30) for m in METRICS})
    assert paired_differences({"ridge": table, "twin": table})["pairs"]["ridge"]["twin"]["pcc"] == {"mean": 0, "lo": 0, "hi": 0}


def test_results_come_with_their_number():
    assert dict(run_parallel(2, [(pow, i, 2) for i in range(5)])) == {i: i * i for i in range(5)}
