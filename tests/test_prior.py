"""Images from outside: purged of what is evaluated, recorded, and never mixed with the own prior."""

import json
from dataclasses import replace

import numpy as np
import pytest

from digit69 import prior_sources
from digit69.core import DataError
from digit69.handwriting import load_sklearn_digits
from digit69.models.base import FitOptions
from digit69.models.registry import make_model
from digit69.outside_images import OutsideImages
from digit69.prior import StimulusPrior
from digit69.prior_sources import load_auto, purge, stimuli_to_purge
from digit69.readers import write_split


@pytest.fixture(scope="module")
def handwriting():
    images, labels = load_sklearn_digits()
    return images, labels


@pytest.fixture(scope="module")
def digits_npz(handwriting, tmp_path_factory):
    """Other hands in the layout of mnist69.npz."""
    images, labels = handwriting
    eight_bit = np.round(255 * images).astype(np.uint8)
    file = tmp_path_factory.mktemp("prior") / "hands.npz"
    np.savez(file, six=eight_bit[labels == 1], nine=eight_bit[labels == 2])
    return file


# --- the purge ---------------------------------------------------------------------------------------------


def test_planted_copies_are_taken_out_exact_and_shifted(handwriting):
    images, _ = handwriting
    stimuli, others = images[:5], images[5:60]
    shifted = np.roll(stimuli[:2], 1, axis=2)
    result, _ = purge(np.concatenate([others, stimuli, shifted]), stimuli)
    assert result.n_exact == 5
    assert result.n_near >= 2
    assert not result.kept[len(others) :].any()


def test_a_blind_file_says_which_stimuli_could_not_be_compared(small_split):
    blind = replace(small_split, test=small_split.test.blind())
    references, unchecked = stimuli_to_purge(blind)
    assert len(references) == small_split.train.n
    assert "could not be compared" in unchecked
    assert stimuli_to_purge(small_split)[1] == ""


def test_without_mnist_the_own_prior_is_taken_and_said(small_split, monkeypatch, capsys):
    def nowhere():
        raise DataError("mnist is not here and cannot be fetched")

    monkeypatch.setattr(prior_sources, "locate_mnist", nowhere)
    said = []
    monkeypatch.setattr(prior_sources, "log", said.append)
    assert load_auto(small_split.train, small_split.train.images) is None
    assert "own" in said[0] and "cannot be fetched" in said[0]


# --- what models make of it --------------------------------------------------------------------------------


def test_the_prior_of_a_model_holds_the_images_from_outside(small_split, handwriting):
    images, labels = handwriting
    train = small_split.train
    outside = OutsideImages(images[:40], labels[:40], "hands")
    posterior = make_model("posterior", "smoke")
    posterior.fit(train, options=FitOptions(outside=outside))
    with_outside = {image.tobytes() for image in posterior.candidates_}
    own = make_model("posterior", "smoke").fit(train)
    assert with_outside != {image.tobytes() for image in own.candidates_}
    _, parents = StimulusPrior(train, outside).sample(200)
    assert parents.max() >= train.n
    assert set(posterior.candidate_labels_) <= set(labels)


@pytest.mark.parametrize("name", ["regression", "cvae", "ldm", "two_stage"])
def test_models_on_embeddings_learn_from_them_too(name, small_split, handwriting, fitted_model):
    images, labels = handwriting
    outside = OutsideImages(images[:40], labels[:40], "hands")
    model = make_model(name, "smoke").fit(small_split.train, options=FitOptions(outside=outside))
    assert len(model.embedding_pipeline_.known_images_) == small_split.train.n + 40
    rows = small_split.test.fmri
    assert not np.array_equal(model.reconstruct(rows), fitted_model(name).reconstruct(rows))


# --- two rows ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_rows(small_split, digits_npz, tmp_path_factory):
    """A run with and without images from outside."""
    from digit69.cli import main

    folder = tmp_path_factory.mktemp("two_rows")
    data = write_split(small_split, folder / "small.mat")
    words = ["run", "--data", data, "--models", "posterior", "--preset", "smoke", "--quiet"]
    options = ["--prior", f"own,{digits_npz}", "--out", folder / "run"]
    assert main([str(word) for word in [*words, *options]]) == 0
    return folder / "run"


def test_a_run_keeps_both_entries_and_their_record(two_rows):
    metrics = json.loads((two_rows / "metrics.json").read_text())
    assert {"posterior", "posterior+hands"} <= set(metrics["models"])
    record = json.loads((two_rows / "manifest.json").read_text())["prior"]["hands"]
    assert record["n_used"] > 0 and record["threshold"] == 0.92 and record["licence"]
    card = json.loads((two_rows / "models" / "posterior+hands" / "model.json").read_text())
    assert card["outside"]["sha256"] == record["sha256"]
    own = json.loads((two_rows / "models" / "posterior" / "model.json").read_text())
    assert own["outside"] is None


def test_card_and_page_say_what_was_taken_out(two_rows):
    card = (two_rows / "MODEL_CARD.md").read_text()
    assert "posterior+hands" in card
    assert "near copies" in card and "hands" in card
    page = (two_rows / "reports" / "evaluate.html").read_text()
    assert "posterior+hands" in page and "near copies" in page


def test_patterns_have_a_prior_of_their_own(digit69, miyawaki_file, tmp_path):
    words = ["run", "--data", miyawaki_file, "--models", "posterior", "--preset", "smoke"]
    options = ["--prior", "mnist", "--allow-overlap", "--out", tmp_path / "run"]
    done = digit69(*words, *options)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


# --- files that are no images ------------------------------------------------------------------------------


def damaged(path, arrays, kind):
    """One broken file of images from outside."""
    images, labels = arrays["images"], arrays["labels"]
    broken = {
        "word labels": {"images": images, "labels": np.where(labels == 6, "six", "nine")},
        "half labels": {"images": images, "labels": labels + 0.5},
        "missing labels": {"images": images, "labels": np.where(labels == 6, np.nan, 9)},
        "one-hot labels": {"images": images, "labels": np.eye(10)[labels]},
        "one label": {"images": images, "labels": np.array(6)},
        "NaN pixels": {"images": np.where(images > 200, np.nan, images), "labels": labels},
        "negative pixels": {"images": images / 127.5 - 1, "labels": labels},
        "words for pixels": {"images": images.astype(str), "labels": labels},
        "pickled": {"images": np.array([{}], object)},
        "noise": {"images": np.random.default_rng(0).random(images.shape), "labels": labels},
    }
    if kind in broken:
        np.savez(path, **broken[kind])
        return
    np.savez_compressed(path, **arrays)
    content = bytearray(path.read_bytes())
    if kind == "flipped bytes":
        content[2000:2400] = bytes(byte ^ 0x5A for byte in content[2000:2400])
    path.write_bytes(content[: len(content) // 2] if kind == "half a file" else content)


@pytest.mark.parametrize(
    "kind",
    [
        "word labels",
        "half labels",
        "missing labels",
        "one-hot labels",
        "one label",
        "NaN pixels",
        "negative pixels",
        "words for pixels",
        "pickled",
        "noise",
        "flipped bytes",
        "half a file",
    ],
)
def test_a_broken_file_of_images_is_one_line(kind, small_split, handwriting, tmp_path, capsys):
    from digit69.cli import main

    images, labels = handwriting
    eight_bit = np.round(255 * images).astype(np.uint8)
    digits = np.where(labels == 1, 6, 9)
    damaged(tmp_path / "hands.npz", {"images": eight_bit, "labels": digits}, kind)
    data = write_split(small_split, tmp_path / "small.mat")
    words = ["run", "--data", data, "--models", "posterior", "--preset", "smoke", "--quiet"]
    options = ["--prior", tmp_path / "hands.npz", "--out", tmp_path / "run"]
    assert main([str(word) for word in [*words, *options]]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("digit69: ")
    assert not (tmp_path / "run").exists()


def test_unlabelled_images_are_sorted_by_training_stimuli_alone(small_split, handwriting):
    images, _ = handwriting
    outside = OutsideImages(images[:60], None, "hands")
    train = small_split.train
    before = StimulusPrior(train, outside).labels
    assert len(before) == train.n + 60
    fewer = train.rows(np.arange(train.n // 2))
    after = StimulusPrior(fewer, outside).labels
    assert set(after[len(fewer.labels) :]) <= set(fewer.labels)
