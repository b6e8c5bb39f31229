"""What a newcomer meets first: a short README, names at the top of the package, model folders that say how
they are used, errors that name the command to run, and an environment that is never deleted by mistake."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import digit69
from digit69.core import DataError, ModelError
from digit69.models.base import save_model
from digit69.simulation import simulate

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def split():
    return simulate(n_train=20, n_test=4, n_voxels=30)


@pytest.fixture(scope="module")
def run_folder(split, tmp_path_factory):
    """A run folder with two saved models."""
    folder = tmp_path_factory.mktemp("first")
    for name in ("mean", "ridge"):
        save_model(digit69.make_model(name).fit(split.train), folder / "models" / name)
    return folder


# --- the package and its models -----------------------------------------------------------------------------


def test_the_package_is_imported_without_anything_heavy():
    program = "import sys, digit69; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_model_of_a_run_folder_is_loaded_by_name(run_folder, split):
    model = digit69.load(run_folder, "ridge")
    same = digit69.load(run_folder / "models" / "ridge")
    assert np.array_equal(model.reconstruct(split.test.fmri), same.reconstruct(split.test.fmri))


@pytest.mark.parametrize("name", [None, "ldm"])
def test_a_run_folder_in_place_of_a_model_is_answered_with_its_models(run_folder, name):
    with pytest.raises(ModelError, match="choose mean, ridge") as error:
        digit69.load(run_folder, name)
    assert "\n" not in str(error.value)


def test_the_lines_on_a_model_card_run(run_folder, split, monkeypatch):
    card = (run_folder / "models" / "ridge" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert str(run_folder) not in card
    [lines] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(run_folder / "models")
    names = {"fmri": split.test.fmri}
    exec(lines, names)
    assert names["digits"].shape == (4, 28, 28)


def test_reconstruct_offers_the_models_of_a_run(digit69, run_folder, tmp_path):
    done = digit69(
        "reconstruct", "--model", run_folder, "--data", "simulated", "--out", tmp_path / "new.npz"
    )
    assert done.returncode == 2
    assert "choose mean, ridge" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_missing_embeddings_file_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(DataError, match="digit69 embed --data auto --out"):
        digit69.Digit69BaselineDataset(tmp_path / "digit69_embeddings.pkl", "test")


# --- the shelf ----------------------------------------------------------------------------------------------


def test_the_readme_fits_on_two_screens():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 95
    rows = [line for line in lines if re.match(r"\| `\w", line)]
    assert len(rows) <= 8


def test_every_link_of_the_readme_leads_to_a_file():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert [link for link in links if "://" not in link and not (ROOT / link).is_file()] == []


def setup_environment(venv):
    """What `make` does for an environment, with a Python that would make none."""
    command = ["bash", ROOT / ".ci" / "setup", "false", venv]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def marked_folder(folder, mark):
    """A folder that looks like an environment, with somebody's work in it."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    (folder / "work.txt").write_text("mine", encoding="utf-8")
    if mark is not None:
        (folder / ".made-by").write_text(mark, encoding="utf-8")
    return folder


@pytest.mark.parametrize("mark", [None, "/elsewhere\n", f"{ROOT}\n", f"{ROOT}\n/the/original\n"])
def test_an_environment_of_others_or_a_copy_of_ours_is_kept(mark, tmp_path):
    venv = marked_folder(tmp_path / "venv", mark)
    done = setup_environment(venv)
    assert done.returncode == 0
    assert "used as it is" in done.stderr
    assert (venv / "work.txt").is_file()


def test_a_folder_that_is_no_environment_is_refused_and_kept(tmp_path):
    (tmp_path / "work.txt").write_text("mine", encoding="utf-8")
    done = setup_environment(tmp_path)
    assert done.returncode == 2
    assert "left as it is" in done.stderr
    assert (tmp_path / "work.txt").is_file()


def test_only_a_folder_with_our_own_mark_counts_as_ours(tmp_path):
    venv = marked_folder(tmp_path / "venv", None)
    made_here = ["bash", ROOT / ".ci" / "made_here"]
    assert subprocess.run([*made_here, venv]).returncode == 1
    (venv / ".made-by").write_text(f"{ROOT}\n{venv.resolve()}\n", encoding="utf-8")
    assert subprocess.run([*made_here, venv]).returncode == 0
    (tmp_path / "link").symlink_to(venv)
    assert subprocess.run([*made_here, tmp_path / "link"]).returncode == 1
