"""Bad input gets exit code 2, one line on standard error that says what and what to do, no traceback, and leaves nothing behind."""
import os
import resource

import numpy as np
import pytest
from scipy.io import savemat

from digit69.cli import main
from digit69.readers import split_to_arrays, write_split
from digit69.simulation import simulate


@pytest.fixture(scope="module")
def arrays():
    return split_to_arrays(simulate(n_train=12, n_test=4, n_voxels=30))


def with_value(a, value):
    a = a.astype(float).copy()
    a[1, 2] = value
    return a


def only(a, *keys):
    return {k: a[k] for k in keys}


SPOILT = {
    "nan.mat": (lambda a: {**a, "fmriTrn": with_value(a["fmriTrn"], np.nan)}, "NaN or infinite"),
    "inf.npz": (lambda a: {**a, "fmriTest": with_value(a["fmriTest"], np.inf)}, "NaN or infinite"),
    "nan_images.npz": (lambda a: {**a, "stimTrn": with_value(a["stimTrn"], np.nan)}, "stimTrn holds 1 NaN"),
    "no_stimuli.mat": (lambda a: only(a, "fmriTrn", "fmriTest"), "lacks stimTrn"),
    "wrong_keys.npz": (lambda a: {"x": a["fmriTrn"], "y": a["stimTrn"]}, "lacks fmriTrn, stimTrn, fmriTest"),
    "transposed.mat": (lambda a: {**a, "fmriTrn": a["fmriTrn"].T}, "store fmriTrn.T"),
    "transposed_stimuli.npz": (lambda a: {**a, "stimTrn": a["stimTrn"].T}, "store stimTrn.T"),
    "too_few_rows.mat": (lambda a: {**a, "stimTrn": a["stimTrn"][:5]}, "12 rows but there are 5 stimuli"),
    "other_voxels.npz": (lambda a: {**a, "fmriTest": a["fmriTest"][:, :9]}, "must match"),
    "wrong_size.npz": (lambda a: {**a, "stimTrn": a["stimTrn"][:, :100]}, "must be (rows, 784)"),
    "too_bright.npz": (lambda a: {**a, "stimTrn": a["stimTrn"].astype(float) * 100}, "scale them to [0, 1]"),
    "labels.mat": (lambda a: {**a, "labelTrn": a["labelTrn"][:3]}, "3 labels for 12 rows"),
    "objects.npz": (lambda a: {**a, "fmriTrn": np.array([{"a": 1}], object)}, "never loaded"),
    "cells.mat": (lambda a: {**a, "fmriTrn": np.array([[1, "a"], ["b", 2]], object)}, "not a plain numeric array"),
    "text.mat": (lambda a: {**a, "fmriTrn": np.array(["abc"])}, "not a plain numeric array"),
    "empty_rows.npz": (lambda a: {**a, "fmriTest": a["fmriTest"][:0], "stimTest": a["stimTest"][:0], "labelTest": a["labelTest"][:0]}, "at least 1"),
}


def refused(capsys, tmp_path, words, says):
    out = tmp_path / "out"
    code = main([*map(str, words), "--out", str(out), "--quiet"])
    err = capsys.readouterr().err
    assert code == 2, err
    assert err.count("\n") == 1 and "Traceback" not in err and says in err, err
    assert not out.exists(), sorted(out.rglob("*"))


@pytest.mark.parametrize("name", SPOILT)
def test_spoilt_arrays(name, arrays, capsys, tmp_path):
    spoil, says = SPOILT[name]
    path = tmp_path / name
    savemat(path, spoil(arrays)) if name.endswith(".mat") else np.savez(path, **spoil(arrays))
    refused(capsys, tmp_path, ["run", "--data", path], says)


@pytest.mark.parametrize("kind", [".mat", ".npz"])
@pytest.mark.parametrize("share", [0, .01, .5, .99])
def test_truncated_files(kind, share, capsys, tmp_path):
    path = write_split(simulate(n_train=12, n_test=4, n_voxels=30), tmp_path / f"whole{kind}")
    whole = path.read_bytes()
    path.write_bytes(whole[:int(len(whole) * share)])
    refused(capsys, tmp_path, ["run", "--data", path], "readable")


@pytest.mark.parametrize("name,content", [("prose.mat", b"Dear reviewer"), ("prose.npz", b"Dear reviewer"), ("random.mat", bytes(range(256)) * 40), ("data.csv", b"1,2"), ("hdf.mat", b"MATLAB 7.3 MAT-file" + b" " * 200)])
def test_other_formats(name, content, capsys, tmp_path):
    (tmp_path / name).write_bytes(content)
    refused(capsys, tmp_path, ["run", "--data", tmp_path / name], name)


def test_hostile_pickle_in_npz_runs_nothing(capsys, tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)
    np.savez(tmp_path / "hostile.npz", fmriTrn=np.array([Hostile()], object))
    refused(capsys, tmp_path, ["run", "--data", tmp_path / "hostile.npz"], "never loaded")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("words,says", [
    (["run", "--data", "nowhere.mat"], "does not exist"),
    (["run", "--data", "."], "folder"),
    (["run", "--data", "mnist"], "no fMRI"),
    (["run", "--data", "simulated", "--models", "oracle"], "there is no model 'oracle'"),
    (["run", "--data", "simulated", "--models", ","], "names no model"),
    (["run", "--data", "simulated", "--preset", "huge"], "smoke"),
    (["run", "--data", "simulated", "--seed", "-1"], "--seed"),
    (["run", "--data", "simulated", "--device", "abacus"], "not available"),
    (["train", "--data", "simulated", "--model", "oracle"], "there is no model"),
    (["crossval", "--data", "simulated", "--folds", "99"], "choose 2 to 50"),
    (["crossval", "--data", "simulated", "--protocol", "guess"], "there is no protocol"),
])
def test_wrong_words(words, says, capsys, tmp_path):
    refused(capsys, tmp_path, words, says)


def test_unwritable_out(capsys, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file" / "below", "/proc/digit69"):
        code = main(["run", "--data", "simulated", "--out", str(out), "--quiet"])
        err = capsys.readouterr().err
        assert code == 2 and err.count("\n") == 1 and "choose another --out" in err, err
    assert (tmp_path / "file").read_text() == "in the way"


def test_foreign_folder_is_left_alone(capsys, tmp_path):
    (tmp_path / "thesis.txt").write_text("three years of work")
    assert main(["run", "--data", "simulated", "--out", str(tmp_path), "--quiet"]) == 2
    assert "holds no digit69 run" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_full_disk_leaves_nothing_half_written(digit69, tmp_path):
    def small_files_only():   # every file may grow to 60 kB and no further: what a full disk does, without filling one
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
    done = digit69("train", "--data", "simulated", "--model", "ridge", "--out", tmp_path / "model", "--quiet", preexec_fn=small_files_only)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "free some space" in done.stderr, done.stderr
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["manifest.json"]


def test_damaged_models_and_reconstructions(capsys, tmp_path):
    data = write_split(simulate(n_train=12, n_test=4, n_voxels=30), tmp_path / "sim.npz")
    other = write_split(simulate(n_train=12, n_test=4, n_voxels=31), tmp_path / "other.npz")
    assert main(["train", "--data", str(data), "--model", "ridge", "--out", str(tmp_path / "m"), "--quiet"]) == 0
    ask = ["reconstruct", "--model", tmp_path / "m", "--data"]
    recon = tmp_path / "r.npz"

    def says(words, text):
        capsys.readouterr()
        code = main([*map(str, words), "--quiet"])
        err = capsys.readouterr().err
        assert code == 2 and err.count("\n") == 1 and text in err, err
    says([*ask, other, "--out", recon], "trained on 30 voxels, these rows have 31")
    says([*ask, data, "--out", tmp_path / "r.txt"], "must end in .npz")
    says([*ask, data, "--out", recon, "--samples", 3], "leave out --samples")
    np.savez(tmp_path / "wrong.npz", reconstructions=np.full((4, 28, 28), 7.))
    np.savez(tmp_path / "few.npz", reconstructions=np.zeros((3, 28, 28)))
    np.savez(tmp_path / "unnamed.npz", images=np.zeros((4, 28, 28)))
    for name, text in {"wrong": "must lie in [0, 1]", "few": "3 reconstructions for 4", "unnamed": "'reconstructions'", "absent": "does not exist"}.items():
        says(["evaluate", "--data", data, "--reconstructions", tmp_path / f"{name}.npz", "--out", tmp_path / f"out_{name}"], text)
    (tmp_path / "m" / "model.safetensors").write_bytes(b"\0" * 10)
    says([*ask, data, "--out", recon], "missing or damaged")
    (tmp_path / "m" / "model.json").write_text('{"model": "os.system"}')
    says([*ask, data, "--out", recon], "not a model card")
    says(["report", tmp_path], "holds no finished run")
    assert not recon.exists()
