"""The small inputs of shared/cases, each a fault that somebody met, and what is wanted of it now."""

import os
from pathlib import Path

import numpy as np
import pytest

from digit69.cli import main
from digit69.core import DataError
from digit69.data_spec import parse_spec
from digit69.datasets import load_dataset
from digit69.files import read_json
from digit69.manifest import checkout
from digit69.readers import read_split
from digit69.splits import default_protocol, make_folds


def cases_folder():
    folders = [Path(os.environ["DIGIT69_CASES"])] if "DIGIT69_CASES" in os.environ else []
    folders += [checkout().parent / "shared" / "cases"] if checkout() else []
    return next((folder for folder in folders if folder.is_dir()), None)


def case(name, query=""):
    folder = cases_folder()
    if folder is None or not (folder / name).is_file():
        pytest.skip(f"{name} is neither in $DIGIT69_CASES nor in ../shared/cases")
    return f"{folder / name}{query}"


def load_case(name, query=""):
    path, reading = parse_spec(case(name, query))
    return read_split(path, reading=reading)


def remarks_of(name, query=""):
    return " | ".join(load_case(name, query).provenance["remarks"])


@pytest.mark.parametrize(
    "name", ["sparse.mat", "struct.mat", "cell.mat", "stack.mat", "nchw.npz", "rgb.npz"]
)
def test_the_same_data_in_other_wrappings(name):
    base, wrapped = load_case("base.npz"), load_case(name)
    assert np.array_equal(wrapped.train.fmri, base.train.fmri)
    assert np.array_equal(wrapped.train.labels, base.train.labels)
    assert np.abs(wrapped.train.images - base.train.images).max() < 0.01


def test_labels_as_text_are_classes():
    base, words = load_case("base.npz"), load_case("charlab.mat")
    same = words.train.labels[:, None] == words.train.labels
    assert np.array_equal(same, base.train.labels[:, None] == base.train.labels)
    assert "nine" in remarks_of("charlab.mat")
    assert words.test.labels is None  # numbers: they cannot be compared with words


@pytest.mark.parametrize("name", ["v73.mat", "v73.h5", "v73_noheader.mat"])
def test_hdf5_without_contents_is_named(name):
    with pytest.raises(DataError, match="not a readable HDF5 file"):
        load_case(name)


def test_a_voxel_without_numbers_is_named_and_can_be_left_out():
    with pytest.raises(DataError, match=r"1 of 200 voxels \(7\).*--drop-bad-voxels"):
        load_case("nanvoxel.npz")
    assert load_case("nanvoxel.npz", "?drop_bad_voxels=yes").train.n_voxels == 199


@pytest.mark.parametrize("name", ["singleton.npz", "manyclass.npz"])
def test_classes_that_cannot_be_balanced_are_not(name):
    data = load_case(name).pooled()
    folds = make_folds(data, "kfold", 5)
    assert folds[0].provenance["protocol"] == "5-fold x 1"


def test_one_hot_labels_are_the_classes_they_stand_for():
    assert np.array_equal(
        load_case("onehot.npz").train.labels, load_case("base.npz").train.labels
    )


def test_labels_without_a_number_are_named():
    with pytest.raises(DataError, match="labelTrn has no number in 5 of 60 rows"):
        load_case("nanlab.npz")


@pytest.mark.parametrize("name", ["runs.npz", "conditions.npz"])
def test_run_numbers_are_no_classes(name):
    split = load_case(name)
    assert split.train.labels is None
    assert split.train.groups is not None
    assert "read as sessions, not classes" in remarks_of(name)


def test_sessions_are_groups_and_decide_the_protocol():
    split = load_case("sessions.npz")
    assert len(np.unique(split.train.groups)) == 4
    assert default_protocol(split.pooled()) == "leave-run-out"
    for fold in make_folds(split.pooled(), "leave-run-out", 4):
        assert set(fold.train.groups).isdisjoint(fold.test.groups)
    assert "run not used" in remarks_of("sessions.npz")


def test_sessions_of_another_scale_are_brought_to_one():
    scaled = load_case("sessions.npz", "?scale_per_group=yes").pooled()
    for session in np.unique(scaled.groups):
        rows = scaled.fmri[scaled.groups == session]
        assert np.abs(rows.mean(0)).max() < 1e-4


def test_small_pictures_are_enlarged_and_that_is_said():
    split = load_case("s10.npz")
    assert split.train.images.shape == (60, 28, 28)
    assert "10x10 pixels enlarged to 28x28" in remarks_of("s10.npz")


def test_mirrored_digits_are_noticed_and_can_be_set_right():
    warned = load_dataset(case("rowmajor.npz")).provenance["remarks"]
    assert any("look mirrored" in remark for remark in warned)
    right = load_dataset(case("rowmajor.npz", "?order=rows"))
    assert np.array_equal(right.train.images, load_case("base.npz").train.images)
    assert not any("look mirrored" in remark for remark in right.provenance["remarks"])


def test_other_names_are_listed_and_can_be_mapped():
    with pytest.raises(DataError, match="it holds X_train 60x200.*--keys"):
        load_case("keys.npz")
    keys = "?keys=fmriTrn=X_train,stimTrn=Y_train,fmriTest=X_test"
    assert np.array_equal(
        load_case("keys.npz", keys).train.fmri, load_case("base.npz").train.fmri
    )
    with pytest.raises(DataError, match="lacks fmriTrn, stimTrn; it holds fmriTrain"):
        load_case("keycase.npz")


def test_options_of_the_command_line_reach_the_reader(tmp_path, capsys):
    words = [
        "run",
        "--data",
        case("keys.npz"),
        "--models",
        "mean",
        "--out",
        str(tmp_path / "run"),
    ]
    keys = "fmriTrn=X_train,stimTrn=Y_train,fmriTest=X_test"
    assert main([*words, "--keys", keys]) == 0
    manifest = read_json(tmp_path / "run" / "manifest.json")
    assert manifest["spec"].endswith(f"?keys={keys}")
    assert main([*words[:-1], str(tmp_path / "other"), "--keys", "fmriTrn=nothing"]) == 2
    assert "holds no nothing" in capsys.readouterr().err
