"""Embeddings files: a hostile pickle runs nothing, a damaged or foreign file gets one clear line, what was
written comes back."""

import builtins
import contextlib
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import time
from collections import OrderedDict

import numpy as np
import pytest
import torch

from digit69 import clip as clip_module
from digit69.clip import ClipImageEncoder
from digit69.converter import Digit69BaselineDataset, Digit69EmbeddingConverter
from digit69.core import DataError, ModelError, OutputError
from digit69.data import Split
from digit69.safe_pickle import load_plain_pickle
from digit69.simulation import simulate


@pytest.fixture(scope="module")
def split():
    return simulate(n_train=30, n_test=6, n_voxels=100)


@pytest.fixture(scope="module")
def files(split, tmp_path_factory):
    """A folder with the three files of one conversion."""
    folder = tmp_path_factory.mktemp("embeddings")
    Digit69EmbeddingConverter().convert(split, folder, "smoke", 0)
    return folder


@pytest.fixture
def copy(files, tmp_path):
    return shutil.copytree(files, tmp_path / "copy")


def read_pickle(folder):
    """Our own file; any pickle reader may have it."""
    return pickle.loads((folder / "digit69_embeddings.pkl").read_bytes())


# --- pickles from outside -----------------------------------------------------------------------------------


class Reduce:
    """Pickles as the call `function(*args)`."""

    def __init__(self, function, *args):
        self.function = function
        self.args = args

    def __reduce__(self):
        return self.function, self.args


def opcode_text(text):
    """The pickle opcode that pushes a text."""
    return b"X" + len(text).to_bytes(4, "little") + text.encode()


def opcode_dtype(spec, state):
    """Opcodes for a dtype that is made as one thing and then claims another."""
    return b"cnumpy\ndtype\n(" + opcode_text(spec) + b"\x89\x88tR(" + state + b"tb"


def assembled(body):
    """A pickle of protocol 4 from opcodes."""
    return b"\x80\x04" + body + b"."


def calls_that_create(marker):
    """Pickles that create the file `marker` when they are loaded by the standard library."""
    touch = f"touch {marker}"
    hostile = Reduce(os.system, touch)
    return {
        "os.system": pickle.dumps(hostile),
        "deep inside": pickle.dumps({"train": {"fmri_embeddings": [np.zeros(3), (hostile,)]}}),
        "builtins.eval": pickle.dumps(Reduce(eval, f"__import__('os').system({touch!r})")),
        "builtins.exec": pickle.dumps(Reduce(exec, f"open({str(marker)!r}, 'w').close()")),
        "object array": pickle.dumps(np.array([hostile], object)),
        "pickle within a pickle": pickle.dumps(Reduce(pickle.loads, pickle.dumps(hostile))),
        "memmap writes a file": pickle.dumps(Reduce(np.memmap, str(marker), "f4", "w+", 0, (3,))),
        "open": pickle.dumps(Reduce(open, str(marker), "w")),
    }


def other_calls(marker):
    """Pickles that call something else with which the file could be made."""
    touch = f"touch {marker}"
    return {
        "os.system, old protocol": pickle.dumps(Reduce(os.system, touch), 0),
        "as a key": pickle.dumps({Reduce(os.system, touch): 1}),
        "subprocess": pickle.dumps(Reduce(subprocess.Popen, ["touch", str(marker)])),
        "getattr": pickle.dumps(Reduce(getattr, "six", "upper")),
        "torch tensor": pickle.dumps(torch.zeros(3)),
        "torch.load": pickle.dumps(Reduce(torch.load, str(marker))),
        "torch storage": pickle.dumps(Reduce(torch.storage._load_from_bytes, b"x")),
        "numpy.load with pickles": pickle.dumps(Reduce(np.load, str(marker), None, True)),
        "import": pickle.dumps(Reduce(builtins.__import__, "antigravity")),
        "a function as a value": pickle.dumps({"train": len}),
    }


def names_by_opcodes(marker):
    """Pickles, written by hand, that reach for names in ways that `pickle.dumps` would not."""
    touch, python = f"touch {marker}", f"open({str(marker)!r}, 'w').close()"
    subclasses = (
        b"cbuiltins\ngetattr\n(cnumpy\nndarray\n" + opcode_text("__subclasses__") + b"tR)R"
    )
    dotted = opcode_text("numpy") + opcode_text("ndarray.__subclasses__") + b"\x93)R"
    dotted_os = (
        opcode_text("numpy") + opcode_text("os.system") + b"\x93(" + opcode_text(touch) + b"tR"
    )
    runstring = b"cnumpy.testing._private.utils\nrunstring\n(" + opcode_text(python) + b"}tR"
    return {
        "getattr chain": assembled(subclasses),
        "dotted name": assembled(dotted),
        "dotted name through os": assembled(dotted_os),
        "numpy with another tail": assembled(runstring),
        "calls numpy.ndarray": assembled(b"cnumpy\nndarray\n(K\x02tR"),
        "builds an instance": assembled(b"(ios\nsystem\n."),
        "NEWOBJ": assembled(b"cbuiltins\nset\n)\x81"),
        "persistent": assembled(b"Pgive me\n"),
        "extension": assembled(b"\x82\x01"),
    }


def lies_about_arrays():
    """Pickles whose arrays are not what they claim to be, or that change what reads them."""
    plain_state = b"K\x03" + opcode_text("|") + b"NNNK\x08K\x08K\x00"
    record_state = b"K\x03" + opcode_text("|") + b"N(" + opcode_text("a") + b"t}K\x08K\x08K\x00"
    double_state = b"K\x03" + opcode_text("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00"
    list_in_array = (
        b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR(K\x01(K\x01t"
        + opcode_dtype("f8", double_state)
        + b"\x89]K\x01atb"
    )
    change_by_dict = b"cnumpy\ndtype\n}" + opcode_text("_function") + opcode_text("x") + b"sb"
    return {
        "object array of plain things": pickle.dumps(np.array([1, "a", None], object)),
        "array of records": pickle.dumps(np.zeros(2, [("a", "f4"), ("b", "O")])),
        "dtype that lies": assembled(opcode_dtype("O8", plain_state)),
        "records through the state": assembled(opcode_dtype("f8", record_state)),
        "array with a list inside": assembled(list_in_array),
        "changes a function": assembled(
            b"cnumpy\ndtype\nN}" + opcode_text("__defaults__") + b")s\x86b"
        ),
        "changes a function by a dict": assembled(change_by_dict),
        "a call as a value": assembled(b"cnumpy\ndtype\n"),
        "holds itself": assembled(b"]\x94h\x00a"),
    }


def hostile_pickles(marker):
    """All pickles that must be refused."""
    return {
        **calls_that_create(marker),
        **other_calls(marker),
        **names_by_opcodes(marker),
        **lies_about_arrays(),
    }


READERS = {
    "the pickle reader": load_plain_pickle,
    "the converter": lambda path: Digit69EmbeddingConverter().load_embeddings(path),
    "the torch data set": lambda path: Digit69BaselineDataset(path, "test"),
}


@pytest.mark.parametrize("kind", hostile_pickles("marker"))
def test_a_hostile_pickle_runs_nothing(kind, tmp_path):
    path = tmp_path / "digit69_embeddings.pkl"
    path.write_bytes(hostile_pickles(tmp_path / "marker")[kind])
    for read in READERS.values():
        with pytest.raises(DataError, match="digit69_embeddings.pkl") as error:
            read(path)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 400 + len(str(path))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", calls_that_create("marker"))
def test_the_hostile_pickles_are_hostile_to_the_standard_reader(kind, tmp_path):
    marker = tmp_path / "marker"
    with contextlib.suppress(Exception):
        pickle.loads(calls_that_create(marker)[kind])
    assert marker.exists()


def test_a_name_with_a_line_break_stays_one_line(tmp_path):
    name = opcode_text("os\nTraceback: fake") + opcode_text("system\n" * 100)
    (tmp_path / "x.pkl").write_bytes(assembled(name + b"\x93"))
    with pytest.raises(DataError, match="refused") as error:
        load_plain_pickle(tmp_path / "x.pkl")
    assert "\n" not in str(error.value)


HUGE = (1 << 60).to_bytes(8, "little")
FROM_BUFFER = b"cnumpy._core.numeric\n_frombuffer\n(C\x01xcnumpy\ndtype\n("
NOT_PICKLES = {
    "huge text": b"\x80\x04\x8d" + HUGE + b"x",
    "huge bytearray": b"\x80\x05\x96" + HUGE + b"x",
    "huge array": assembled(
        FROM_BUFFER
        + opcode_text("f8")
        + b"\x89\x88tR\x8a\x08"
        + HUGE
        + b"\x85"
        + opcode_text("C")
        + b"tR"
    ),
    "negative shape": assembled(
        FROM_BUFFER
        + opcode_text("u1")
        + b"\x89\x88tRJ\xff\xff\xff\xff\x85"
        + opcode_text("C")
        + b"tR"
    ),
    "deeply nested": assembled(b"]" * 100_000 + b"a" * 99_999),
    "nothing": b"",
    "prose": b"Dear reviewer",
    "zip": b"PK\x03\x04 not a pickle",
}


@pytest.mark.parametrize("kind", NOT_PICKLES)
def test_bombs_and_other_formats_are_refused(kind, tmp_path):
    (tmp_path / "x.pkl").write_bytes(NOT_PICKLES[kind])
    with pytest.raises(DataError):
        load_plain_pickle(tmp_path / "x.pkl")


def plain_content():
    """Every kind of value that a plain pickle may hold."""
    shared = np.arange(6, dtype=np.int16).reshape(2, 3)
    arrays = [shared, shared, shared.T, shared[:, ::2], np.array(["six"]), shared.astype(">i4")]
    values = {
        "tuple": (1, 2.5, True, None, "six", b"\xff\x00", 2j),
        "number": np.float64(3),
        "set": {"x"},
        "frozenset": frozenset({1}),
        "empty": {},
    }
    return OrderedDict(arrays=arrays, **values)


@pytest.mark.parametrize("protocol", range(6))
def test_plain_content_comes_back(protocol, tmp_path):
    content = plain_content()
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol))
    back = load_plain_pickle(tmp_path / "x.pkl")
    arrays = back.pop("arrays")
    for array, original in zip(arrays, content.pop("arrays"), strict=True):
        assert type(array) is np.ndarray
        assert array.dtype == original.dtype
        assert np.array_equal(array, original)
        array[...] = array  # writable, and nobody else's memory
    assert back == dict(content)


def test_files_written_with_numpy_1_are_read(tmp_path):
    written = pickle.dumps({"a": np.arange(3.0)}, 2)
    assert b"numpy._core" in written
    (tmp_path / "x.pkl").write_bytes(written.replace(b"numpy._core", b"numpy.core"))
    assert np.array_equal(load_plain_pickle(tmp_path / "x.pkl")["a"], np.arange(3.0))


# --- the schema ---------------------------------------------------------------------------------------------


def test_the_promised_files_are_written(files):
    assert sorted(file.name for file in files.iterdir()) == [
        "digit69_embeddings.npz",
        "digit69_embeddings.pkl",
        "digit69_embeddings_metadata.json",
    ]
    metadata = json.loads((files / "digit69_embeddings_metadata.json").read_text())
    assert read_pickle(files)["metadata"] == metadata
    keys = ("fmri_emb", "image_emb", "original_fmri", "stimuli", "labels")
    npz_keys = {f"{part}_{key}" for part in ("train", "test") for key in keys}
    assert set(np.load(files / "digit69_embeddings.npz").files) == npz_keys


@pytest.mark.parametrize("name", ["train", "test"])
def test_arrays_have_the_promised_shapes_and_ranges(name, split, files):
    part, rows = read_pickle(files)[name], getattr(split, name)
    assert {key: array.shape for key, array in part.items()} == {
        "fmri_embeddings": (rows.n, 512),
        "image_embeddings": (rows.n, 512),
        "original_fmri": (rows.n, 100),
        "original_images": (rows.n, 3, 224, 224),
        "stimuli": (rows.n, 28, 28),
        "labels": (rows.n,),
    }
    assert np.array_equal(part.pop("labels"), rows.labels)
    assert all(array.dtype == np.float32 for array in part.values())
    assert part["original_images"].min() >= 0 and part["original_images"].max() <= 1
    assert np.array_equal(part["stimuli"], rows.images)
    for key in ("fmri_embeddings", "image_embeddings"):
        assert np.allclose(np.linalg.norm(part[key], axis=1), 1, atol=1e-5)


def test_voxels_are_standardised_by_train(files):
    voxels = read_pickle(files)["train"]["original_fmri"]
    assert np.allclose(voxels.mean(0), 0, atol=1e-4)
    assert np.allclose(voxels.std(0), 1, atol=1e-3)


def test_both_forms_come_back_equal(files):
    from_pickle = Digit69EmbeddingConverter().load_embeddings(files / "digit69_embeddings.pkl")
    from_npz = Digit69EmbeddingConverter().load_embeddings(files / "digit69_embeddings.npz")
    assert from_pickle["metadata"] == from_npz["metadata"]
    for part in ("train", "test"):
        assert set(from_pickle[part]) == set(from_npz[part])
        for key, array in from_pickle[part].items():
            assert np.array_equal(array, from_npz[part][key])


@pytest.fixture(scope="module")
def blind_files(split, tmp_path_factory):
    """The same train rows with other, blind test rows."""
    folder = tmp_path_factory.mktemp("blind")
    other = Split(split.train, split.train.rows([3, 1]).blind(), "other")
    Digit69EmbeddingConverter().convert(other, folder, "smoke", 0, "miyawaki4")
    return folder


def test_test_rows_change_nothing_in_train(files, blind_files):
    ours = Digit69EmbeddingConverter().load_embeddings(files / "digit69_embeddings.pkl")
    other = Digit69EmbeddingConverter().load_embeddings(blind_files / "miyawaki4_embeddings.pkl")
    for key, array in other["train"].items():
        assert np.array_equal(array, ours["train"][key])


def test_a_blind_test_holds_no_images_and_serves_no_pairs(blind_files):
    data = Digit69EmbeddingConverter().load_embeddings(blind_files / "miyawaki4_embeddings.pkl")
    assert set(data["test"]) == {"fmri_embeddings", "original_fmri"}
    assert data["metadata"]["blind_test"]
    with pytest.raises(DataError, match="holds no images"):
        Digit69BaselineDataset(data, "test")


# Research code that must keep working, verbatim.
SNIPPET = """
dataset = Digit69BaselineDataset("digit69_embeddings.pkl", "test"); fmri_emb, target = dataset[0]
converter = Digit69EmbeddingConverter(); data = converter.load_embeddings("digit69_embeddings.pkl")
"""


def test_the_research_snippet_runs(files, monkeypatch):
    monkeypatch.chdir(files)
    names = {
        "Digit69BaselineDataset": Digit69BaselineDataset,
        "Digit69EmbeddingConverter": Digit69EmbeddingConverter,
    }
    exec(SNIPPET, names)
    assert names["fmri_emb"].unsqueeze(0).shape == (1, 512)
    assert names["target"].shape == (1, 28, 28)
    train, test = names["converter"].create_pytorch_datasets(names["data"])
    assert (len(train), len(test)) == (30, 6)


def test_an_unwritable_folder_is_one_line(split, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="choose another --out"):
        Digit69EmbeddingConverter().convert(split, tmp_path / "file", "smoke")


def test_an_unknown_preset_is_refused_before_anything_is_made(split, tmp_path):
    with pytest.raises(ModelError, match="not a preset"):
        Digit69EmbeddingConverter().convert(
            split, tmp_path / "out", "huge", image_encoder=torch.nn.Identity()
        )
    assert not (tmp_path / "out").exists()


# --- damaged and foreign files ------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pkl", ".npz"])
@pytest.mark.parametrize("fraction", [0, 0.001, 0.5, 0.999])
def test_truncated_files_are_told(suffix, fraction, copy):
    path = copy / f"digit69_embeddings{suffix}"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * fraction)])
    with pytest.raises(DataError, match="truncated"):
        Digit69EmbeddingConverter().load_embeddings(path)


def changed(name, **arrays):
    """A function that replaces (or, with None, removes) arrays of one part."""

    def change(data):
        part = {**data[name], **{key: make(data[name]) for key, make in arrays.items()}}
        return {**data, name: {key: array for key, array in part.items() if array is not None}}

    return change


FOREIGN = {
    "a list": (lambda data: [data], "holds no embeddings"),
    "no test": (lambda data: {"train": data["train"]}, "needs train and test"),
    "part is an array": (
        lambda data: {**data, "test": data["test"]["stimuli"]},
        "is a ndarray, not a dict",
    ),
    "metadata is a list": (lambda data: {**data, "metadata": [1]}, "metadata is a list"),
    "no rows": (
        lambda data: {**data, "test": {key: array[:0] for key, array in data["test"].items()}},
        "holds no rows",
    ),
    "no embeddings": (
        changed("test", fmri_embeddings=lambda _: None),
        "test lacks fmri_embeddings",
    ),
    "768 numbers": (
        changed("test", fmri_embeddings=lambda _: np.ones((6, 768))),
        r"must be \(6, 512\)",
    ),
    "one row less": (
        changed("train", image_embeddings=lambda part: part["image_embeddings"][1:]),
        r"has shape \(29, 512\)",
    ),
    "not normalised": (
        changed("train", fmri_embeddings=lambda part: part["fmri_embeddings"] * 2),
        "has length 2",
    ),
    "NaN": (changed("test", original_fmri=lambda _: np.full((6, 100), np.nan)), "first in row 0"),
    "infinite in float32": (
        changed("test", original_fmri=lambda _: np.full((6, 100), 1e300)),
        "too large",
    ),
    "text": (changed("test", original_fmri=lambda _: np.array(["a"])), "not numbers"),
    "a scalar": (changed("test", fmri_embeddings=lambda _: 3.0), "has shape"),
    "ragged": (changed("test", original_fmri=lambda _: [[1, 2], [3]]), "not an array"),
    "images in [-1, 1]": (
        changed("test", original_images=lambda part: part["original_images"] * 2 - 1),
        "range from -1 to",
    ),
    "stimuli 0-255": (
        changed("test", stimuli=lambda part: part["stimuli"] * 255),
        r"must lie in \[0, 1\]",
    ),
    "channels last": (
        changed(
            "test", original_images=lambda part: part["original_images"].transpose(0, 2, 3, 1)
        ),
        "has shape",
    ),
    "other voxels": (
        changed("test", original_fmri=lambda part: part["original_fmri"][:, :9]),
        "train rows have 100 voxels, test rows 9",
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_does_not_fit_the_schema_is_told_in_one_line(kind, files, tmp_path):
    change, message = FOREIGN[kind]
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(change(read_pickle(files))))
    with pytest.raises(DataError, match=message) as error:
        Digit69EmbeddingConverter().load_embeddings(tmp_path / "x.pkl")
    assert "\n" not in str(error.value)


def test_objects_in_an_npz_are_refused(tmp_path):
    hostile = np.array([Reduce(os.system, f"touch {tmp_path / 'marker'}")], object)
    np.savez(tmp_path / "x.npz", train_fmri_emb=hostile)
    with pytest.raises(DataError, match="pickled objects, which are never loaded"):
        Digit69EmbeddingConverter().load_embeddings(tmp_path / "x.npz")
    assert not (tmp_path / "marker").exists()


def test_an_npz_of_something_else_is_told(tmp_path):
    np.savez(tmp_path / "y.npz", something=np.zeros(3))
    with pytest.raises(DataError, match="lacks fmri_embeddings"):
        Digit69EmbeddingConverter().load_embeddings(tmp_path / "y.npz")


def test_a_foreign_file_without_exact_stimuli_still_serves(files, tmp_path):
    data = read_pickle(files)
    exact = data["test"].pop("stimuli")
    del data["metadata"]
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(data))
    dataset = Digit69BaselineDataset(tmp_path / "x.pkl", "test")
    assert not dataset.exact
    assert np.abs(dataset.targets[:, 0].numpy() - exact).mean() < 0.03


@pytest.mark.parametrize("name", ["validation", "Test", "", None, 0])
def test_wrong_split_names_list_the_right_ones(name, files):
    with pytest.raises(DataError, match="choose train or test"):
        Digit69BaselineDataset(files / "digit69_embeddings.npz", name)


def test_a_loader_with_workers_gives_batches(files):
    dataset = Digit69BaselineDataset(files / "digit69_embeddings.npz", "train")
    loader = torch.utils.data.DataLoader(dataset, batch_size=16, num_workers=1)
    shapes = [(tuple(embeddings.shape), tuple(targets.shape)) for embeddings, targets in loader]
    assert shapes == [((16, 512), (16, 1, 28, 28)), ((14, 512), (14, 1, 28, 28))]


# --- the CLIP extra -----------------------------------------------------------------------------------------


def has_clip():
    try:
        return bool(clip_module._open_clip())
    except ModelError:
        return False


needs_clip = pytest.mark.skipif(
    not has_clip(), reason="open_clip is not installed: pip install digit69[clip]"
)


def test_an_absent_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)  # as if it were not installed
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ModelError, match=r"pip install digit69\[clip\]"):
        ClipImageEncoder(weights=None)


@pytest.fixture(scope="module")
def random_clip():
    return ClipImageEncoder(weights=None, device="cpu")


@needs_clip
def test_clip_embeds_with_its_own_preprocessing(random_clip, split):
    import open_clip

    embeddings = random_clip(split.test.images)
    assert embeddings.shape == (6, 512)
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(6), atol=1e-4)
    resize = random_clip.preprocess.transforms[0]
    assert resize.size in (224, (224, 224))
    assert tuple(random_clip.preprocess.transforms[-1].mean) == open_clip.OPENAI_DATASET_MEAN


@needs_clip
def test_the_same_seed_gives_the_same_random_weights(random_clip, split):
    again = ClipImageEncoder(weights=None, device="cpu")
    assert torch.equal(random_clip(split.test.images), again(split.test.images))


@needs_clip
def test_a_weights_file_is_read(random_clip, split, tmp_path):
    torch.save(random_clip.model.state_dict(), tmp_path / "clip.pt")
    from_file = ClipImageEncoder(weights=str(tmp_path / "clip.pt"), device="cpu", seed=1)
    assert torch.allclose(from_file(split.test.images), random_clip(split.test.images), atol=1e-5)


@needs_clip
def test_clip_serves_as_image_encoder(random_clip, split, tmp_path):
    data = Digit69EmbeddingConverter().convert(
        split, tmp_path, "smoke", image_encoder=random_clip
    )
    assert data["test"]["image_embeddings"].shape == (6, 512)
    assert "ClipImageEncoder" in data["metadata"]["image_embeddings"]


@needs_clip
def test_unreachable_weights_are_one_line_in_time(monkeypatch):
    import huggingface_hub

    assert clip_module.WEIGHTS_TIMEOUT < 10
    monkeypatch.setattr(clip_module, "WEIGHTS_TIMEOUT", 1)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    silent = socket.create_server(("127.0.0.1", 0))  # takes calls and never answers
    for url in ("http://weights.invalid", f"http://127.0.0.1:{silent.getsockname()[1]}"):
        monkeypatch.setattr(huggingface_hub, "hf_hub_url", lambda *_, url=url: url)
        started = time.perf_counter()
        with pytest.raises(ModelError, match="does not answer") as error:
            ClipImageEncoder()
        assert time.perf_counter() - started < 5
        assert "\n" not in str(error.value)


@needs_clip
def test_damaged_or_unknown_weights_are_told(tmp_path):
    marker = tmp_path / "marker"
    (tmp_path / "bad.pt").write_bytes(pickle.dumps(Reduce(os.system, f"touch {marker}")))
    with pytest.raises(ModelError, match="cannot be loaded"):
        ClipImageEncoder(weights=str(tmp_path / "bad.pt"))
    with pytest.raises(ModelError, match="no CLIP weights"):
        ClipImageEncoder(weights="openai")
    assert not marker.exists()
