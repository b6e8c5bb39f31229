"""The main job from end to end, as a user runs it."""
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from digit69.manifest import checkout
from digit69.files import sha256
from digit69.readers import read_split, split_to_arrays, write_split
from digit69.scoring import drop_timings
from digit69.metrics import METRICS
from digit69.simulation import simulate

FILES = ["manifest.json", "metrics.json", "metrics_per_image.csv", "MODEL_CARD.md", "audit.json", "reports/evaluate.html", "reports/evaluate.ipynb",
         "figures/data_quality_analysis.png", "figures/comprehensive_model_comparison.png", "figures/metrics_comparison.png", "figures/best_worst_reconstructions.png",
         *(f"models/{m}/model.json" for m in ("mean", "class_mean", "ridge")), *(f"reconstructions/{m}.npz" for m in ("mean", "class_mean", "ridge"))]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_split(simulate(n_train=40, n_test=10, n_voxels=200), tmp_path_factory.mktemp("data") / "small.mat")


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_run_writes_the_promised_folder_and_repeats_itself(digit69, small, tmp_path):
    for name in "ab":
        done = digit69("run", "--data", small, "--models", "mean,class_mean,ridge", "--preset", "smoke", "--out", tmp_path / name, "--jobs", 1 if name == "a" else 2)
        assert done.returncode == 0, done.stderr
        assert "ridge" in done.stdout and "Traceback" not in done.stderr
    assert all((tmp_path / "a" / f).is_file() for f in FILES)
    a, b = metrics(tmp_path / "a"), metrics(tmp_path / "b")
    assert drop_timings(a) == drop_timings(b)
    assert a["schema_version"] == 1 and a["data"] == {"name": "small", "sha256": sha256(small), "n_train": 40, "n_test": 10, "n_voxels": 200, "protocol": "the split of the file"}
    for m in a["models"].values():
        assert set(m) == {*METRICS, "n_parameters", "train_seconds", "latency_ms_per_image"}
        assert all(set(m[k]) == {"mean", "lo", "hi"} for k in METRICS)
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["status"] == "done" and manifest["data"]["sha256"] == sha256(small) and manifest["seed"] == 0 and manifest["machine"]["threads"] >= 1
    rows = list(csv.DictReader((tmp_path / "a" / "metrics_per_image.csv").open()))
    assert len(rows) == 30 and abs(np.mean([float(r["pcc"]) for r in rows if r["model"] == "ridge"]) - a["models"]["ridge"]["pcc"]["mean"]) < 1e-5
    with np.load(tmp_path / "a" / "reconstructions" / "ridge.npz") as z:
        r = z["reconstructions"]
        assert r.shape == (10, 28, 28) and r.dtype == np.float32 and 0 <= r.min() and r.max() <= 1


def test_crossval_writes_the_promised_folder_and_its_report_can_be_built_again(small, tmp_path):
    import yaml

    from digit69.cli import main
    out = tmp_path / "cv"
    assert main(["crossval", "--data", str(small), "--models", "ridge", "--folds", "3", "--repeats", "2", "--once", "ridge", "--out", str(out), "--quiet"]) == 0
    for f in ("manifest.json", "metrics.json", "metrics_per_image.csv", "differences.json", "rigour.json", "audit.json", "MODEL_CARD.md", "reports/crossval.html",
              *(f"figures/{n}.png" for n in ("comprehensive_model_comparison", "metrics_comparison", "best_worst_reconstructions", "quality_and_speed", "image_components", "carriers", "components", "data_quality_analysis"))):
        assert (out / f).is_file(), f
    page, card = (out / "reports" / "crossval.html").read_text(), (out / "MODEL_CARD.md").read_text()
    for said in ("not estimable: no repeats", "The data hold no voxel coordinates", "memory index", "within class", "dimensions (targets)", "its own ceiling", "dealt out anew", "encoding R2", "50 rows, 3-fold x 1", "50 rows, 3-fold x 2"):
        assert said in page.replace("\u00a0", " "), said
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "digit69" and front["model-index"][0]["name"] == "ridge"
    told = {m["type"]: m["value"] for m in front["model-index"][0]["results"][0]["metrics"]}
    assert told["pcc"] == pytest.approx(metrics(out)["models"]["ridge"]["pcc"]["mean"], abs=1e-4) and "| Leakage | Separation of train and test |" in card
    (out / "reports" / "crossval.html").unlink()
    (out / "MODEL_CARD.md").unlink()
    before = (out / "metrics.json").read_bytes()
    assert main(["report", str(out), "--quiet"]) == 0
    assert (out / "reports" / "crossval.html").is_file() and (out / "MODEL_CARD.md").read_text() == card and (out / "metrics.json").read_bytes() == before
    shutil.copytree(out, tmp_path / "again")
    assert main(["report", str(out), str(tmp_path / "again"), "--out", str(tmp_path / "both"), "--quiet"]) == 0
    page = (tmp_path / "both" / "compare.html").read_text()
    assert "Published results" in page and "after training on the other 90" in page and "50 rows, 3-fold x 1" in page.replace("\u00a0", " ")


def test_a_killed_run_goes_on_where_it_was(small, tmp_path):
    words = [sys.executable, "-c", "from digit69.cli import main; import sys; sys.exit(main())", "run", "--data", str(small), "--out", str(tmp_path / "r")]
    victim = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    mark = tmp_path / "r" / "models" / "class_mean" / "fit.json"
    deadline = time.monotonic() + 120
    while not mark.exists() and time.monotonic() < deadline and victim.poll() is None:
        time.sleep(.005)
    os.killpg(victim.pid, signal.SIGKILL)
    victim.wait()
    assert mark.exists()
    json.loads(mark.read_text())                                   # whole, although the process was shot
    before = mark.stat().st_mtime_ns
    done = subprocess.run([*words, "--resume"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "class_mean: already there" in done.stderr, done.stderr
    assert mark.stat().st_mtime_ns == before
    assert json.loads((tmp_path / "r" / "manifest.json").read_text())["status"] == "done"


def test_blind_file_from_the_command_line(digit69, small, tmp_path):
    arrays = {k: v for k, v in split_to_arrays(read_split(small)).items() if k not in ("stimTest", "labelTest")}
    np.savez(tmp_path / "blind.npz", **arrays)
    assert digit69("train", "--data", tmp_path / "blind.npz", "--model", "ridge", "--out", tmp_path / "m").returncode == 0
    done = digit69("reconstruct", "--model", tmp_path / "m", "--data", tmp_path / "blind.npz", "--out", tmp_path / "r.npz")
    assert done.returncode == 0, done.stderr
    done = digit69("run", "--data", tmp_path / "blind.npz", "--out", tmp_path / "run")
    assert done.returncode == 0 and "nothing is scored" in done.stdout, done.stderr
    with np.load(tmp_path / "r.npz") as a, np.load(tmp_path / "run" / "reconstructions" / "ridge.npz") as b:
        assert np.array_equal(a["reconstructions"], b["reconstructions"])


def test_without_labels_the_class_mean_is_left_out(digit69, small, tmp_path):
    arrays = {k: v for k, v in split_to_arrays(read_split(small)).items() if not k.startswith("label")}
    np.savez(tmp_path / "unlabelled.npz", **arrays)
    done = digit69("run", "--data", tmp_path / "unlabelled.npz", "--out", tmp_path / "r")
    assert done.returncode == 0 and "class_mean left out" in done.stderr, done.stderr
    result = metrics(tmp_path / "r")
    assert list(result["models"]) == ["mean", "ridge"] and result["models"]["ridge"]["within_class_identification"]["mean"] is None


def test_ridge_on_the_real_dev_split(digit69, digits_file, tmp_path):
    done = digit69("run", "--data", digits_file, "--models", "mean,class_mean,ridge", "--out", tmp_path / "first")
    assert done.returncode == 0, done.stderr
    ridge = {k: v["mean"] for k, v in metrics(tmp_path / "first")["models"]["ridge"].items() if isinstance(v, dict)}
    assert ridge["pcc"] >= .71 and ridge["ssim"] >= .43 and ridge["mse"] <= .051


def test_the_published_miyawaki_split_is_refused_unless_asked_for(digit69, miyawaki_file, tmp_path):
    done = digit69("run", "--data", miyawaki_file, "--out", tmp_path / "m")
    assert done.returncode == 2 and "12 of 12 test stimuli" in done.stderr and not (tmp_path / "m").exists()
    done = digit69("data", "audit", miyawaki_file, "--strict", "--out", tmp_path / "audit")
    assert done.returncode == 2 and "12 of 12" in done.stdout and (tmp_path / "audit" / "audit.json").is_file()
    done = digit69("crossval", "--data", miyawaki_file, "--models", "ridge", "--out", tmp_path / "cv")     # where stimuli repeat, whole stimuli are left out without being asked
    assert done.returncode == 0, done.stderr
    assert metrics(tmp_path / "cv")["data"]["protocol"] == "leave-stimulus-out, 20 folds over 20 stimuli"
    assert metrics(tmp_path / "cv")["models"]["ridge"]["pcc"]["mean"] > .8


def test_the_wheel_brings_its_reports(tmp_path):
    if checkout() is None:
        pytest.skip("not a checkout: there is nothing to build")
    build = subprocess.run([sys.executable, "-m", "build", "--outdir", tmp_path / "dist", checkout()], capture_output=True, text=True, timeout=300)
    assert build.returncode == 0, build.stderr[-2000:]
    wheel, = (tmp_path / "dist").glob("*.whl")
    assert list((tmp_path / "dist").glob("*.tar.gz"))
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path / "site", wheel], check=True, timeout=300)
    script = "import digit69, sys; from digit69.cli import main; print(digit69.__file__); sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", script, "run", "--data", "simulated", "--out", str(tmp_path / "r")], capture_output=True, text=True, timeout=300,
                          cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path / "site")})
    assert done.returncode == 0 and str(tmp_path / "site") in done.stdout, done.stderr
    assert (tmp_path / "r" / "reports" / "evaluate.html").is_file()
