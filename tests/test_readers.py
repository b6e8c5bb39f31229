"""Whatever the layout of a file, the data in it are the same; where that cannot be, it is refused."""

from dataclasses import replace

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from digit69.core import DataError
from digit69.likelihood_pipeline import rows_of_fold
from digit69.pictures import ORDERS
from digit69.preparation import Reading
from digit69.prior_selection import fit_inner_likelihoods
from digit69.readers import read_split, split_from_arrays, split_to_arrays
from digit69.receptive_fields import EncodingConfig
from digit69.simulation import simulate
from digit69.splits import check_train_test_overlap, default_protocol, make_folds, stimulus_ids

SPLIT = simulate(n_train=30, n_test=8, n_voxels=40)
ARRAYS = split_to_arrays(SPLIT)


def with_pictures(change):
    return {
        key: change(array) if key.startswith("stim") else array for key, array in ARRAYS.items()
    }


UNITS = {
    "0..1": (0, 1),
    "0..2": (0, 2),
    "percent": (0, 100),
    "bytes": (0, 255),
    "-1..1": (-1, 1),
    "16 bit": (0, 65535),
}


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_the_unit_of_grey_levels_does_not_matter(unit, inverted, kind):
    black, white = UNITS[unit]

    def change(stimuli):
        grey = stimuli.astype(kind) / 255
        return black + (white - black) * (1 - grey if inverted else grey)

    read = split_from_arrays(with_pictures(change))
    assert np.abs(read.train.images - SPLIT.train.images).max() < 1e-5
    assert np.abs(read.test.images - SPLIT.test.images).max() < 1e-5


@pytest.mark.parametrize("factor", [1 / 255, 1 / 2.55, 2 / 255])
def test_parts_in_different_units_are_refused(factor):
    with pytest.raises(DataError, match="the parts disagree"):
        split_from_arrays({**ARRAYS, "stimTest": ARRAYS["stimTest"] * factor})


def test_one_hot_pixel_does_not_darken_all_pictures():
    spoilt = ARRAYS["stimTrn"] / 255
    spoilt[3, 100] = 300.0
    with pytest.raises(DataError, match="1 pixel up to 300"):
        split_from_arrays({**ARRAYS, "stimTrn": spoilt, "stimTest": ARRAYS["stimTest"] / 255})


@settings(max_examples=15, deadline=None)
@given(
    scale=st.sampled_from([2, 3]),
    order=st.sampled_from(ORDERS),
    layout=st.sampled_from(["flat", "hw", "chw", "hwc", "last"]),
)
def test_layout_and_size_do_not_matter(scale, order, layout):
    def change(stimuli):
        upright = stimuli.reshape(-1, 28, 28).transpose(0, 2, 1)
        large = upright.repeat(scale, 1).repeat(scale, 2)
        as_listed = large if order == "rows" else large.transpose(0, 2, 1)
        shapes = {
            "flat": as_listed.reshape(len(large), -1),
            "hw": large,
            "chw": large[:, None].repeat(3, 1),
            "hwc": large[..., None],
            "last": large.transpose(1, 2, 0),
        }
        return shapes[layout]

    read = split_from_arrays(with_pictures(change), order=order)
    assert np.abs(read.train.images - SPLIT.train.images).max() < 1e-5


def write_hdf5(path, arrays):
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array.T).attrs["MATLAB_class"] = np.bytes_("double")
    with open(path, "r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file".ljust(116))


def write_plain_hdf5(path, arrays):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[f"group/{name}"] = array


WRITERS = {
    "a.npz": lambda path, arrays: np.savez(path, **arrays),
    "a.mat": savemat,
    "struct.mat": lambda path, arrays: savemat(path, {"subject": arrays}),
    "new.mat": write_hdf5,
    "plain.h5": write_plain_hdf5,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_holds_the_same(name, tmp_path):
    WRITERS[name](tmp_path / name, ARRAYS)
    assert read_split(tmp_path / name).digest == SPLIT.digest


def test_nothing_in_a_file_is_ignored_silently(tmp_path):
    np.savez(tmp_path / "more.npz", **ARRAYS, subject=np.ones(3), condition=np.ones(30))
    remarks = read_split(tmp_path / "more.npz").provenance["remarks"]
    assert "ignored: subject, condition" in remarks


# --- stimuli that are nearly the same


def rendered_anew(images, seed=0):
    noise = np.random.default_rng(seed).integers(-3, 4, images.shape)
    return ((images * 255 + noise).clip(0, 255).round() / 255).astype(np.float32)


def test_copies_that_differ_by_grey_levels_count_as_one_stimulus():
    shown_twice = np.concatenate([SPLIT.train.images, rendered_anew(SPLIT.train.images)])
    fmri = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    data = replace(SPLIT.train, fmri=fmri, images=shown_twice, labels=None)
    assert len(np.unique(stimulus_ids(data.images))) == 30
    assert default_protocol(data) == "leave-stimulus-out"
    with pytest.raises(DataError, match="also occur in train"):
        make_folds(data, "kfold", 5)
    copied = replace(SPLIT.test, images=rendered_anew(SPLIT.train.images[:8]))
    with pytest.raises(DataError, match="8 of 8 test stimuli"):
        check_train_test_overlap(replace(SPLIT, test=copied))


# --- runs


def test_inner_folds_of_the_likelihood_keep_runs_apart():
    runs = np.repeat(np.arange(5), 6)
    train = replace(SPLIT.train, groups=runs)
    inner = fit_inner_likelihoods(train, EncodingConfig(n_selected=20), (20,), n_splits=3)
    for number, fold in enumerate(inner):
        left_out = rows_of_fold(train, inner, number)
        assert set(runs[left_out]) == set(runs[fold.validation_idx])


def test_scaling_per_run_undoes_what_a_run_did_and_looks_at_no_label(tmp_path):
    runs = np.arange(38) % 4
    fmri = np.concatenate([SPLIT.train.fmri, SPLIT.test.fmri])
    spoilt = fmri * (1 + runs)[:, None] + 50 * runs[:, None]
    arrays = {**ARRAYS, "fmriTrn": spoilt[:30], "fmriTest": spoilt[30:], "run": runs}
    np.savez(tmp_path / "spoilt.npz", **arrays)
    np.savez(tmp_path / "clean.npz", **{**ARRAYS, "run": runs})
    reading = Reading(scale_per_group=True)
    one, other = (
        read_split(tmp_path / f"{name}.npz", reading=reading) for name in ("spoilt", "clean")
    )
    assert np.abs(one.train.fmri - other.train.fmri).max() < 1e-3
    arrays["labelTest"] = arrays["labelTest"][::-1]
    np.savez(tmp_path / "spoilt.npz", **arrays)
    again = read_split(tmp_path / "spoilt.npz", reading=reading)
    assert np.array_equal(again.test.fmri, one.test.fmri)
