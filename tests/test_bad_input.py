"""Bad input gets exit code 2, one line that says what to do, no traceback, and leaves nothing behind."""

import os
import resource

import numpy as np
import pytest
from scipy.io import savemat

from digit69.cli import main
from digit69.readers import split_to_arrays, write_split
from digit69.simulation import simulate
from digit69.training_run import train_to_folder


@pytest.fixture(scope="module")
def split():
    return simulate(n_train=12, n_test=4, n_voxels=30)


@pytest.fixture(scope="module")
def arrays(split):
    """A sound data file, as arrays."""
    return split_to_arrays(split)


def error_line(capsys, words):
    """The one line on standard error with which a command refuses its input."""
    capsys.readouterr()
    code = main([*map(str, words), "--quiet"])
    err = capsys.readouterr().err
    assert code == 2, err
    assert err.count("\n") == 1 and "Traceback" not in err, err
    return err


def assert_refused(capsys, tmp_path, words, message):
    """The command is refused with a message, and no output folder is made."""
    out = tmp_path / "out"
    assert message in error_line(capsys, [*words, "--out", out])
    assert not out.exists(), sorted(out.rglob("*"))


# ---- files with the right keys and wrong contents


def with_value(array, value):
    """A copy of an array with one value replaced."""
    array = array.astype(float).copy()
    array[1, 2] = value
    return array


ONE_OBJECT = np.array([{"a": 1}], object)
MATLAB_CELLS = np.array([[1, "a"], ["b", 2]], object)

# file name -> key of the spoilt array, how it is spoilt, what the message says
SPOILT = {
    "nan.mat": ("fmriTrn", lambda a: with_value(a, np.nan), "NaN or infinite"),
    "inf.npz": ("fmriTest", lambda a: with_value(a, np.inf), "NaN or infinite"),
    "nan_images.npz": ("stimTrn", lambda a: with_value(a, np.nan), "stimTrn holds 1 NaN"),
    "transposed.mat": ("fmriTrn", lambda a: a.T, "store fmriTrn.T"),
    "transposed_stimuli.npz": ("stimTrn", lambda a: a.T, "store stimTrn.T"),
    "too_few_rows.mat": ("stimTrn", lambda a: a[:5], "12 rows but there are 5 stimuli"),
    "other_voxels.npz": ("fmriTest", lambda a: a[:, :9], "must match"),
    "wrong_size.npz": ("stimTrn", lambda a: a[:, :101], "101 pixels make no square"),
    "too_bright.npz": ("stimTrn", lambda a: a.astype(float) * 100, "no unit of grey levels"),
    "labels.mat": ("labelTrn", lambda a: a[:3], "one value for each of 12 rows"),
    "objects.npz": ("fmriTrn", lambda a: ONE_OBJECT, "never loaded"),
    "cells.mat": ("fmriTrn", lambda a: MATLAB_CELLS, "store a plain numeric array"),
    "text.mat": ("fmriTrn", lambda a: np.array(["abc"]), "must be numbers (rows, voxels)"),
}


def write_arrays(path, arrays):
    """Write arrays as .mat or .npz, without the checks of the package."""
    if path.suffix == ".mat":
        savemat(path, arrays)
    else:
        np.savez(path, **arrays)


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_array_is_named(name, arrays, capsys, tmp_path):
    key, spoil, message = SPOILT[name]
    write_arrays(tmp_path / name, {**arrays, key: spoil(arrays[key])})
    assert_refused(capsys, tmp_path, ["run", "--data", tmp_path / name], message)


def test_missing_arrays_are_named(arrays, capsys, tmp_path):
    write_arrays(
        tmp_path / "no_stimuli.mat", {key: arrays[key] for key in ("fmriTrn", "fmriTest")}
    )
    assert_refused(
        capsys, tmp_path, ["run", "--data", tmp_path / "no_stimuli.mat"], "lacks stimTrn"
    )
    write_arrays(tmp_path / "other_keys.npz", {"x": arrays["fmriTrn"], "y": arrays["stimTrn"]})
    message = "lacks fmriTrn, stimTrn, fmriTest"
    assert_refused(capsys, tmp_path, ["run", "--data", tmp_path / "other_keys.npz"], message)


def test_an_empty_test_part_is_refused(arrays, capsys, tmp_path):
    empty = {key: array[:0] if key.endswith("Test") else array for key, array in arrays.items()}
    write_arrays(tmp_path / "empty.npz", empty)
    assert_refused(capsys, tmp_path, ["run", "--data", tmp_path / "empty.npz"], "at least 1")


# ---- files that are damaged, foreign or hostile


@pytest.mark.parametrize("ending", [".mat", ".npz"])
@pytest.mark.parametrize("fraction", [0, 0.01, 0.5, 0.99])
def test_truncated_files(ending, fraction, split, capsys, tmp_path):
    path = write_split(split, tmp_path / f"data{ending}")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    assert_refused(capsys, tmp_path, ["run", "--data", path], "readable")


FOREIGN = {
    "prose.mat": b"Dear reviewer",
    "prose.npz": b"Dear reviewer",
    "random.mat": bytes(range(256)) * 40,
    "data.csv": b"1,2",
    "hdf.mat": b"MATLAB 7.3 MAT-file" + b" " * 200,
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_formats(name, capsys, tmp_path):
    (tmp_path / name).write_bytes(FOREIGN[name])
    assert_refused(capsys, tmp_path, ["run", "--data", tmp_path / name], name)


def test_hostile_pickle_in_npz_runs_nothing(capsys, tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    np.savez(tmp_path / "hostile.npz", fmriTrn=np.array([Hostile()], object))
    assert_refused(capsys, tmp_path, ["run", "--data", tmp_path / "hostile.npz"], "never loaded")
    assert not (tmp_path / "ran").exists()


# ---- words on the command line


@pytest.mark.parametrize(
    "command,message",
    [
        ("run --data nowhere.mat", "does not exist"),
        ("run --data .", "folder"),
        ("run --data mnist", "no fMRI"),
        ("run --data simulated --models oracle", "there is no model 'oracle'"),
        ("run --data simulated --models ,", "names no model"),
        ("run --data simulated --preset huge", "smoke"),
        ("run --data simulated --seed -1", "--seed"),
        ("run --data simulated --device abacus", "not available"),
        ("train --data simulated --model oracle", "there is no model"),
        ("crossval --data simulated --folds 999", "choose 2 to 100"),
        ("crossval --data simulated --protocol guess", "there is no protocol"),
    ],
)
def test_wrong_words(command, message, capsys, tmp_path):
    assert_refused(capsys, tmp_path, command.split(), message)


# ---- places that cannot be written


def test_unwritable_out(capsys, tmp_path):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("in the way")
    for out in (in_the_way, in_the_way / "below", "/proc/digit69"):
        err = error_line(capsys, ["run", "--data", "simulated", "--out", out])
        assert "choose another --out" in err
    assert in_the_way.read_text() == "in the way"


def test_foreign_folder_is_left_alone(capsys, tmp_path):
    (tmp_path / "thesis.txt").write_text("three years of work")
    err = error_line(capsys, ["run", "--data", "simulated", "--out", tmp_path])
    assert "holds no digit69 run" in err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def small_files_only():
    """Let every file grow to 60 kB and no further: what a full disk does, without filling one."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))


def test_full_disk_leaves_nothing_half_written(digit69, tmp_path):
    out = tmp_path / "model"
    words = ["train", "--data", "simulated", "--model", "ridge", "--out", out, "--quiet"]
    done = digit69(*words, preexec_fn=small_files_only)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and "free some space" in done.stderr, done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json"]


# ---- models and reconstructions from outside


@pytest.fixture
def data_file(split, tmp_path):
    return write_split(split, tmp_path / "sim.npz")


@pytest.fixture
def model_folder(split, tmp_path):
    """A fitted ridge, saved."""
    train_to_folder(split, "ridge", tmp_path / "model")
    return tmp_path / "model"


def test_reconstruct_refuses_what_the_model_cannot_do(data_file, model_folder, capsys, tmp_path):
    command = ["reconstruct", "--model", model_folder, "--data"]
    recon_file = tmp_path / "recon.npz"
    more_voxels = write_split(
        simulate(n_train=12, n_test=4, n_voxels=31), tmp_path / "more_voxels.npz"
    )
    err = error_line(capsys, [*command, more_voxels, "--out", recon_file])
    assert "trained on 30 voxels, these rows have 31" in err
    err = error_line(capsys, [*command, data_file, "--out", tmp_path / "recon.txt"])
    assert "must end in .npz" in err
    err = error_line(capsys, [*command, data_file, "--out", recon_file, "--samples", 3])
    assert "leave out --samples" in err
    assert not recon_file.exists()


def test_damaged_models_are_refused(data_file, model_folder, capsys, tmp_path):
    recon_file = tmp_path / "recon.npz"
    command = ["reconstruct", "--model", model_folder, "--data", data_file, "--out", recon_file]
    (model_folder / "model.safetensors").write_bytes(b"\0" * 10)
    assert "missing or damaged" in error_line(capsys, command)
    (model_folder / "model.json").write_text('{"model": "os.system"}')
    assert "not a model card" in error_line(capsys, command)
    assert not recon_file.exists()


@pytest.mark.parametrize(
    "contents,message",
    [
        ({"reconstructions": np.full((4, 28, 28), 7.0)}, "must lie in [0, 1]"),
        ({"reconstructions": np.zeros((3, 28, 28))}, "3 reconstructions for 4"),
        ({"images": np.zeros((4, 28, 28))}, "'reconstructions'"),
        (None, "does not exist"),
    ],
)
def test_evaluate_refuses_reconstructions_that_do_not_fit(
    contents, message, data_file, capsys, tmp_path
):
    recon_file = tmp_path / "recon.npz"
    if contents is not None:
        np.savez(recon_file, **contents)
    words = [
        "evaluate",
        "--data",
        data_file,
        "--reconstructions",
        recon_file,
        "--out",
        tmp_path / "out",
    ]
    assert message in error_line(capsys, words)


def test_report_refuses_a_folder_without_a_run(capsys, tmp_path):
    assert "holds no finished run" in error_line(capsys, ["report", tmp_path])
