"""Cross-validation gives one result wherever it runs, and starts again where it stopped."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from threadpoolctl import threadpool_info

from digit69 import crossval
from digit69.cli import main
from digit69.core import DataError, ModelError, set_quiet, set_threads
from digit69.crossval import cross_validate
from digit69.data import Split
from digit69.datasets import load_dataset
from digit69.metrics import METRICS
from digit69.models.base import Reconstructor
from digit69.models.registry import MODELS, get_model_spec, register
from digit69.parallel import connect_to_dask, run_isolated, run_parallel
from digit69.readers import write_split
from digit69.runs import load_reconstructions
from digit69.scoring import drop_timings, paired_differences
from digit69.simulation import simulate
from digit69.splits import make_folds

set_threads(1)
set_quiet()
SETTINGS = {"n_splits": 5, "n_repeats": 2, "seed": 3}


@pytest.fixture(scope="module")
def data():
    return simulate(40, 10, 120).pooled()


@pytest.fixture(scope="module")
def local(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("local")
    cross_validate(data, ["ridge"], out, **SETTINGS)
    return out


@pytest.fixture(scope="module")
def cluster():
    from distributed import LocalCluster

    options = {
        "processes": True,
        "dashboard_address": None,
        "host": "127.0.0.1",
        "silence_logs": 50,
    }
    with LocalCluster(n_workers=2, threads_per_worker=1, **options) as running:
        yield running


def read(folder, name):
    return json.loads((folder / name).read_text())


def assert_same_results(a, b):
    """Two run folders hold the same results, except for what a clock measured."""
    assert drop_timings(read(a, "metrics.json")) == drop_timings(read(b, "metrics.json"))
    assert read(a, "differences.json") == read(b, "differences.json")
    assert (a / "metrics_per_image.csv").read_bytes() == (
        b / "metrics_per_image.csv"
    ).read_bytes()


def write_times(files):
    return {file: file.stat().st_mtime_ns for file in files}


# --- one result, wherever it runs --------------------------------------------------------------------------


def test_two_jobs_give_the_metrics_of_one_and_another_seed_does_not(data, local, tmp_path):
    cross_validate(data, ["ridge"], tmp_path / "two", **SETTINGS, n_jobs=2)
    assert_same_results(local, tmp_path / "two")
    cross_validate(data, ["ridge"], tmp_path / "again", **SETTINGS)
    assert_same_results(local, tmp_path / "again")
    cross_validate(data, ["ridge"], tmp_path / "seed", **{**SETTINGS, "seed": 4})
    other = read(tmp_path / "seed", "metrics.json")
    assert drop_timings(other) != drop_timings(read(local, "metrics.json"))


def test_a_cluster_that_loses_a_worker_gives_the_same_metrics(
    data, local, tmp_path, cluster, monkeypatch
):
    """One of two workers is killed after the second fold; workers send results back and write no files."""
    victim = next(worker.pid for worker in cluster.workers.values())
    written = []
    write_npz = crossval.write_npz

    def write_and_kill(path, **arrays):
        written.append(path)
        if len(written) == 6:  # three models: the second fold has come back
            os.kill(victim, signal.SIGKILL)
        return write_npz(path, **arrays)

    monkeypatch.setattr(crossval, "write_npz", write_and_kill)
    out = tmp_path / "dask"
    cross_validate(data, ["ridge"], out, **SETTINGS, scheduler=cluster.scheduler_address)
    assert victim not in [
        worker.pid for worker in cluster.workers.values()
    ]  # another took its place
    assert len(list((out / "folds").rglob("*.npz"))) == 30
    assert_same_results(local, out)


def test_the_command_line_reaches_the_cluster(digit69, data, tmp_path, cluster):
    split = Split(data.rows(np.arange(40)), data.rows(np.arange(40, 50)))
    file = write_split(split, tmp_path / "d.npz")
    what = ("--data", file, "--models", "ridge", "--folds", 3, "--quiet")
    where = (
        "--engine",
        "dask",
        "--scheduler",
        cluster.scheduler_address,
        "--out",
        tmp_path / "dask",
    )
    done = digit69("crossval", *what, *where)
    assert done.returncode == 0, done.stderr
    cross_validate(load_dataset(str(file)).pooled(), ["ridge"], tmp_path / "local", n_splits=3)
    assert_same_results(tmp_path / "local", tmp_path / "dask")


def test_a_scheduler_without_workers_is_said():
    from distributed import LocalCluster

    with (
        LocalCluster(
            n_workers=0, dashboard_address=None, host="127.0.0.1", silence_logs=50
        ) as empty,
        pytest.raises(ModelError, match="no worker of tcp"),
    ):
        connect_to_dask(empty.scheduler_address, patience=1)


def test_tasks_of_one_process_run_one_after_another_with_one_thread():
    running = []
    n_running = []
    n_threads = set()

    def task():
        running.append(1)
        n_running.append(len(running))
        n_threads.update(library["num_threads"] for library in threadpool_info())
        time.sleep(0.02)
        running.pop()

    threads = [threading.Thread(target=run_isolated, args=(task,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(n_running) == 1
    assert n_threads == {1}


def test_results_come_with_their_number():
    tasks = [(pow, number, 2) for number in range(5)]
    assert dict(run_parallel(2, tasks)) == {0: 0, 1: 1, 2: 4, 3: 9, 4: 16}


@pytest.mark.parametrize(
    "words, message",
    [
        (["--engine", "dask"], "needs --scheduler"),
        (["--once", "diffusion"], "not among the models"),
        (["--scheduler", "tcp://h:1"], "goes with --engine dask"),
        (["--protocol", "horoscope"], "choose from kfold"),
        (["--engine", "dask", "--scheduler", "tcp://127.0.0.1:9"], "no Dask scheduler answers"),
        (["--engine", "mpi"], "engine"),
    ],
)
def test_wrong_words_are_refused_in_one_line(words, message, capsys, tmp_path):
    out = tmp_path / "x"
    assert main(["crossval", "--data", "simulated", *words, "--out", str(out), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()


# --- stopped and started again -----------------------------------------------------------------------------

SLOW_CROSS_VALIDATION = """
if __name__ == "__main__":
    import sys, time
    from digit69 import crossval
    from digit69.core import set_quiet
    from digit69.simulation import simulate

    set_quiet()
    write_npz = crossval.write_npz

    def write_slowly(*args, **arrays):
        time.sleep(0.2)
        return write_npz(*args, **arrays)

    crossval.write_npz = write_slowly
    data = simulate(40, 10, 120).pooled()
    crossval.cross_validate(data, ["ridge"], sys.argv[1], n_splits=5, n_repeats=2, seed=3)
"""


def test_a_killed_cross_validation_goes_on_where_it_was(data, local, tmp_path):
    """The same call finishes the rest with two jobs, redoes nothing, and gives the undisturbed result."""
    out = tmp_path / "cv"
    script = [sys.executable, "-c", SLOW_CROSS_VALIDATION, str(out)]
    victim = subprocess.Popen(script, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(list(out.glob("folds/ridge/0*.npz"))) < 3 and time.monotonic() < deadline:
        assert victim.poll() is None
        time.sleep(0.01)
    os.killpg(victim.pid, signal.SIGKILL)
    victim.wait()
    finished = write_times(out.glob("folds/*/0*.npz"))
    assert 3 <= len(list(out.glob("folds/ridge/0*.npz"))) < 10
    assert not (out / "metrics.json").exists()
    cross_validate(data, ["ridge"], out, **SETTINGS, n_jobs=2)
    assert write_times(finished) == finished
    assert_same_results(local, out)


def test_a_damaged_or_missing_fold_is_redone_and_no_other(data, tmp_path):
    cross_validate(data, ["ridge"], tmp_path, n_splits=5)
    files = sorted((tmp_path / "folds" / "ridge").iterdir())
    before = write_times(files)
    files[1].write_bytes(b"half")
    files[3].unlink()
    cross_validate(data, ["ridge"], tmp_path, n_splits=5)
    after = write_times(files)
    assert [file for file in files if after[file] != before[file]] == [files[1], files[3]]


def test_an_expensive_model_is_examined_once_and_its_row_says_so(data, local, tmp_path):
    metrics = cross_validate(data, ["ridge"], tmp_path, **SETTINGS, once=("ridge",))
    in_full = read(local, "metrics.json")
    assert metrics["protocols"] == {"ridge": "stratified 5-fold x 1"}
    assert len(list((tmp_path / "folds" / "ridge").iterdir())) == 5
    written = read(tmp_path, "metrics.json")["models"]
    assert written["mean"]["pcc"] == in_full["models"]["mean"]["pcc"]
    assert written["ridge"]["pcc"] != in_full["models"]["ridge"]["pcc"]
    cross_validate(data, ["ridge"], tmp_path, **SETTINGS)  # only the missing folds are computed
    assert_same_results(local, tmp_path)


# --- protocols ---------------------------------------------------------------------------------------------


def test_leaving_stimuli_out_can_be_repeated(data):
    folds = make_folds(data, "leave-stimulus-out", 5, 2)
    assert len(folds) == 10
    assert folds[0].provenance["protocol"].endswith(" x 2")
    for repeat in (folds[:5], folds[5:]):
        tested = np.sort(np.concatenate([fold.provenance["test_rows"] for fold in repeat]))
        assert np.array_equal(tested, np.arange(data.n))
    first, second = folds[0].provenance["test_rows"], folds[5].provenance["test_rows"]
    assert not np.array_equal(first, second)
    with pytest.raises(DataError, match="cannot be repeated"):
        make_folds(data, "leave-one-class-out", n_repeats=2)


def test_a_left_out_class_never_reaches_train(data, tmp_path):
    for fold in make_folds(data, "leave-one-class-out"):
        assert not set(fold.train.labels) & set(fold.test.labels)
        assert fold.train.n + fold.test.n == data.n
    flipped = data.images.copy()
    is_two = data.labels == 2
    flipped[is_two] = flipped[is_two][:, ::-1]
    changed = replace(data, images=flipped)
    cross_validate(data, ["ridge"], tmp_path, protocol="leave-one-class-out")
    cross_validate(changed, ["ridge"], tmp_path / "flipped", protocol="leave-one-class-out")
    before = load_reconstructions(tmp_path / "reconstructions" / "ridge.npz")
    after = load_reconstructions(tmp_path / "flipped" / "reconstructions" / "ridge.npz")
    assert np.array_equal(before[is_two], after[is_two])
    assert not np.array_equal(before[~is_two], after[~is_two])


def test_a_class_that_was_never_learnt_is_harder(data, local, tmp_path):
    models = cross_validate(data, ["ridge"], tmp_path, protocol="leave-one-class-out")["models"]
    assert list(models) == ["mean", "class_mean", "ridge"]
    assert models["class_mean"]["pcc"] == models["mean"]["pcc"]  # of one class, they are the same
    in_folds = read(local, "metrics.json")["models"]["ridge"]["pcc"]["mean"]
    assert models["ridge"]["pcc"]["mean"] < in_folds


def test_a_model_that_cannot_learn_from_a_fold_is_left_out_with_its_reason(
    data, tmp_path, monkeypatch
):
    get_model_spec("ridge")
    monkeypatch.setitem(MODELS, "picky", None)  # restored after the test

    @register("picky")
    class Picky(Reconstructor):
        def _fit(self, train, options):
            if len(np.unique(train.labels)) < 2:
                raise ModelError("picky needs two classes")
            self.image_ = train.images.mean(0)

        def _reconstruct(self, fmri):
            return np.repeat(self.image_[None], len(fmri), 0)

    metrics = cross_validate(data, ["ridge", "picky"], tmp_path, protocol="leave-one-class-out")
    assert "picky" not in metrics["models"]
    assert "picky needs two classes" in metrics["skipped"]["picky"]
    with pytest.raises(ModelError, match="needs two classes"):
        cross_validate(data, ["picky"], tmp_path / "alone", protocol="leave-one-class-out")
    assert "picky" in cross_validate(data, ["picky"], tmp_path / "fine", n_splits=5)["models"]


def test_protocols_that_the_data_cannot_carry_are_refused(data):
    with pytest.raises(DataError, match="two classes"):
        make_folds(data.rows(np.nonzero(data.labels == 1)[0]), "leave-one-class-out")
    with pytest.raises(DataError, match="labels"):
        make_folds(replace(data, labels=None), "leave-one-class-out")


# --- differences -------------------------------------------------------------------------------------------


def test_every_pair_of_models_is_compared_image_by_image(local):
    differences = read(local, "differences.json")
    pairs = [(a, b) for a, others in differences["pairs"].items() for b in others]
    assert pairs == [("mean", "class_mean"), ("mean", "ridge"), ("class_mean", "ridge")]
    models = read(local, "metrics.json")["models"]
    gap = differences["pairs"]["mean"]["ridge"]["pcc"]
    assert (
        abs(gap["mean"] - (models["mean"]["pcc"]["mean"] - models["ridge"]["pcc"]["mean"])) < 1e-5
    )
    assert gap["lo"] < gap["mean"] < gap["hi"] < 0


def test_a_model_does_not_differ_from_itself():
    random = np.random.default_rng(0)
    table = pd.DataFrame({metric: random.normal(size=30) for metric in METRICS})
    differences = paired_differences({"ridge": table, "twin": table})
    assert differences["pairs"]["ridge"]["twin"]["pcc"] == {"mean": 0, "lo": 0, "hi": 0}
