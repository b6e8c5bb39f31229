"""A bdpy file becomes a data file by one command; nothing but voxels is decoded, no picture is guessed."""

import sys

import h5py
import numpy as np
import pytest

from digit69.cli import main
from digit69.datasets import load_dataset
from digit69.simulation import simulate

N_VOXELS = 40


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    "A simulated subject as a bdpy file: three runs, pictures numbered from 1."
    folder = tmp_path_factory.mktemp("bdpy")
    data = simulate(n_train=30, n_test=6, n_voxels=N_VOXELS).pooled()
    runs = np.arange(36) % 3 + 1
    table = np.column_stack([data.fmri, runs, np.arange(36) + 1])
    value = np.full((4, N_VOXELS + 2), np.nan)
    value[:2, :N_VOXELS] = 1
    value[2, -2] = value[3, -1] = 1
    with h5py.File(folder / "subject.h5", "w") as file:
        file["dataset"] = table
        file["metadata/key"] = [b"VoxelData", b"ROI_VC", b"Run", b"image_index"]
        file["metadata/description"] = [b""] * 4
        file["metadata/value"] = value
    np.save(folder / "pictures.npy", data.images)
    return folder, data


def command(folder, out, **changes):
    words = {
        "bdata": folder / "subject.h5",
        "select": "ROI_VC",
        "labels": "image_index",
        "stimuli": folder / "pictures.npy",
        "out": out,
    } | changes
    options = [(f"--{key.replace('_', '-')}", str(value)) for key, value in words.items()]
    return ["data", "import", *[word for option in options for word in option]]


def test_rows_pictures_and_runs_are_those_of_the_table(subject, tmp_path):
    pytest.importorskip("bdpy", reason="bdpy is not installed")
    folder, data = subject
    assert main(command(folder, tmp_path / "subject.npz", test_runs=2)) == 0
    split = load_dataset(tmp_path / "subject.npz")
    assert np.allclose(split.test.fmri, data.fmri[1::3], atol=1e-6)
    assert np.array_equal(split.test.images, data.images[1::3])
    assert len(np.unique(split.train.groups)) == 2
    assert not any("ignored" in remark for remark in split.provenance["remarks"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"select": "ROI_V9"}, "there are ROI_VC"),
        ({"select": "ROI_VC | image_index"}, "takes image_index"),
        ({"labels": "picture"}, "no such column"),
        ({"runs": "Session"}, "no such column"),
        ({"test_runs": "1,2,3"}, "some, not all"),
        ({"count_from": 0}, "cannot count from 0"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(subject, tmp_path, capsys, changes, message):
    pytest.importorskip("bdpy", reason="bdpy is not installed")
    assert main(command(subject[0], tmp_path / "subject.npz", **changes)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_without_bdpy_one_line_says_how_to_get_it(subject, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "bdpy", None)
    assert main(command(subject[0], tmp_path / "subject.npz")) == 2
    error = capsys.readouterr().err
    assert "pip install 'digit69[bdpy]'" in error and error.count("\n") == 1


def test_a_bdpy_file_given_as_data_names_the_import(subject, tmp_path, capsys):
    words = ["run", "--data", str(subject[0] / "subject.h5"), "--models", "mean"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "digit69 data import --bdata" in error and error.count("\n") == 1
