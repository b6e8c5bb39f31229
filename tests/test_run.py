"""The main job from end to end, as a user runs it."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from digit69.cli import main
from digit69.evaluation import run_models
from digit69.files import sha256, write_text
from digit69.manifest import checkout
from digit69.metrics import METRICS
from digit69.readers import read_split, split_to_arrays, write_split
from digit69.scoring import drop_timings
from digit69.simulation import simulate

MODELS = ("mean", "class_mean", "ridge")
RUN_FIGURES = (
    "comprehensive_model_comparison",
    "metrics_comparison",
    "best_worst_reconstructions",
)
RUN_FILES = (
    "manifest.json",
    "metrics.json",
    "metrics_per_image.csv",
    "MODEL_CARD.md",
    "audit.json",
    "reports/evaluate.html",
    "reports/evaluate.ipynb",
    "figures/data_quality_analysis.png",
    *(f"figures/{name}.png" for name in RUN_FIGURES),
    *(f"models/{name}/model.json" for name in MODELS),
    *(f"reconstructions/{name}.npz" for name in MODELS),
)
CROSSVAL_FIGURES = (
    "quality_and_speed",
    "image_components",
    "carriers",
    "components",
    "data_quality_analysis",
)
CROSSVAL_FILES = (
    "manifest.json",
    "metrics.json",
    "metrics_per_image.csv",
    "differences.json",
    "rigour.json",
    "audit.json",
    "MODEL_CARD.md",
    "reports/crossval.html",
    *(f"figures/{name}.png" for name in (*RUN_FIGURES, *CROSSVAL_FIGURES)),
)
COMMAND = (sys.executable, "-c", "from digit69.cli import main; import sys; sys.exit(main())")


def digit69_here(*words):
    "The command line inside this process (no second import of torch); returns its exit code."
    return main([str(word) for word in (*words, "--quiet")])


def read_json(path):
    return json.loads(Path(path).read_text())


def metrics(folder):
    return read_json(folder / "metrics.json")


def read_page(path):
    return path.read_text().replace("\u00a0", " ")


@pytest.fixture
def no_pages(monkeypatch):
    "Leave out the HTML pages, for tests that ask for something else: a page takes longer than the fits."

    def write_stub(name, out, **parameters):
        return write_text(Path(out) / f"{name}.html", "")

    monkeypatch.setattr("digit69.experiment.run_notebook", write_stub)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return write_split(simulate(n_train=40, n_test=10, n_voxels=200), folder / "small.mat")


@pytest.fixture(scope="module")
def run_folder(small, tmp_path_factory):
    "One finished `digit69 run`, shared."
    out = tmp_path_factory.mktemp("run") / "run"
    assert digit69_here("run", "--data", small, "--models", ",".join(MODELS), "--out", out) == 0
    return out


@pytest.fixture(scope="module")
def crossval_folder(small, tmp_path_factory):
    "One finished `digit69 crossval`, shared: two repeats for the baselines, one for ridge."
    out = tmp_path_factory.mktemp("crossval") / "cv"
    folds = ("--folds", 3, "--repeats", 2, "--once", "ridge")
    assert (
        digit69_here("crossval", "--data", small, "--models", "ridge", *folds, "--out", out) == 0
    )
    return out


def without(split_file, is_left_out, path):
    "The arrays of a data file without some of them."
    arrays = split_to_arrays(read_split(split_file))
    np.savez(path, **{key: array for key, array in arrays.items() if not is_left_out(key)})
    return path


# --- a run ------------------------------------------------------------------------------------------------


def test_run_writes_the_promised_folder(run_folder, small):
    assert [file for file in RUN_FILES if not (run_folder / file).is_file()] == []
    result, manifest = metrics(run_folder), read_json(run_folder / "manifest.json")
    sizes = {"n_train": 40, "n_test": 10, "n_voxels": 200}
    data = {
        "name": "small",
        "sha256": sha256(small),
        **sizes,
        "protocol": "the split of the file",
    }
    assert (result["schema_version"], result["data"]) == (1, data)
    assert manifest["status"] == "done" and manifest["data"]["sha256"] == sha256(small)
    assert manifest["seed"] == 0 and manifest["machine"]["threads"] >= 1


def test_every_metric_of_every_model_has_an_interval(run_folder):
    for entry in metrics(run_folder)["models"].values():
        assert set(entry) == {*METRICS, "n_parameters", "train_seconds", "latency_ms_per_image"}
        assert all(set(entry[metric]) == {"mean", "lo", "hi"} for metric in METRICS)


def test_scores_of_a_run_are_means_over_its_images(run_folder):
    rows = list(csv.DictReader((run_folder / "metrics_per_image.csv").open()))
    pcc = [float(row["pcc"]) for row in rows if row["model"] == "ridge"]
    assert len(rows) == 30
    assert np.mean(pcc) == pytest.approx(
        metrics(run_folder)["models"]["ridge"]["pcc"]["mean"], abs=1e-5
    )


def test_reconstructions_are_images(run_folder):
    with np.load(run_folder / "reconstructions" / "ridge.npz") as file:
        images = file["reconstructions"]
    assert images.shape == (10, 28, 28) and images.dtype == np.float32
    assert images.min() >= 0 and images.max() <= 1


def test_a_run_repeats_itself_whatever_the_number_of_jobs(run_folder, small, tmp_path, no_pages):
    words = (
        "--data",
        small,
        "--models",
        ",".join(MODELS),
        "--jobs",
        2,
        "--out",
        tmp_path / "again",
    )
    assert digit69_here("run", *words) == 0
    assert drop_timings(metrics(tmp_path / "again")) == drop_timings(metrics(run_folder))


def test_a_killed_run_goes_on_where_it_was(small, tmp_path, no_pages, capsys):
    words = ("run", "--data", str(small), "--models", "ridge", "--out", str(tmp_path / "r"))
    victim = subprocess.Popen(
        [*COMMAND, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    mark = tmp_path / "r" / "models" / "class_mean" / "fit.json"
    deadline = time.monotonic() + 120
    while not mark.exists() and time.monotonic() < deadline and victim.poll() is None:
        time.sleep(0.005)
    os.killpg(victim.pid, signal.SIGKILL)
    victim.wait()
    read_json(mark)  # whole, although the process was shot
    before = mark.stat().st_mtime_ns
    assert main([*words, "--resume"]) == 0
    assert "class_mean: already there" in capsys.readouterr().err
    assert mark.stat().st_mtime_ns == before
    assert read_json(tmp_path / "r" / "manifest.json")["status"] == "done"


def test_ridge_on_the_real_dev_split(digits_file, tmp_path):
    entry = run_models(read_split(digits_file), ["ridge"], tmp_path)["models"]["ridge"]
    assert entry["pcc"]["mean"] >= 0.71
    assert entry["ssim"]["mean"] >= 0.43
    assert entry["mse"]["mean"] <= 0.051


# --- cross-validation -------------------------------------------------------------------------------------


def test_crossval_writes_the_promised_folder(crossval_folder):
    assert [file for file in CROSSVAL_FILES if not (crossval_folder / file).is_file()] == []


@pytest.mark.parametrize(
    "statement",
    [
        "not estimable: no repeats",
        "The data hold no voxel coordinates",
        "memory index",
        "within class",
        "dimensions (targets)",
        "its own ceiling",
        "dealt out anew",
        "encoding R2",
        "50 rows, 3-fold x 1",
        "50 rows, 3-fold x 2",
    ],
)
def test_the_crossval_page_says(statement, crossval_folder):
    assert statement in read_page(crossval_folder / "reports" / "crossval.html")


def test_a_model_hub_can_read_the_card(crossval_folder):
    card = (crossval_folder / "MODEL_CARD.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    top = front["model-index"][0]
    told = {metric["type"]: metric["value"] for metric in top["results"][0]["metrics"]}
    assert (front["library_name"], top["name"]) == ("digit69", "ridge")
    assert told["pcc"] == pytest.approx(
        metrics(crossval_folder)["models"]["ridge"]["pcc"]["mean"], abs=1e-4
    )
    assert "| Leakage | Separation of train and test |" in card


def test_a_report_can_be_built_again_from_its_folder(crossval_folder, tmp_path):
    again = shutil.copytree(crossval_folder, tmp_path / "again")
    (again / "reports" / "crossval.html").unlink()
    (again / "MODEL_CARD.md").unlink()
    assert digit69_here("report", again) == 0
    assert (again / "reports" / "crossval.html").is_file()
    for file in ("MODEL_CARD.md", "metrics.json"):
        assert (again / file).read_bytes() == (crossval_folder / file).read_bytes()


def test_runs_are_compared_on_one_page_beside_published_results(crossval_folder, tmp_path):
    again = shutil.copytree(crossval_folder, tmp_path / "again")
    assert digit69_here("report", crossval_folder, again, "--out", tmp_path / "both") == 0
    page = read_page(tmp_path / "both" / "compare.html")
    assert "Published results" in page and "after training on the other 90" in page
    assert "50 rows, 3-fold x 1" in page


# --- data that lack something -----------------------------------------------------------------------------


def test_rows_without_images_are_reconstructed_and_not_scored(small, tmp_path, capsys):
    blind = without(small, lambda key: key in ("stimTest", "labelTest"), tmp_path / "blind.npz")
    assert (
        digit69_here("train", "--data", blind, "--model", "ridge", "--out", tmp_path / "m") == 0
    )
    alone = ("--model", tmp_path / "m", "--data", blind, "--out", tmp_path / "r.npz")
    assert digit69_here("reconstruct", *alone) == 0
    words = ("--data", blind, "--models", "ridge", "--out", tmp_path / "run")
    assert digit69_here("run", *words) == 0
    assert "nothing is scored" in capsys.readouterr().out
    with (
        np.load(tmp_path / "r.npz") as a,
        np.load(tmp_path / "run" / "reconstructions" / "ridge.npz") as b,
    ):
        assert np.array_equal(a["reconstructions"], b["reconstructions"])


def test_without_labels_the_class_mean_is_left_out(small, tmp_path, no_pages, capsys):
    unlabelled = without(small, lambda key: key.startswith("label"), tmp_path / "unlabelled.npz")
    assert (
        main(
            ["run", "--data", str(unlabelled), "--models", "ridge", "--out", str(tmp_path / "r")]
        )
        == 0
    )
    assert "class_mean left out" in capsys.readouterr().err
    models = metrics(tmp_path / "r")["models"]
    assert list(models) == ["mean", "ridge"]
    assert models["ridge"]["within_class_identification"]["mean"] is None


# --- stimuli that repeat ----------------------------------------------------------------------------------


def test_the_published_miyawaki_split_is_refused(miyawaki_file, tmp_path, capsys):
    assert digit69_here("run", "--data", miyawaki_file, "--out", tmp_path / "m") == 2
    assert "12 of 12 test stimuli" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


def test_a_strict_audit_fails_on_the_published_miyawaki_split(
    miyawaki_file, tmp_path, capsys, no_pages
):
    words = ("data", "audit", miyawaki_file, "--strict", "--out", tmp_path / "audit")
    assert digit69_here(*words) == 2
    assert "12 of 12" in capsys.readouterr().out
    assert (tmp_path / "audit" / "audit.json").is_file()


def test_where_stimuli_repeat_whole_stimuli_are_left_out_without_being_asked(
    miyawaki_file, tmp_path, no_pages
):
    words = ("--data", miyawaki_file, "--models", "ridge", "--out", tmp_path / "cv")
    assert digit69_here("crossval", *words) == 0
    result = metrics(tmp_path / "cv")
    assert result["data"]["protocol"] == "leave-stimulus-out, 20 folds over 20 stimuli"
    assert result["models"]["ridge"]["pcc"]["mean"] > 0.8


# --- the package ------------------------------------------------------------------------------------------


def test_the_wheel_brings_its_reports(tmp_path):
    if checkout() is None:
        pytest.skip("not a checkout: there is nothing to build")
    dist, site = tmp_path / "dist", tmp_path / "site"
    build = [sys.executable, "-m", "build", "--outdir", dist, checkout()]
    done = subprocess.run(build, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = dist.glob("*.whl")
    assert list(dist.glob("*.tar.gz"))
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        site,
        wheel,
    ]
    subprocess.run(install, check=True, timeout=300)
    script = "import digit69, sys; from digit69.cli import main; print(digit69.__file__); sys.exit(main())"
    words = ["--data", "simulated", "--preset", "smoke", "--out", tmp_path / "r"]
    run = [sys.executable, "-c", script, "run", *words]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        run, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0 and str(site) in done.stdout, done.stderr
    assert (
        'class="contents"' in (tmp_path / "r" / "reports" / "evaluate.html").read_text()
    )  # by our template
