"""What a new user meets first: shared fits, progress, Ctrl-C and how to go on, and the page of a run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from digit69.evaluation import run_models
from digit69.manifest import init_run_dir
from digit69.report import run_notebook
from digit69.runs import load_run
from digit69.simulation import simulate

COMMAND = (sys.executable, "-c", "from digit69.cli import main; import sys; sys.exit(main())")


@pytest.fixture(scope="module")
def smoke_run(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("front") / "run"
    init_run_dir(out, command="run")
    split = simulate(n_train=40, n_test=8, n_voxels=150)
    run_models(split, ["regression", "posterior"], out, "smoke", n_jobs=2)
    manifest = json.loads((out / "manifest.json").read_text())
    facts = {"preset": "smoke", "folder": "runs/mine", "spec": "simulated"}
    (out / "manifest.json").write_text(json.dumps(manifest | facts))
    return out


def test_shared_fits_are_made_once_and_charged_to_no_model(smoke_run):
    shared = load_run(smoke_run).metrics["shared"]
    users = {fit["what"]: sorted(fit["used_by"]) for fit in shared.values()}
    assert users == {"likelihood": ["posterior", "regression"], "embeddings": ["regression"]}
    assert all(fit["seconds"] > 0 for fit in shared.values())


def test_the_page_opens_with_pictures_sentences_and_next_steps(smoke_run, tmp_path):
    page = run_notebook("evaluate", tmp_path, run=smoke_run).read_text(encoding="utf-8")
    assert page.index("<img") < page.index("Each-model-in-a-sentence", page.index("<img"))
    order = [page.index(f'id="{title}"') for title in ("The-table", "What-next", "Cost")]
    assert order == sorted(order)
    assert "digit69 explore --run runs/mine" in page
    assert "shared: likelihood" in page
    assert page.count("test of the plumbing") >= 3  # tables
    assert "Test of the plumbing" in page  # the banner
    assert "prefers-color-scheme: dark" in page and "<source media" in page


def heed_ctrl_c():
    "A shell lets its background jobs ignore Ctrl-C, and so do their children; a person's terminal does not."
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_ctrl_c_says_what_is_kept_and_how_to_go_on(tmp_path):
    out = tmp_path / "r"
    words = ["run", "--data", "simulated", "--models", "ldm", "--prior", "own", "--out", str(out)]
    child = subprocess.Popen(
        [*COMMAND, *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        preexec_fn=heed_ctrl_c,
    )
    mark = out / "models" / "ridge" / "fit.json"
    deadline = time.monotonic() + 240
    while not mark.exists() and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.2)
    child.send_signal(signal.SIGINT)
    err = child.communicate(timeout=120)[1].decode()
    assert child.returncode == 130, err[-2000:]
    assert "keeps fitted" in err and "ridge" in err
    assert err.strip().endswith(f"--out {out} --resume")
    assert "Traceback" not in err
