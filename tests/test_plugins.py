"""Another package adds a model, a data set and metrics, and finds them everywhere."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = """
import numpy as np

from digit69.data import BrainDataset, Split
from digit69.datasets import DatasetSpec, register_dataset
from digit69.metrics import Metric, register_metric
from digit69.models.base import Reconstructor
from digit69.models.registry import register
from digit69.simulation import simulate


def missing_ink(recon, target):
    "Share of the ink that is missing: more is worse."
    return np.maximum(target - recon, 0).sum((1, 2)) / target.sum((1, 2))


def shared_ink(recon, target):
    "Share of the ink that is there: more is better."
    return np.minimum(target, recon).sum((1, 2)) / target.sum((1, 2))


register_metric(Metric("missing_ink", "missing ink", missing_ink, higher_is_better=False, headline=True))
register_metric(Metric("shared_ink", "shared ink", shared_ink, higher_is_better=True, headline=True))


def read_toy(path=None):
    "A small simulated subject under a name of its own."
    split = simulate(24, 6, 60)
    train, test = (
        BrainDataset(part.fmri, part.images, part.labels, name="toy") for part in (split.train, split.test)
    )
    return Split(train, test, "toy", provenance={"protocol": "toy split", "owner": "the toy lab"})


register_dataset(
    DatasetSpec(
        name="toy",
        file="",
        url="",
        sha256="",
        owner="the toy lab",
        terms="free for all",
        label_names={1: "hexa", 2: "ennea"},
        reader=read_toy,
    )
)


@register(
    "half_mean",
    description="half of the average training image",
    order=50,
    fast_params={},
    tunable={"brightness": "brightness"},
    stages="nothing -> half an image",
)
class HalfMean(Reconstructor):
    def __init__(self, brightness=0.5):
        self.brightness = brightness

    def _fit(self, train, options):
        self.image_ = train.images.mean(0)

    def _reconstruct(self, fmri):
        return np.repeat(self.brightness * self.image_[None], len(fmri), 0)
"""

ENTRY_POINTS = """
[digit69.models]
half_mean = toy_plugin:HalfMean
[digit69.datasets]
toy = toy_plugin:read_toy
[digit69.metrics]
shared_ink = toy_plugin:shared_ink
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    "A folder that holds an installed package with entry points."
    folder = tmp_path_factory.mktemp("site")
    (folder / "toy_plugin.py").write_text(PLUGIN)
    info = folder / "toy_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return folder


def run_python(plugin, script, *words):
    "Run a script in a process of its own, with the plugin installed."
    paths = [str(plugin), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", script, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def digit69_with_plugin(plugin, *words):
    "Run the command line with the plugin installed; returns what it printed."
    return run_python(
        plugin, "import sys; from digit69.cli import main; sys.exit(main())", *words
    )


@pytest.fixture(scope="module")
def run(plugin, tmp_path_factory):
    "A run of the plugin's model on the plugin's data: (folder, what the terminal said)."
    folder = tmp_path_factory.mktemp("runs") / "toy"
    said = digit69_with_plugin(
        plugin,
        "run",
        "--data",
        "toy",
        "--models",
        "half_mean",
        "--preset",
        "smoke",
        "--out",
        folder,
    )
    return folder, said


def test_the_run_holds_them(run):
    folder, _ = run
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["data"]["name"] == "toy"
    assert {"missing_ink", "shared_ink"} <= set(metrics["models"]["half_mean"])


def test_the_terminal_shows_them(run):
    _, said = run
    assert "half_mean" in said
    assert "missing ink" in said
    assert "shared ink" in said


@pytest.mark.parametrize("file", ["reports/evaluate.html", "MODEL_CARD.md"])
def test_report_and_card_show_them(run, file):
    folder, _ = run
    text = (folder / file).read_text()
    for word in ("half_mean", "missing ink", "shared ink", "toy"):
        assert word in text, word


def test_the_direction_of_a_metric_is_told(run):
    folder, _ = run
    text = (folder / "reports/evaluate.html").read_text()
    assert "missing ink (lower is better)" in text
    assert "shared ink (lower is better)" not in text


def test_bench_measures_the_model_unasked_and_shows_the_metrics(plugin, tmp_path):
    said = digit69_with_plugin(
        plugin,
        "bench",
        "--data",
        "toy",
        "--models",
        "half_mean",
        "--preset",
        "smoke",
        "--out",
        tmp_path / "b",
    )
    assert "half_mean" in said
    assert "missing ink" in said
    unasked = run_python(
        plugin, "from digit69.bench import default_models; print(default_models())"
    )
    assert "half_mean" in unasked


def test_the_explorer_shows_them(plugin, run):
    folder, _ = run
    script = """
import sys
from digit69.explore import Explorer
page = Explorer(sys.argv[1])
page.controls["model"].value = "half_mean"
print(*(part.value for part in page.parts.values()))
"""
    page = run_python(plugin, script, folder)
    for word in ("half_mean", "missing ink", "shared ink", "hexa"):
        assert word in page, word


def test_completion_and_the_list_of_data_know_them(plugin):
    script = "from digit69.cli_options import complete_models, complete_spec; "
    offers = run_python(plugin, script + "print(complete_models('half'), complete_spec('to'))")
    assert "half_mean" in offers
    assert "toy" in offers
    assert "the toy lab" in digit69_with_plugin(plugin, "data", "list")


def test_nulls_learning_curves_and_differences_hold_the_metrics(plugin, tmp_path):
    folder = Path(tmp_path) / "cv"
    digit69_with_plugin(
        plugin,
        "crossval",
        "--data",
        "toy",
        "--models",
        "half_mean",
        "--folds",
        "3",
        "--null",
        "3",
        "--out",
        folder,
    )
    null = json.loads((folder / "null.json").read_text())["models"]
    assert {"missing_ink", "shared_ink"} <= set(null["ridge"]["scores"])
    differences = json.loads((folder / "differences.json").read_text())["models"]
    assert {"missing_ink", "shared_ink"} <= set(differences["half_mean"])
    page = (folder / "reports" / "crossval.html").read_text()
    assert "missing ink" in page
