"""Rows unlike those a model was trained on are answered with a warning, on the screen and in the file."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from digit69.data import Split
from digit69.manifest import checkout
from digit69.models.base import load_model
from digit69.models.registry import available_models
from digit69.new_rows import remember_rows
from digit69.readers import read_split, write_split
from digit69.simulation import simulate

CASES = (checkout() or Path.cwd()).parent / "shared" / "cases"

FAR_OUT = {
    "raw counts": lambda x: 100 * x + 10000,
    "times 5": lambda x: 5 * x,
    "an offset of every voxel": lambda x: x + 10,
    "one bad voxel in ten": lambda x: np.where(np.arange(x.shape[1]) % 10 == 0, 1000, x),
}
TOO_NEAR = {  # to zero: a single row of these may lie where training rows do, several do not
    "a thousandth": lambda x: x / 1000,
    "a unit of 1e-13": lambda x: x * 1e-13,
    "zeros": lambda x: 0 * x,
}
CHANGES = FAR_OUT | TOO_NEAR


def has_no_warning(known, rows):
    together = not known.check(rows).warning
    return together and not any(known.check(row[None]).warning for row in rows)


# ---- ordinary held-out rows pass


@pytest.mark.parametrize("name", ["digits_file", "miyawaki_file"])
@pytest.mark.parametrize("n_parts", [2, 5])
def test_held_out_rows_of_real_data_pass(name, n_parts, request):
    split = read_split(request.getfixturevalue(name))
    rows = np.concatenate([split.train.fmri, split.test.fmri])
    ways = {
        "random": np.random.default_rng(0).permutation(len(rows)) % n_parts,
        "in order": np.arange(len(rows)) * n_parts // len(rows),
    }
    if split.train.labels is not None:
        ways["by class"] = np.concatenate([split.train.labels, split.test.labels])
    for part in ways.values():
        for left_out in np.unique(part):
            known = remember_rows(rows[part != left_out])
            assert has_no_warning(known, rows[part == left_out])


@pytest.mark.parametrize("sizes", [(90, 10, 1000), (24, 6, 80), (12, 6, 40), (8, 6, 40)])
@pytest.mark.parametrize("seed", range(3))
def test_simulated_rows_pass(sizes, seed):
    split = simulate(*sizes, seed=seed)
    assert has_no_warning(remember_rows(split.train.fmri), split.test.fmri)


# ---- strange ones do not


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_rows_of_another_kind_are_all_named(change, small_split):
    rows = change(small_split.test.fmri).astype(np.float32)
    check = remember_rows(small_split.train.fmri).check(rows)
    assert check.strange.all()
    assert "not to be trusted" in check.warning and "\n" not in check.warning


@pytest.mark.parametrize("change", FAR_OUT.values(), ids=FAR_OUT)
def test_one_row_alone_is_enough(change, small_split):
    row = change(small_split.test.fmri[:1]).astype(np.float32)
    assert remember_rows(small_split.train.fmri).check(row).warning


def test_the_case_of_unscaled_rows():
    if not CASES.is_dir():
        pytest.skip("the cases are not in ../shared/cases")
    with np.load(CASES / "base.npz") as base, np.load(CASES / "unscaled.npz") as new:
        known = remember_rows(base["fmriTrn"])
        assert has_no_warning(known, base["fmriTest"])
        assert known.check(new["fmriTest"]).strange.all()


# ---- what a model folder carries


@pytest.mark.parametrize("name", available_models())
def test_every_saved_model_knows_its_training_rows(name, fitted_model, small_split, tmp_path):
    model = fitted_model(name)
    again = load_model(model.save(tmp_path / name))
    assert again.n_parameters == model.n_parameters
    assert has_no_warning(again.training_rows, small_split.test.fmri)
    assert again.check_new_rows(small_split.test.fmri * 100).strange.all()


# ---- commands


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small_split, fitted_model):
    """A model, and files of ordinary and of strange rows."""
    folder = tmp_path_factory.mktemp("rows")
    fitted_model("ridge").save(folder / "ridge")
    np.savez(folder / "ordinary.npz", fmriTest=small_split.test.fmri)
    np.savez(folder / "strange.npz", fmriTest=100 * small_split.test.fmri + 10000)
    strange_test = replace(small_split.test, fmri=100 * small_split.test.fmri + 10000)
    write_split(Split(small_split.train, strange_test, "strange"), folder / "strange.mat")
    return folder


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_reconstruct_warns_and_writes_it_down(folder, digit69, tmp_path, quiet):
    said = {}
    for kind in ("ordinary", "strange"):
        out = tmp_path / f"{kind}_recon.npz"
        data = folder / f"{kind}.npz"
        done = digit69(
            "reconstruct", "--model", folder / "ridge", "--data", data, "--out", out, *quiet
        )
        assert done.returncode == 0, done.stderr
        said[kind] = [line for line in done.stderr.splitlines() if "warning" in line]
        with np.load(out) as arrays:
            assert arrays["reconstructions"].shape == (6, 28, 28)
            assert arrays["row_strange"].all() == (kind == "strange")
            assert ("row_warning" in arrays.files) == (kind == "strange")
    assert len(said["ordinary"]) == 0
    assert len(said["strange"]) == 1 and "6 of 6 rows lie far" in said["strange"][0]


def test_run_warns_and_writes_it_into_the_manifest(folder, digit69, tmp_path):
    words = ["--models", "ridge", "--preset", "smoke", "--out", tmp_path / "run"]
    done = digit69("run", "--data", folder / "strange.mat", *words)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("6 of 6 rows lie far") == 1
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["test_rows"]["strange"] == 6
    assert "6 of 6 rows lie far" in (tmp_path / "run" / "reports" / "evaluate.html").read_text()
