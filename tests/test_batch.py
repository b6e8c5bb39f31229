"""A grid file speaks the words of the command line, and its comparison averages over seeds."""

import json

import pandas as pd
import pytest
import typer
import yaml

from digit69.batch import run_batch
from digit69.cli import app, main
from digit69.core import DataError, ModelError, set_quiet, set_threads
from digit69.files import write_text
from digit69.grid_file import COMMANDS, read_grid
from digit69.models.base import load_model
from digit69.readers import write_split
from digit69.simulation import simulate

set_threads(1)
set_quiet()
GROUP = typer.main.get_command(app)
OPTIONS_OF_BATCH = {"out", "jobs", "engine", "scheduler", "quiet", "device", "resume", "set"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return str(write_split(simulate(n_train=32, n_test=8, n_voxels=60), folder / "small.npz"))


def write_grid(folder, *blocks):
    return write_text(folder / "grid.yaml", yaml.safe_dump(list(blocks)))


@pytest.mark.parametrize("command", COMMANDS)
def test_keys_are_the_options_of_the_command(command):
    options = set()
    for parameter in GROUP.commands[command].params:
        names = [name for name in parameter.opts if name.startswith("--")]
        options |= {name.removeprefix("--").replace("-", "_") for name in names}
    assert options - {"help"} == {*COMMANDS[command]} | (OPTIONS_OF_BATCH & options)


@pytest.mark.parametrize("spell", [lambda key: key, lambda key: key.replace("-", "_")])
def test_both_spellings_mean_the_same(tmp_path, spell):
    fixed = {spell("learning-curve"): True, spell("prior-size"): 9, "models": "ridge"}
    [cell] = read_grid(write_grid(tmp_path, {"command": "crossval", "fixed": fixed}))
    assert cell.settings == {"learning_curve": True, "prior_size": 9, "models": ["ridge"]}


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"command": "run", "fixed": {"folds": 3}}, "run has no option folds: choose from"),
        ({"command": "run", "fixed": {"jobs": 3}}, "allow-overlap, set"),
        ({"command": "crossval", "fixed": {"folds": "ten"}}, "folds takes a whole number"),
        ({"command": "crossval", "grid": {"seed": [0, "one"]}}, "seed takes a whole number"),
        ({"command": "run", "fixed": {"models": "lmd"}}, "there is no model 'lmd'"),
        ({"command": "train"}, "train needs `model`"),
        (
            {"command": "run", "fixed": {"set": {"ldm.x": 3}}},
            "choose from embedding_preset=quick",
        ),
        ({"command": "run", "fixed": {"set": {"ldm.lr": 3}}}, "no combination has a model"),
        ({"command": "run", "fixed": {"set": 3}}, "no option set"),
        ({"command": "run", "grid": {"set": {"ridge.selection_rows": 3}}}, "lists of values"),
    ],
)
def test_a_mistake_is_said_in_one_line_before_any_work(block, message, tmp_path, capsys):
    grid = write_grid(tmp_path, block)
    assert main(["batch", str(grid), "--out", str(tmp_path / "out"), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_settings_are_varied_and_concern_their_model_only(tmp_path):
    grid = {"models": ["ridge", "ldm"], "set": {"ldm.batch": [4, 8]}}
    cells = read_grid(write_grid(tmp_path, {"command": "run", "grid": grid}))
    expected = {"run_models-ridge", "run_models-ldm_ldm.batch-4", "run_models-ldm_ldm.batch-8"}
    assert {cell.name for cell in cells} == expected


def test_the_command_line_sets_what_the_grid_leaves_open(tmp_path):
    block = {"command": "run", "fixed": {"models": "ldm", "set": {"ldm.batch": 4}}}
    [cell] = read_grid(write_grid(tmp_path, block), {"ldm": {"batch": 8, "lr": 0.1}})
    assert (cell.settings["ldm.batch"], cell.settings["ldm.lr"]) == (8, 0.1)
    with pytest.raises(ModelError, match="no combination has a model"):
        read_grid(write_grid(tmp_path, block), {"posterior": {"top_k": 8}})
    varying = {"command": "run", "fixed": {"models": "ldm"}, "grid": {"set": {"ldm.batch": [4]}}}
    with pytest.raises(DataError, match="leave out --set"):
        read_grid(write_grid(tmp_path, varying), {"ldm": {"batch": 8}})


def test_seeds_are_averaged_and_baselines_stand_once(data, tmp_path, no_pages, capsys):
    fixed = {"data": data, "models": "posterior", "preset": "smoke", "prior": "own"}
    file = write_grid(tmp_path, {"command": "run", "fixed": fixed, "grid": {"seed": [0, 1]}})
    words = ("--set", "posterior.top_k=16", "--out", str(tmp_path / "out"), "--quiet")
    assert main(["batch", str(file), *words]) == 0
    assert "mean ± standard deviation over seeds" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "out" / "comparison.csv")
    counts = table.model.value_counts()
    assert [counts[name] for name in ("mean", "class_mean", "ridge", "posterior")] == [1, 1, 1, 2]
    spread = pd.read_csv(tmp_path / "out" / "comparison_seeds.csv")
    assert list(spread.model) == ["mean", "class_mean", "ridge", "posterior"]
    assert list(spread.seeds) == [2] * 4
    scores = table[table.model == "posterior"].pcc
    row = spread[spread.model == "posterior"].iloc[0]
    assert row.settings == "posterior.top_k=16"
    assert row.pcc == pytest.approx(scores.mean(), abs=1e-5)
    assert row.pcc_sd == pytest.approx(scores.std(), abs=1e-5)


def test_models_are_trained_with_settings(data, tmp_path, no_pages):
    fixed = {"data": data, "model": "ridge"}
    block = {
        "command": "train",
        "fixed": fixed,
        "grid": {"set": {"ridge.selection_rows": [9, 20]}},
    }
    run_batch(write_grid(tmp_path, block), tmp_path / "out")
    for rows in (9, 20):
        folder = tmp_path / "out" / f"train_ridge.selection_rows-{rows}"
        assert load_model(folder).selection_rows == rows
        assert json.loads((folder / "cell.json").read_text())["task"] == "train"


def test_a_changed_setting_does_not_reuse_a_finished_run(data, tmp_path, no_pages, capsys):
    for rows, code in ((9, 0), (9, 0), (20, 2)):
        fixed = {"data": data, "models": "ridge", "set": {"ridge.selection_rows": rows}}
        grid = write_grid(tmp_path, {"command": "run", "fixed": fixed})
        assert main(["batch", str(grid), "--out", str(tmp_path / "out"), "--quiet"]) == code
    assert "different set" in capsys.readouterr().err
