"""Result files come from run folders, and a stored table that does not match its result file is found."""

import json
import shlex

import pytest

from ci_scripts import code_cell, load_script, write_notebook
from digit69.models.settings import flatten_settings, parse_settings

results = load_script("results")

SOURCE = """#| results
#| hide_input
import json
from pathlib import Path
from IPython.display import Markdown
models = json.loads(Path("results/demo.json").read_text())["models"]
Markdown("\\n".join(f"| {name} | {scores['pcc']['mean']} |" for name, scores in models.items()))"""


@pytest.fixture
def run_folder(tmp_path):
    """A scored run folder with one model."""
    folder = tmp_path / "runs" / "first"
    folder.mkdir(parents=True)
    data = {"name": "digit69_dev", "n_test": 10, "protocol": "the split of the file"}
    scores = {"pcc": {"mean": 0.56423312, "lo": 0.5, "hi": 0.616119}, "n_parameters": 784}
    metrics = {"schema_version": 1, "data": data, "models": {"ridge": scores}}
    manifest = {"command": "run", "seed": 0, "preset": "quick", "models": ["ridge"]}
    manifest["source"] = "/home/me/data"
    manifest["identity"] = {"command": "run", "data": "d143", "seed": 0, "preset": "quick"}
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


@pytest.fixture
def book(tmp_path, run_folder):
    """A notebook whose table was made from the result file of that run."""
    results.write_results(run_folder, "demo", tmp_path)
    output = {"output_type": "execute_result", "data": {"text/markdown": ["| ridge | 0.5642 |"]}}
    write_notebook(
        tmp_path / "nbs" / "520_models.ldm.ipynb", code_cell(SOURCE, [output]), code_cell("1 / 0")
    )
    return tmp_path


def test_the_command_names_hyper_parameters(tmp_path, run_folder):
    file = run_folder / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    settings = {"ldm.optim_steps": 800, "ldm.scheduler": "ddim", "posterior.exponents": [1, 0.15]}
    manifest["set"] = manifest["identity"]["set"] = settings
    file.write_text(json.dumps(manifest), encoding="utf-8")
    command = json.loads(results.write_results(run_folder, "set", tmp_path).read_text())[
        "command"
    ]
    words = shlex.split(command)
    told = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    assert told == ["ldm.optim_steps=800", "ldm.scheduler=ddim", "posterior.exponents=[1,0.15]"]
    assert flatten_settings(parse_settings(told)) == {
        **settings,
        "posterior.exponents": (1, 0.15),
    }


def test_result_file_holds_what_a_table_needs(tmp_path, run_folder):
    content = json.loads(
        results.write_results(run_folder, "demo", tmp_path).read_text(encoding="utf-8")
    )
    assert content["models"]["ridge"]["pcc"]["mean"] == 0.5642
    assert content["models"]["ridge"]["n_parameters"] == 784
    assert content["n"] == 10
    assert content["protocol"] == "the split of the file"
    assert (
        content["command"]
        == "digit69 run --data digit69_dev --models ridge --preset quick --seed 0"
    )


def test_machine_paths_are_refused(tmp_path, run_folder):
    manifest = json.loads((run_folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["command_line"] = "digit69 run --data /home/me/digits.mat"
    (run_folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(SystemExit, match="machine paths"):
        results.write_results(run_folder, "demo", tmp_path)
    assert not (tmp_path / "nbs").exists()


def test_folder_without_scores_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="no scored run folder"):
        results.write_results(tmp_path, "demo", tmp_path)


def test_table_in_step_with_its_file(book):
    assert results.check_tables(book) == []
    assert results.check_tables(book, ["520_models.ldm"]) == []


def test_stale_table_is_found(book):
    file = book / "nbs" / "results" / "demo.json"
    file.write_text(
        file.read_text(encoding="utf-8").replace("0.5642", "0.6000"), encoding="utf-8"
    )
    [problem] = results.check_tables(book)
    assert problem.startswith("520_models.ldm.ipynb cell 0 is stale:")
    assert "-| ridge | 0.5642 |" in problem
    assert "+| ridge | 0.6 |" in problem


def test_cell_that_needs_other_cells_is_found(book):
    cells = [code_cell("x = 1"), code_cell("#| results\nprint(x)")]
    write_notebook(book / "nbs" / "610_other.ipynb", *cells)
    [problem] = results.check_tables(book, ["610_other"])
    assert "NameError" in problem
