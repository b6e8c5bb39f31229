"""A hyper-parameter set from outside reaches every fit, and a folder never mixes two settings."""

import json

import numpy as np
import pytest

from digit69.cli import main
from digit69.core import ModelError, set_quiet, set_threads
from digit69.crossval import cross_validate
from digit69.models.base import Reconstructor, load_model
from digit69.models.registry import MODELS, available_models, register
from digit69.models.settings import model_parameters, parse_settings
from digit69.readers import write_split
from digit69.simulation import simulate
from digit69.tasks import CheckConfig, Task, make_fast_variant
from digit69.training_run import train_to_folder

set_threads(1)
set_quiet()


@pytest.fixture(scope="module")
def split():
    return simulate(n_train=40, n_test=10, n_voxels=80)


@pytest.fixture(scope="module")
def file(split, tmp_path_factory):
    return write_split(split, tmp_path_factory.mktemp("data") / "small.npz")


def digit69(*words):
    return main([*map(str, words), "--quiet"])


def read(path):
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", available_models())
def test_defaults_of_every_model_are_values_that_it_takes(name):
    for parameter in model_parameters(name).values():
        word = f"{name}.{parameter.name}={json.dumps(parameter.default)}"
        assert parse_settings([word]) == {name: {parameter.name: parameter.default}}


@pytest.mark.parametrize("name", available_models())
def test_every_parameter_is_explained(name):
    clear_by_name = {"dropout", "optim_steps"}
    unexplained = {p.name for p in model_parameters(name).values() if not p.comment}
    assert unexplained <= clear_by_name


@pytest.mark.parametrize(
    ("words", "message"),
    {
        ("--set", "lmd.batch=3"): "there is no model 'lmd': choose from mean, class_mean, ridge",
        ("--set", "ldm.bach=3"): "choose from embedding_preset=quick",
        ("--set", "ldm.batch=many"): "ldm.batch takes a whole number such as 256, not 'many'",
        ("--set", "ldm.batch"): "write MODEL.PARAMETER=VALUE",
        ("--set", "batch=3"): "write MODEL.PARAMETER",
    }.items(),
)
@pytest.mark.parametrize("command", ["run", "crossval", "bench", "train"])
def test_a_mistake_is_said_in_one_line_before_any_work(command, words, message, tmp_path, capsys):
    model = ("--model", "ldm") if command == "train" else ("--models", "ldm")
    assert digit69(command, *model, *words, "--out", tmp_path / "none") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "none").exists()


def test_settings_of_a_model_that_is_not_asked_for_are_refused(file, tmp_path, capsys):
    words = ("run", "--data", file, "--models", "ridge", "--set", "ldm.batch=3")
    assert digit69(*words, "--out", tmp_path / "none") == 2
    assert "--set names ldm, which is not among the models" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_run_with_other_settings_needs_another_folder(file, tmp_path, no_pages, capsys):
    words, out = ("run", "--data", file, "--models", "ridge"), ("--out", tmp_path / "run")
    assert digit69(*words, "--set", "ridge.selection_rows=2e1", *out) == 0
    assert "set: ridge.selection_rows=20" in capsys.readouterr().out
    assert load_model(tmp_path / "run" / "models" / "ridge").selection_rows == 20
    assert read(tmp_path / "run" / "manifest.json")["set"] == {"ridge.selection_rows": 20}
    assert "ridge.selection_rows=20" in (tmp_path / "run" / "MODEL_CARD.md").read_text()
    for other in (("--set", "ridge.selection_rows=30"), ()):
        assert digit69(*words, *other, *out, "--resume") == 2
        assert "different set" in capsys.readouterr().err


def test_a_training_with_other_settings_needs_another_folder(file, tmp_path, capsys):
    words = ("train", "--data", file, "--model", "ridge", "--out", tmp_path / "model")
    assert digit69(*words, "--set", "ridge.alphas=[10, 100]") == 0
    assert load_model(tmp_path / "model").alphas == (10.0, 100.0)
    assert digit69(*words, "--resume") == 2
    assert "different set" in capsys.readouterr().err


def test_a_training_from_python_is_checked_too(split, tmp_path):
    with pytest.raises(ModelError, match="takes a whole number"):
        train_to_folder(split, "ridge", tmp_path / "m", params={"selection_rows": "some"})


class Witness(Reconstructor):
    """Answers with the grey level that it was told."""

    def __init__(self, grey: float = 0.5):  # its only one
        self.grey = grey

    def _fit(self, train, options):
        pass

    def _reconstruct(self, fmri):
        return np.full((len(fmri), 28, 28), self.grey)


@pytest.fixture
def witness(monkeypatch):
    available_models()
    monkeypatch.setattr(Witness, "name", "witness")
    register("witness", order=50, fast_params={})(Witness)
    yield
    del MODELS["witness"]


def greys(folder):
    "Grey levels in all fold files."
    levels = set()
    for file in (folder / "folds" / "witness").glob("*.npz"):
        with np.load(file) as arrays:
            levels |= set(np.unique(arrays["reconstructions"]).round(3).tolist())
    return levels


def test_kept_folds_of_other_settings_are_not_used(split, tmp_path, witness):
    data = split.pooled()
    for grey in (0.25, 0.75):
        params = {"witness": {"grey": grey}}
        cross_validate(data, ["witness"], tmp_path, n_splits=2, params=params)
        assert greys(tmp_path) == {grey}


def test_settings_reach_other_processes(split, tmp_path):
    params = {"ridge": {"alphas": (1e6,)}}
    answers = []
    for n_jobs, told in ((1, params), (2, params), (1, None)):
        out = tmp_path / f"{n_jobs}{bool(told)}"
        metrics = cross_validate(
            split.pooled(), ["ridge"], out, n_splits=2, n_jobs=n_jobs, params=told
        )
        answers.append(metrics["models"]["ridge"]["pcc"]["mean"])
    assert answers[0] == answers[1] != answers[2]


def test_repeated_checks_know_the_settings(split, tmp_path):
    params = {"ridge": {"selection_rows": 9}, "posterior": {"n_candidates": 9, "top_k": 9}}
    config = CheckConfig("kfold", 2, "smoke", params=params)
    plain = CheckConfig("kfold", 2, "smoke")
    assert config.fit("ridge", split.train).selection_rows == 9
    fast = make_fast_variant("posterior", params=params)
    assert (fast.n_candidates, fast.top_k) == (2000, 9)  # what makes it fast stays
    marks = {Task(len, "ridge", (known,)).fingerprint(tmp_path) for known in (config, plain)}
    assert len(marks) == 2
    marks = {Task(len, "mean", (known,)).fingerprint(tmp_path) for known in (config, plain)}
    assert len(marks) == 1  # the mean was told nothing


def test_models_are_listed_with_what_they_can_be_told(capsys):
    assert digit69_list() == 0
    text = capsys.readouterr().out
    assert all(name in text for name in available_models())
    assert digit69_list("ldm") == 0
    text = capsys.readouterr().out
    assert "embedding -> image" in text and "training steps" not in text
    assert [line for line in text.splitlines() if line.split()[:2] == ["optim_steps", "800"]]
    assert digit69_list("lmd") == 2


def digit69_list(*words):
    return main(["models", *words])
