"""Report notebooks: whose Python runs them, what they can be told, and the page of a training."""

import json

import nbformat
import papermill
import pytest
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager

from digit69 import report
from digit69.cli import main
from digit69.core import DataError
from digit69.evaluation import run_models
from digit69.models.base import load_model
from digit69.report import (
    OwnKernelManager,
    check_kernel,
    report_folder,
    report_notebook,
    run_notebook,
)
from digit69.report_parameters import assigned_names
from digit69.runs import load_run

NOTEBOOKS = sorted(file.stem for file in report_folder().glob("*.ipynb"))


def digit69_here(*words):
    "The command line inside this process; returns its exit code."
    return main([str(word) for word in (*words, "--quiet")])


def by_hand(name, file, /, **parameters):
    "Run a report as `papermill -p` does, on this interpreter's kernel; returns the executed notebook."
    source = str(report_notebook(name))
    how = {"progress_bar": False, "kernel_manager_class": OwnKernelManager}
    return papermill.execute_notebook(source, str(file), parameters, **how)


@pytest.fixture
def foreign_python3(tmp_path, monkeypatch):
    "A kernel called python3 that comes first on Jupyter's path and runs nothing."
    folder = tmp_path / "foreign" / "kernels" / "python3"
    folder.mkdir(parents=True)
    spec = {"argv": ["false"], "display_name": "foreign", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "foreign"))
    assert KernelSpecManager().get_kernel_spec("python3").argv == ["false"]


@pytest.fixture
def no_kernel(monkeypatch):
    "An interpreter whose kernels die at once."
    broken = KernelSpec(argv=["false"], display_name="broken", language="python")
    monkeypatch.setattr(OwnKernelManager, "kernel_spec", broken)
    check_kernel.cache_clear()
    yield
    check_kernel.cache_clear()


# --- whose Python -----------------------------------------------------------------------------------------


def test_a_foreign_kernel_first_on_the_path_is_not_used(foreign_python3, small_file, tmp_path):
    check_kernel.cache_clear()
    check_kernel()
    page = run_notebook("quality", tmp_path / "reports", data=small_file)
    assert "training and" in page.read_text()


@pytest.mark.parametrize("command", ["run", "train", "crossval"])
def test_without_a_kernel_nothing_is_fitted(command, no_kernel, small_file, tmp_path, capsys):
    option = "--model" if command == "train" else "--models"
    out = tmp_path / "out"
    assert digit69_here(command, "--data", small_file, option, "ridge", "--out", out) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "no Jupyter kernel starts" in line
    assert not out.exists()


@pytest.fixture
def deadly_reports(tmp_path, monkeypatch):
    "Report notebooks whose kernel is killed in the middle."
    folder = tmp_path / "deadly"
    folder.mkdir()
    for name in NOTEBOOKS:
        notebook = nbformat.read(report_notebook(name), 4)
        kill = nbformat.v4.new_code_cell(
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
        )
        notebook.cells[3:] = [kill]
        nbformat.write(notebook, folder / f"{name}.ipynb")
    monkeypatch.setattr(report, "report_folder", lambda: folder)


@pytest.mark.parametrize("command", ["run", "train", "crossval"])
def test_a_kernel_that_dies_costs_the_page_only(
    command, deadly_reports, small_file, tmp_path, capsys
):
    option = "--model" if command == "train" else "--models"
    out = tmp_path / "out"
    words = (command, "--data", small_file, option, "ridge", "--out", out)
    assert digit69_here(*words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "was killed" in line and "are kept" in line
    if command == "train":
        assert load_model(out).name == "ridge"
    else:
        assert load_run(out).metrics["models"]["ridge"]["pcc"]["mean"] > 0
        assert f"digit69 report {out}" in line


# --- what they can be told --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_cell_below_the_parameters_checks_their_names(name):
    cells = [
        cell for cell in nbformat.read(report_notebook(name), 4).cells if cell.cell_type == "code"
    ]
    assert cells[0].metadata.tags == ["parameters"]
    assert assigned_names(cells[0].source)
    assert "check_injected()" in cells[1].source


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_an_unknown_name_is_refused_before_anything_runs(name, tmp_path):
    with pytest.raises(DataError, match="no parameter modle: choose from"):
        run_notebook(name, tmp_path, modle="ldm")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_an_unknown_name_stops_papermill_in_the_first_cell(name, tmp_path):
    with pytest.raises(
        papermill.PapermillExecutionError, match="no parameter modle: choose from"
    ):
        by_hand(name, tmp_path / "out.ipynb", modle="ldm")
    executed = nbformat.read(tmp_path / "out.ipynb", 4).cells
    run = [cell for cell in executed if cell.cell_type == "code" and cell.execution_count]
    assert "check_injected()" in run[-1].source


@pytest.mark.parametrize(
    "name, wrong",
    [
        ("train", {"seed": "abc"}),
        ("train", {"prior_size": 0}),
        ("train", {"model": "rigde"}),
        ("evaluate", {"run": "a", "data": "simulated"}),
        ("evaluate", {"seed": -1}),
        ("quality", {"seed": 0.5}),
        ("crossval", {"run": 7}),
        ("compare", {"runs": "a,b"}),
        ("explore", {"run": "nowhere"}),
    ],
)
def test_a_wrong_value_is_one_line(name, wrong, tmp_path):
    with pytest.raises(papermill.PapermillExecutionError) as failed:
        by_hand(name, tmp_path / "out.ipynb", **wrong)
    assert failed.value.ename in ("DataError", "ModelError")
    assert len(failed.value.traceback) == 1, "a traceback is shown"


def test_the_page_of_folds_refuses_a_run_without_folds(small_split, tmp_path):
    run_models(small_split, ["ridge"], tmp_path / "run")
    with pytest.raises(papermill.PapermillExecutionError, match="holds no folds"):
        by_hand("crossval", tmp_path / "out.ipynb", run=str(tmp_path / "run"))


def test_runs_with_commas_are_compared(small_split, tmp_path):
    for seed, name in enumerate(("first", "second")):
        run_models(small_split, ["ridge"], tmp_path / name, seed=seed)
    executed = by_hand(
        "compare", tmp_path / "o.ipynb", runs=f"{tmp_path}/first,{tmp_path}/second"
    )
    text = json.dumps(executed)
    assert "first" in text and "second" in text


def test_evaluate_fits_what_it_is_told(small_file, tmp_path):
    words = {"data": str(small_file), "models": "mean,ridge", "preset": "smoke"}
    by_hand("evaluate", tmp_path / "o.ipynb", **words, out=str(tmp_path / "run"))
    run = load_run(tmp_path / "run")
    assert list(run.metrics["models"]) == ["mean", "class_mean", "ridge"]
    assert run.manifest["status"] == "done" and (run.folder / "audit.json").is_file()


# --- the page of a training -------------------------------------------------------------------------------


def test_training_by_hand_takes_hyper_parameters_as_text(small_file, tmp_path):
    out = tmp_path / "regression"
    words = {"data": str(small_file), "model": "regression", "preset": "smoke", "out": str(out)}
    by_hand("train", tmp_path / "o.ipynb", **words, params="{optim_steps: 4}", resume="false")
    assert json.loads((out / "model.json").read_text())["params"]["optim_steps"] == 4
    assert len(json.loads((out / "history.json").read_text())["loss"]) == 4
    assert (out / "figures" / "enhanced_training_curves.png").is_file()
    assert list((out / "training").glob("*_samples_epoch_*.png"))
    assert list(load_run(out).metrics["models"]) == ["mean", "class_mean", "ridge", "regression"]


def test_train_ends_with_its_page(small_file, tmp_path, capsys):
    out = tmp_path / "regression"
    words = ("--data", small_file, "--model", "regression", "--preset", "smoke", "--out", out)
    assert digit69_here("train", *words) == 0
    page = out / "reports" / "train.html"
    assert f"report: {page}" in capsys.readouterr().out
    text = page.read_text()
    for words in ("fMRI encoder", "held-out", "After step", "class_mean"):
        assert words in text


def test_a_model_without_steps_says_so(small_file, tmp_path):
    assert (
        digit69_here("train", "--data", small_file, "--model", "ridge", "--out", tmp_path / "r")
        == 0
    )
    assert "has no curves" in (tmp_path / "r" / "reports" / "train.html").read_text()


def test_rows_without_images_are_not_scored(small_split, tmp_path):
    from digit69.data import Split
    from digit69.readers import write_split

    blind = Split(small_split.train, small_split.test.blind(), "blind")
    file = write_split(blind, tmp_path / "blind.npz")
    assert digit69_here("train", "--data", file, "--model", "ridge", "--out", tmp_path / "r") == 0
    assert "Not scored" in (tmp_path / "r" / "reports" / "train.html").read_text()
