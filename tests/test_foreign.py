"""Reconstructions in other people's files are scored as what they are, or refused before any work."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

from digit69.cli import main
from digit69.core import DataError
from digit69.manifest import checkout
from digit69.readers import read_split, write_split
from digit69.reconstruction_files import read_reconstructions
from digit69.simulation import simulate

CASES = (checkout() or Path.cwd()).parent / "shared" / "cases"
N = 6


@pytest.fixture(scope="module")
def images():
    return simulate(n_train=8, n_test=N, n_voxels=20).test.images


def enlarge(images):
    return images.repeat(2, 1).repeat(2, 2)


SHAPES = {
    "stack": lambda x: x,
    "flat": lambda x: x.reshape(len(x), 784),
    "one channel": lambda x: x[:, None],
    "channel last": lambda x: x[..., None],
    "colours": lambda x: np.repeat(x[:, None], 3, axis=1),
    "56x56": enlarge,
    "56x56 flat": lambda x: enlarge(x).reshape(len(x), -1),
}
LEVELS = {
    "0 to 1": lambda x: x,
    "0 to 255": lambda x: 255 * x,
    "bytes": lambda x: np.round(255 * x).astype(np.uint8),
    "-1 to 1": lambda x: 2 * x - 1,
    "double": lambda x: x.astype(float),
}


def as_matlab(array):
    """Pictures of a flat array column by column, as MATLAB lists them."""
    if array.ndim > 2:
        return array
    side = round(array.shape[1] ** 0.5)
    return array.reshape(-1, side, side).transpose(0, 2, 1).reshape(array.shape)


def write(kind, array, folder):
    path = folder / f"theirs{kind}"
    if kind == ".npy":
        np.save(path, array)
    elif kind == ".npz":
        np.savez(path, reconstructions=array)
    elif kind == ".mat":
        savemat(path, {"reconstructions": as_matlab(array)})
    else:
        torch.save(
            {"recon": torch.tensor(array)} if array.ndim > 2 else torch.tensor(array), path
        )
    return path


@pytest.mark.parametrize("kind", [".npy", ".npz", ".mat", ".pt"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
def test_the_same_pictures_come_out_of_every_kind_of_file(kind, shape, levels, images, tmp_path):
    path = write(kind, levels(shape(images)), tmp_path)
    read = read_reconstructions(path, N)
    assert read.images.dtype == np.float32 and read.images.shape == images.shape
    np.testing.assert_allclose(read.images, images, atol=0.003)
    said = " ".join(read.remarks)
    is_flat = shape(images).ndim == 2
    assert ("--recon-order" in said) == is_flat
    assert ("56x56" in said) == (56 in shape(images).shape or shape(images).shape[-1] == 56 * 56)


def test_the_order_can_be_given(images, tmp_path):
    path = write(".npy", as_matlab(images.reshape(N, 784)), tmp_path)
    np.testing.assert_array_equal(read_reconstructions(path, N, "columns").images, images)


REFUSED = {
    "another number": (lambda x: x[:4], "4 reconstructions for 6 test rows"),
    "overshoot": (lambda x: 1.4 * x - 0.2, "must lie in [0, 1]"),
    "no unit": (lambda x: 37 * x, "must lie in [0, 1]"),
    "NaN": (lambda x: x * np.nan, "NaN"),
    "no picture": (lambda x: x.reshape(N, 784)[:, :100:3], "no square picture"),
    "one number a row": (lambda x: x[:, 0, 0], "shape"),
}


@pytest.mark.parametrize("kind", [".npy", ".npz", ".pt"])
@pytest.mark.parametrize("change,message", REFUSED.values(), ids=REFUSED)
def test_what_is_not_evident_is_refused_in_one_line(kind, change, message, images, tmp_path):
    path = write(kind, np.ascontiguousarray(change(images)), tmp_path)
    with pytest.raises(DataError) as error:
        read_reconstructions(path, N)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_would_run_code_is_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "trapped",))

    torch.save({"reconstructions": Trap()}, tmp_path / "trap.pt")
    np.save(tmp_path / "trap.npy", np.array([Trap()] * N, object), allow_pickle=True)
    for name in ("trap.pt", "trap.npy"):
        with pytest.raises(DataError):
            read_reconstructions(tmp_path / name, N)
    assert not (tmp_path / "trapped").exists()


# ---- the command


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    split = simulate(n_train=16, n_test=N, n_voxels=40)
    return write_split(split, tmp_path_factory.mktemp("foreign") / "small.mat")


def test_evaluate_says_how_it_read_and_keeps_it(data, no_pages, capsys, tmp_path):
    targets = read_split(data).test.images
    mirrored = 255 * targets.transpose(0, 2, 1).reshape(N, 784)
    file = write(".npy", mirrored, tmp_path)
    words = ["evaluate", "--data", str(data), "--reconstructions", str(file)]
    assert main([*words, "--out", str(tmp_path / "rows")]) == 0
    said = capsys.readouterr().err
    assert "read row by row" in said and "grey levels 0 to 255" in said
    assert "warning: theirs: they agree better when mirrored" in said
    manifest = json.loads((tmp_path / "rows" / "manifest.json").read_text())
    assert len(manifest["read_as"]["theirs"]) == 3
    main([*words, "--recon-order", "columns", "--out", str(tmp_path / "columns")])
    assert "mirrored" not in capsys.readouterr().err
    models = json.loads((tmp_path / "columns" / "metrics.json").read_text())["models"]
    assert models["theirs"]["pcc"]["mean"] > 0.999


@pytest.mark.parametrize("name", ["missing.npy", "bad.npz", "bad.pt", "bad.png"])
def test_nothing_is_done_for_a_file_that_cannot_be_read(name, data, digit69, tmp_path):
    if name.startswith("bad"):
        (tmp_path / name).write_bytes(b"neither this nor that")
    out = tmp_path / "out"
    done = digit69("evaluate", "--data", data, "--reconstructions", tmp_path / name, "--out", out)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    *about_data, error = done.stderr.strip().splitlines()
    assert error.startswith("digit69: ") and name in error
    assert not any(name in line for line in about_data) and not out.exists()


@pytest.mark.parametrize("name", ["rec.npy", "rec_flat.npz", "rec_56.npz"])
def test_the_cases_are_scored(name):
    if not CASES.is_dir():
        pytest.skip("the cases are not in ../shared/cases")
    targets = read_split(CASES / "base.npz").test.images
    read = read_reconstructions(CASES / name, len(targets))
    expected = read_reconstructions(CASES / "rec.npy", len(targets))
    np.testing.assert_allclose(read.images, expected.images, atol=1e-6)
