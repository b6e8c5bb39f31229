"""Brain images become a data file by one command, and what a model finds becomes a map by another."""

import numpy as np
import pandas as pd
import pytest

from digit69.cli import main
from digit69.datasets import load_dataset
from digit69.simulation import simulate

nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed")
SHAPE = (6, 5, 4)


@pytest.fixture(scope="module")
def brain(tmp_path_factory):
    "Three runs of a simulated subject as NIfTI images, one volume a trial."
    folder = tmp_path_factory.mktemp("brain")
    subject = simulate(n_train=30, n_test=6, n_voxels=80).pooled()
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    inside = np.zeros(SHAPE, np.uint8)
    inside.flat[np.random.default_rng(0).permutation(inside.size)[:80]] = 1
    nibabel.save(nibabel.Nifti1Image(inside, affine), folder / "mask.nii.gz")
    for run in range(3):
        rows = np.arange(36)[run::3]
        volumes = np.zeros((*SHAPE, len(rows)), np.float32)
        volumes[inside > 0] = subject.fmri[rows].T
        nibabel.save(nibabel.Nifti1Image(volumes, affine), folder / f"run{run}.nii.gz")
        table = pd.DataFrame({"picture": rows, "label": subject.labels[rows]})
        table.to_csv(folder / f"run{run}.tsv", sep="\t", index=False)
    np.save(folder / "pictures.npy", subject.images)
    return folder, subject


def command(folder, out, **changes):
    words = {
        "bold": ",".join(str(folder / f"run{run}.nii.gz") for run in range(3)),
        "mask": folder / "mask.nii.gz",
        "events": ",".join(str(folder / f"run{run}.tsv") for run in range(3)),
        "stimuli": folder / "pictures.npy",
        "out": out,
    } | changes
    options = [(f"--{key.replace('_', '-')}", str(value)) for key, value in words.items()]
    return ["data", "import", *[word for option in options for word in option]]


def test_images_become_rows_and_importance_becomes_a_map(brain, tmp_path):
    folder, subject = brain
    assert main(command(folder, tmp_path / "subject.npz", test_runs=3)) == 0
    split = load_dataset(tmp_path / "subject.npz")
    assert np.array_equal(split.test.fmri, subject.fmri[2::3])
    assert np.array_equal(split.test.images, subject.images[2::3])
    assert len(np.unique(split.train.groups)) == 2
    assert not any("ignored" in remark for remark in split.provenance["remarks"])
    out = tmp_path / "map.nii.gz"
    assert main(["data", "map", str(tmp_path / "subject.npz"), "--out", str(out)]) == 0
    values = nibabel.load(out).get_fdata()
    mask = nibabel.load(folder / "mask.nii.gz").get_fdata()
    assert values[mask == 0].max() == 0
    assert values[mask > 0].max() > 0.05


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"events": "none.tsv"}, "3 runs and 1 tables"),
        ({"test_runs": "1,2,3"}, "some, not all"),
        ({"test_runs": "last"}, "is no number of a run"),
        ({"mask": "none.nii"}, "does not exist"),
        ({"stimuli": "none.npy"}, "none.npy does not exist"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(brain, tmp_path, capsys, changes, message):
    folder, _ = brain
    assert main(command(folder, tmp_path / "subject.npz", **changes)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
