"""Images from outside: purged of what is evaluated, recorded, and never mixed with the own prior."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import zoom
from sklearn.datasets import load_digits

from conftest import real_file
from digit69 import prior_sources
from digit69.augmentation import stimulus_keys
from digit69.cli_answers import print_run
from digit69.comparison import pipeline_table
from digit69.converter import convert_split
from digit69.core import DataError, ModelError
from digit69.crossval import cross_validate
from digit69.evaluation import fit_and_reconstruct, run_models
from digit69.handwriting import load_sklearn_digits
from digit69.models.base import FitOptions, load_model
from digit69.models.registry import make_model
from digit69.outside_classes import sort_images
from digit69.outside_curve import outside_image_curve, outside_image_figure
from digit69.outside_images import OutsideImages, load_image_file, scale_images
from digit69.prior import StimulusPrior, labels_by_neighbor
from digit69.prior_choice import choose_priors
from digit69.prior_sources import are_published, load_auto, load_outside, purge, stimuli_to_purge
from digit69.published import published_table
from digit69.readers import read_split, write_split
from digit69.runs import load_run
from digit69.tasks import CheckConfig, Task


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


class UnitVectors(torch.nn.Module):
    """The simplest image encoder that files of embeddings accept."""

    def forward(self, images):
        return torch.nn.functional.normalize(images.flatten(1)[:, :512] + 0.01, dim=1)


def test_embeddings_with_an_image_encoder_of_ones_own_know_them_too(
    small_split, handwriting, tmp_path
):
    images, labels = handwriting
    outside = OutsideImages(images[:40], labels[:40], "hands")
    encoder = UnitVectors()
    own, with_hands = (
        convert_split(small_split, tmp_path, "smoke", image_encoder=encoder, outside=known)
        for known in (None, outside)
    )
    embeddings = [data["test"]["fmri_embeddings"] for data in (own, with_hands)]
    assert not np.array_equal(*embeddings)


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


# --- which image is of which class -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ten_digits():
    """Scikit-learn's handwriting of all ten digits, enlarged to 28 x 28."""
    digits = load_digits()
    enlarged = zoom(digits.images / 16, (1, 2.5, 2.5), order=1).clip(0, 1)
    images = np.pad(enlarged, ((0, 0), (4, 4), (4, 4)))
    return images.astype(np.float32), digits.target


@pytest.mark.parametrize(
    "classes",
    [{6: 6, 9: 9}, {6: 1, 9: 2}, {digit: digit for digit in range(10)}, {3: 0, 7: 1}],
    ids=["6/9", "1/2", "0-9", "3 and 7 as 0/1"],
)
def test_classes_are_recognised_by_their_images(ten_digits, classes):
    images, digits = ten_digits
    shown = np.isin(digits[:300], list(classes))
    labels = np.array([classes[digit] for digit in digits[:300][shown]])
    pool, pool_digits = images[300:], digits[300:]
    rows, found = sort_images(pool, pool_digits, images[:300][shown], labels, "sklearn")
    assert set(pool_digits[rows]) == set(classes)
    assert np.array_equal(found, [classes[digit] for digit in pool_digits[rows]])


def test_without_classes_the_digits_that_were_shown_are_kept(ten_digits):
    images, digits = ten_digits
    shown = np.isin(digits[:300], (6, 9))
    rows, labels = sort_images(images[300:], digits[300:], images[:300][shown], None, "sklearn")
    assert labels is None
    assert set(digits[300:][rows]) == {6, 9}


def test_images_without_labels_take_the_class_of_the_nearest_stimulus(handwriting):
    images, labels = handwriting
    rows, found = sort_images(images[90:], None, images[:90], labels[:90], "hands")
    assert len(rows) == len(images) - 90
    assert found is None
    classes = labels_by_neighbor(images[90:], images[:90], labels[:90])
    assert (classes == labels[90:]).mean() > 0.95


def test_what_looks_like_nothing_that_was_shown_is_refused(handwriting):
    images, labels = handwriting
    noise = np.random.default_rng(0).random((40, 28, 28))
    with pytest.raises(DataError, match="do not look like"):
        sort_images(images, labels, noise, None, "hands")
    with pytest.raises(DataError, match="cannot be matched"):  # one digit, two classes
        sort_images(images, labels, images[labels == 1][:20], np.arange(20) % 2, "hands")


# --- what no comparison can find ---------------------------------------------------------------------------


def test_published_stimuli_go_even_where_they_are_hidden():
    split = read_split(real_file("digit69_dev.mat"), "digit69")
    digits, _ = load_image_file(real_file("mnist69.npz"))
    blind = replace(split, test=split.test.blind())
    left, n_published = purge(scale_images(digits), stimuli_to_purge(blind)[0])
    assert n_published == 3  # one of the hidden ten, and two that the file does not hold at all
    hidden = set(stimulus_keys(split.test.images))
    assert not hidden & set(stimulus_keys(left.images))
    assert not are_published(left.images).any()


def test_images_that_hold_a_test_stimulus_are_refused_though_someone_hands_them_over(small_split):
    leak = OutsideImages(small_split.test.images, small_split.test.labels, "leak")
    with pytest.raises(ModelError, match="from outside hold 6 of 6"):
        fit_and_reconstruct("posterior+leak", small_split, "smoke", outside={"leak": leak})


# --- names on the command line -----------------------------------------------------------------------------


def test_models_with_a_prior_are_fitted_once_for_each_and_others_once(small_split, digits_npz):
    choice = choose_priors(["ridge", "posterior"], f"own,{digits_npz}", small_split)
    assert choice.entries == ["ridge", "posterior", "posterior+hands"]
    assert list(choice.outside) == ["hands"]


def test_an_entry_may_name_its_prior_by_itself(small_split, digits_npz, monkeypatch):
    monkeypatch.setattr(prior_sources, "locate_mnist", lambda: digits_npz)
    choice = choose_priors(["posterior", "posterior+mnist"], "auto", small_split)
    assert choice.entries == ["posterior", "posterior+mnist"]
    with pytest.raises(DataError, match="no prior is called faces"):
        choose_priors(["posterior+faces"], "auto", small_split)
    with pytest.raises(ModelError, match="ridge learns from no prior"):
        choose_priors(["ridge+mnist"], "auto", small_split)


def test_nobody_asks_the_network_for_models_that_learn_from_no_prior(small_split, monkeypatch):
    def forbidden():
        raise AssertionError("mnist was asked for")

    monkeypatch.setattr(prior_sources, "locate_mnist", forbidden)
    assert choose_priors(["mean", "ridge"], "auto", small_split).outside == {}


def test_smaller_priors_are_nested_and_balanced(small_split, digits_npz):
    few, many = (
        load_outside(str(digits_npz), small_split.train, small_split.train.images, size=size)
        for size in (20, 100)
    )
    assert np.array_equal(many.images[:20], few.images)
    assert abs((few.labels == 1).sum() - 10) <= 1
    assert few.record()["n_left"] == many.record()["n_left"] > 100


def test_one_trained_model_has_one_prior(digit69, small_file, digits_npz, tmp_path):
    words = ["train", "--data", small_file, "--model", "posterior", "--preset", "smoke"]
    done = digit69(*words, "--prior", f"own,{digits_npz}", "--out", tmp_path / "model")
    assert done.returncode == 2
    assert "posterior or posterior+hands" in done.stderr
    assert not (tmp_path / "model").exists()


# --- folds that are kept -----------------------------------------------------------------------------------


def test_kept_folds_do_not_mix_priors(small_split, digits_npz, tmp_path):
    data = small_split.pooled()
    options = {"n_splits": 2, "preset": "smoke"}
    fold_files = [
        tmp_path / "folds" / name / "000.npz" for name in ("posterior", "posterior+hands")
    ]
    contents = []
    for size in (None, None, 20):
        choice = choose_priors(["posterior"], f"own,{digits_npz}", data, size)
        metrics = cross_validate(
            data, choice.entries, tmp_path, **options, outside=choice.outside
        )
        assert {"posterior", "posterior+hands", "posterior+hands_sample"} <= set(
            metrics["models"]
        )
        contents.append([file.read_bytes() for file in fold_files])
    first, again, smaller = contents
    assert first == again  # kept
    assert smaller[0] == first[0]  # the own prior does not know of the other
    assert smaller[1] != first[1]


def test_a_run_that_goes_on_fits_anew_what_other_images_were_asked_for(
    small_split, digits_npz, tmp_path
):
    written = []
    for size in (None, None, 20):
        choice = choose_priors(["posterior"], str(digits_npz), small_split, size)
        assert choice.entries == ["posterior+hands"]
        options = {"preset": "smoke", "resume": True, "outside": choice.outside}
        run_models(small_split, choice.entries, tmp_path, **options)
        card = tmp_path / "models" / "posterior+hands" / "model.json"
        written.append(
            (card.stat().st_mtime_ns, json.loads(card.read_text())["outside"]["n_used"])
        )
    assert written[0] == written[1]
    assert written[2][1] == 20


def test_checks_know_which_images_they_were_made_with(small_split, handwriting):
    images, labels = handwriting
    hands = {"hands": OutsideImages(images[:40], labels[:40], "hands")}
    configs = CheckConfig("kfold", 2), CheckConfig("kfold", 2, outside=hands)
    own, own_again = (Task(print, "posterior", (c,)).fingerprint(Path("x")) for c in configs)
    assert own == own_again
    other = Task(print, "posterior+hands", (configs[1],)).fingerprint(Path("x"))
    assert other != own


def test_a_saved_model_remembers_its_images_from_outside(two_rows):
    record = load_model(two_rows / "models" / "posterior+hands").outside_record
    assert record["name"] == "hands" and record["n_exact"] >= 0
    assert load_model(two_rows / "models" / "posterior").outside_record is None


# --- how many help -----------------------------------------------------------------------------------------


def test_the_curve_is_kept_fit_by_fit_and_has_a_figure(small_split, handwriting, tmp_path):
    images, labels = handwriting
    hands = OutsideImages(images[90:130], labels[90:130], "hands")
    config = CheckConfig("kfold", 2, "smoke", outside={"hands": hands})
    options = {"sizes": (10, 500), "folds": (1,), "n_subsets": 2}
    curve, again = (
        outside_image_curve("posterior", small_split.pooled(), config, tmp_path, **options)
        for _ in range(2)
    )
    assert curve == again
    found = [(point["size"], point["fits"]) for point in curve["points"]]
    assert found == [(0, 1), (10, 2), (40, 1)]
    assert len(list((tmp_path / "outside").rglob("*.json"))) == 4
    assert len(outside_image_figure(curve).axes) == 2


# --- what pages say ----------------------------------------------------------------------------------------


def test_tables_of_published_results_say_which_digits_from_outside_were_used(two_rows):
    models = load_run(two_rows).metrics["models"]
    table = published_table({name: (entry, "toy split") for name, entry in models.items()})
    assert table.loc["posterior", "outside digits"] == "none"
    assert table.loc["posterior+hands", "outside digits"] == "hands"
    assert table.loc["posterior+hands_sample", "outside digits"] == "hands"
    assert set(table["outside digits"]) > {"none", "not known"}


def test_a_comparison_has_a_column_for_each_prior(two_rows):
    columns = pipeline_table([load_run(two_rows)])
    outside = columns.loc["images from outside"]
    assert outside[["run: posterior", "run: posterior+hands"]].tolist() == ["none", "hands"]


def test_the_end_of_a_run_says_what_was_taken_out(two_rows, capsys):
    print_run(load_run(two_rows))
    assert "Entries with +hands also learn from" in capsys.readouterr().out
