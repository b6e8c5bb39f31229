"""Embeddings files: a hostile pickle runs nothing, a damaged or foreign file gets one clear line, and what was written comes back."""
import builtins
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

from digit69.clip import ClipImageEncoder
from digit69.converter import Digit69BaselineDataset, Digit69EmbeddingConverter
from digit69.safe_pickle import load_plain_pickle
from digit69.core import DataError, ModelError, OutputError
from digit69.data import Split
from digit69.simulation import simulate


@pytest.fixture(scope="module")
def split():
    return simulate(n_train=30, n_test=6, n_voxels=100)


@pytest.fixture(scope="module")
def files(split, tmp_path_factory):
    folder = tmp_path_factory.mktemp("embeddings")
    Digit69EmbeddingConverter().convert(split, folder, "smoke", 0)
    return folder


@pytest.fixture
def copy(files, tmp_path):
    return shutil.copytree(files, tmp_path / "copy")


# --- pickles from outside -------------------------------------------------------------------------------------------

class Reduce:
    "Pickles as the call `f(*args)`, followed by whatever state is given."
    def __init__(self, f, *args, state=None):
        self.f, self.args, self.state = f, args, state

    def __reduce__(self):
        return (self.f, self.args) if self.state is None else (self.f, self.args, self.state)


def text(s):
    return b"X" + len(s).to_bytes(4, "little") + s.encode()


def with_dtype(spec, state):   # a dtype that says one thing and then claims another
    return b"\x80\x04cnumpy\ndtype\n(" + text(spec) + b"\x89\x88tR(" + state + b"tb"


def hostile(ran):
    "Pickles that would create the file `ran`, or reach for something with which they could."
    touch, python = f"touch {ran}", f"open({str(ran)!r}, 'w').close()"
    gadget = lambda body: b"\x80\x04" + body + b"."
    plain = b"K\x03" + text("|") + b"NNNK\x08K\x08K\x00"
    return {
        "os.system": pickle.dumps(Reduce(os.system, touch)),
        "os.system, old protocol": pickle.dumps(Reduce(os.system, touch), 0),
        "deep inside": pickle.dumps({"train": {"fmri_embeddings": [np.zeros(3), (Reduce(os.system, touch),)]}}),
        "as a key": pickle.dumps({Reduce(os.system, touch): 1}),
        "builtins.eval": pickle.dumps(Reduce(eval, f"__import__('os').system({touch!r})")),
        "builtins.exec": pickle.dumps(Reduce(exec, python)),
        "subprocess": pickle.dumps(Reduce(subprocess.Popen, ["touch", str(ran)])),
        "getattr": pickle.dumps(Reduce(getattr, "six", "upper")),
        "getattr chain": gadget(b"cbuiltins\ngetattr\n(cnumpy\nndarray\n" + text("__subclasses__") + b"tR)R"),
        "dotted name": gadget(text("numpy") + text("ndarray.__subclasses__") + b"\x93)R"),
        "dotted name through os": gadget(text("numpy") + text("os.system") + b"\x93(" + text(touch) + b"tR"),
        "numpy with another tail": gadget(b"cnumpy.testing._private.utils\nrunstring\n(" + text(python) + b"}tR"),
        "object array": pickle.dumps(np.array([Reduce(os.system, touch)], object)),
        "object array of plain things": pickle.dumps(np.array([1, "a", None], object)),
        "array of records": pickle.dumps(np.zeros(2, [("a", "f4"), ("b", "O")])),
        "dtype that lies": gadget(with_dtype("O8", plain)),
        "records through the state": gadget(with_dtype("f8", b"K\x03" + text("|") + b"N" + b"(" + text("a") + b"t" + b"}K\x08K\x08K\x00")),
        "array with a list inside": gadget(b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR(K\x01(K\x01t" + with_dtype("f8", b"K\x03" + text("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00")[2:] + b"\x89]K\x01atb"),
        "calls numpy.ndarray": gadget(b"cnumpy\nndarray\n(K\x02tR"),
        "changes a function": gadget(b"cnumpy\ndtype\nN}" + text("__defaults__") + b")s\x86b"),
        "changes a function by a dict": gadget(b"cnumpy\ndtype\n}" + text("_make") + text("x") + b"sb"),
        "builds an instance": gadget(b"(ios\nsystem\n."),
        "NEWOBJ": gadget(b"cbuiltins\nset\n)\x81"),
        "persistent": gadget(b"Pgive me\n"),
        "extension": gadget(b"\x82\x01"),
        "torch tensor": pickle.dumps(torch.zeros(3)),
        "torch.load": pickle.dumps(Reduce(torch.load, str(ran))),
        "torch storage": pickle.dumps(Reduce(torch.storage._load_from_bytes, b"x")),
        "pickle within a pickle": pickle.dumps(Reduce(pickle.loads, pickle.dumps(Reduce(os.system, touch)))),
        "numpy.load with pickles": pickle.dumps(Reduce(np.load, str(ran), None, True)),
        "memmap writes a file": pickle.dumps(Reduce(np.memmap, str(ran), "f4", "w+", 0, (3,))),
        "open": pickle.dumps(Reduce(open, str(ran), "w")),
        "import": pickle.dumps(Reduce(builtins.__import__, "antigravity")),
        "a function as a value": pickle.dumps({"train": len}),
        "a call as a value": gadget(b"cnumpy\ndtype\n"),
        "holds itself": gadget(b"]\x94h\x00a"),
    }


@pytest.mark.parametrize("kind", hostile("ran"))
def test_hostile_pickle_runs_nothing(kind, tmp_path):
    ran, path = tmp_path / "ran", tmp_path / "digit69_embeddings.pkl"
    path.write_bytes(hostile(ran)[kind])
    for read in (load_plain_pickle, Digit69EmbeddingConverter().load_embeddings, lambda p: Digit69BaselineDataset(p, "test")):
        with pytest.raises(DataError) as e:
            read(path)
        assert "\n" not in str(e.value) and "digit69_embeddings.pkl" in str(e.value) and len(str(e.value)) < 400 + len(str(path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["digit69_embeddings.pkl"]


def test_the_hostile_pickles_are_hostile(tmp_path):
    ran = tmp_path / "ran"
    for kind in ("os.system", "deep inside", "builtins.eval", "builtins.exec", "object array", "pickle within a pickle", "memmap writes a file", "open"):
        try:
            pickle.loads(hostile(ran)[kind])
        except Exception:
            pass
        assert ran.exists(), kind
        ran.unlink()


def test_a_name_with_a_line_break_stays_one_line(tmp_path):
    (tmp_path / "x.pkl").write_bytes(b"\x80\x04" + text("os\nTraceback: fake") + text("system\n" * 100) + b"\x93.")
    with pytest.raises(DataError) as e:
        load_plain_pickle(tmp_path / "x.pkl")
    assert "\n" not in str(e.value) and "refused" in str(e.value)


BOMBS = {
    "huge text": b"\x80\x04\x8d" + (1 << 60).to_bytes(8, "little") + b"x",
    "huge bytearray": b"\x80\x05\x96" + (1 << 60).to_bytes(8, "little") + b"x",
    "huge array": b"\x80\x04cnumpy._core.numeric\n_frombuffer\n(C\x01x" + b"cnumpy\ndtype\n(" + text("f8") + b"\x89\x88tR\x8a\x08" + (1 << 60).to_bytes(8, "little") + b"\x85" + text("C") + b"tR.",
    "negative shape": b"\x80\x04cnumpy._core.numeric\n_frombuffer\n(C\x01x" + b"cnumpy\ndtype\n(" + text("u1") + b"\x89\x88tRJ\xff\xff\xff\xff\x85" + text("C") + b"tR.",
    "deeply nested": b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "nothing": b"", "prose": b"Dear reviewer", "zip": b"PK\x03\x04 not a pickle",
}


@pytest.mark.parametrize("what", BOMBS)
def test_bombs_and_other_formats(what, tmp_path):
    (tmp_path / "x.pkl").write_bytes(BOMBS[what])
    with pytest.raises(DataError):
        load_plain_pickle(tmp_path / "x.pkl")


@pytest.mark.parametrize("protocol", range(6))
def test_plain_things_come_back(protocol, tmp_path):
    shared = np.arange(6, dtype=np.int16).reshape(2, 3)
    thing = OrderedDict(a=shared, b=[shared, shared.T, shared[:, ::2]], t=(1, 2.5, True, None, "six", b"\xff\x00", 2j), n=np.float64(3), s={"x"}, f=frozenset({1}), e={}, u=np.array(["six"]), big=shared.astype(">i4"))
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(thing, protocol))
    back = load_plain_pickle(tmp_path / "x.pkl")
    assert set(back) == set(thing) and back["t"] == thing["t"] and back["s"] == {"x"} and back["f"] == {1}
    for a, b in zip([back["a"], *back["b"], back["u"], back["big"]], [thing["a"], *thing["b"], thing["u"], thing["big"]]):
        assert type(a) is np.ndarray and a.dtype == b.dtype and np.array_equal(a, b)
        a[...] = a   # writable, and nobody else's memory


def test_files_of_older_numpy(tmp_path):
    new = pickle.dumps({"a": np.arange(3.)}, 2)
    assert b"numpy._core" in new
    (tmp_path / "x.pkl").write_bytes(new.replace(b"numpy._core", b"numpy.core"))
    assert np.array_equal(load_plain_pickle(tmp_path / "x.pkl")["a"], np.arange(3.))


# --- the schema -----------------------------------------------------------------------------------------------------

def test_names_shapes_and_ranges(split, files):
    assert sorted(p.name for p in files.iterdir()) == ["digit69_embeddings.npz", "digit69_embeddings.pkl", "digit69_embeddings_metadata.json"]
    data = pickle.loads((files / "digit69_embeddings.pkl").read_bytes())       # ours: any pickle reader may have it
    for part, rows in (("train", split.train), ("test", split.test)):
        s = data[part]
        assert {k: v.shape for k, v in s.items()} == {"fmri_embeddings": (rows.n, 512), "image_embeddings": (rows.n, 512), "original_fmri": (rows.n, 100), "original_images": (rows.n, 3, 224, 224), "stimuli": (rows.n, 28, 28)}
        assert all(v.dtype == np.float32 for v in s.values())
        assert 0 <= s["original_images"].min() and s["original_images"].max() <= 1
        assert np.array_equal(s["stimuli"], rows.images)
        for k in ("fmri_embeddings", "image_embeddings"):
            assert np.allclose(np.linalg.norm(s[k], axis=1), 1, atol=1e-5)
    assert np.allclose(data["train"]["original_fmri"].mean(0), 0, atol=1e-4) and np.allclose(data["train"]["original_fmri"].std(0), 1, atol=1e-3)
    assert data["metadata"] == json.loads((files / "digit69_embeddings_metadata.json").read_text())
    assert set(np.load(files / "digit69_embeddings.npz").files) == {f"{p}_{k}" for p in ("train", "test") for k in ("fmri_emb", "image_emb", "original_fmri", "stimuli")}


def test_both_forms_come_back_equal(files):
    a, b = (Digit69EmbeddingConverter().load_embeddings(files / f"digit69_embeddings{k}") for k in (".pkl", ".npz"))
    assert a["metadata"] == b["metadata"]
    for part in ("train", "test"):
        assert set(a[part]) == set(b[part])
        assert all(np.array_equal(a[part][k], b[part][k]) for k in a[part])


def test_test_rows_change_nothing_in_train(split, files, tmp_path):
    other = Split(split.train, split.train.rows([3, 1]).blind(), "other")
    data = Digit69EmbeddingConverter().convert(other, tmp_path, "smoke", 0, "miyawaki4")
    ours = Digit69EmbeddingConverter().load_embeddings(files / "digit69_embeddings.pkl")
    assert all(np.array_equal(data["train"][k], ours["train"][k]) for k in data["train"])
    assert set(data["test"]) == {"fmri_embeddings", "original_fmri"} and data["metadata"]["blind_test"]
    assert (tmp_path / "miyawaki4_embeddings.pkl").exists()
    back = Digit69EmbeddingConverter().load_embeddings(tmp_path / "miyawaki4_embeddings.pkl")
    with pytest.raises(DataError, match="holds no images"):
        Digit69BaselineDataset(back, "test")


def test_research_snippet(files, monkeypatch):
    monkeypatch.chdir(files)
    dataset = Digit69BaselineDataset("digit69_embeddings.pkl", "test"); fmri_emb, target = dataset[0]   # noqa: E702  as promised, verbatim
    assert fmri_emb.unsqueeze(0).shape == (1, 512) and target.shape == (1, 28, 28)
    converter = Digit69EmbeddingConverter(); data = converter.load_embeddings("digit69_embeddings.pkl")  # noqa: E702
    train, test = converter.create_pytorch_datasets(data)
    assert (len(train), len(test)) == (30, 6)


def test_unwritable_out_is_one_line(split, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="choose another --out"):
        Digit69EmbeddingConverter().convert(split, tmp_path / "file", "smoke")
    with pytest.raises(ModelError, match="not a preset"):
        Digit69EmbeddingConverter().convert(split, tmp_path / "out", "huge", image_encoder=torch.nn.Identity())
    assert not (tmp_path / "out").exists()


# --- damaged and foreign files --------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", [".pkl", ".npz"])
@pytest.mark.parametrize("share", [0, .001, .5, .999])
def test_truncated_files(kind, share, copy):
    path = copy / f"digit69_embeddings{kind}"
    whole = path.read_bytes()
    path.write_bytes(whole[:int(len(whole) * share)])
    with pytest.raises(DataError, match="truncated"):
        Digit69EmbeddingConverter().load_embeddings(path)


def without(part, *keys):
    return {k: v for k, v in part.items() if k not in keys}


FOREIGN = {
    "a list": (lambda d: [d], "holds no embeddings"),
    "no test": (lambda d: {"train": d["train"]}, "needs train and test"),
    "part is an array": (lambda d: {**d, "test": d["test"]["stimuli"]}, "is a ndarray, not a dict"),
    "no embeddings": (lambda d: {**d, "test": without(d["test"], "fmri_embeddings")}, "test lacks fmri_embeddings"),
    "no rows": (lambda d: {**d, "test": {k: v[:0] for k, v in d["test"].items()}}, "holds no rows"),
    "768 numbers": (lambda d: {**d, "test": {**d["test"], "fmri_embeddings": np.ones((6, 768))}}, r"must be \(6, 512\)"),
    "one row less": (lambda d: {**d, "train": {**d["train"], "image_embeddings": d["train"]["image_embeddings"][1:]}}, r"has shape \(29, 512\)"),
    "not normalised": (lambda d: {**d, "train": {**d["train"], "fmri_embeddings": d["train"]["fmri_embeddings"] * 2}}, "has length 2"),
    "NaN": (lambda d: {**d, "test": {**d["test"], "original_fmri": np.full((6, 100), np.nan)}}, "first in row 0"),
    "infinite in float32": (lambda d: {**d, "test": {**d["test"], "original_fmri": np.full((6, 100), 1e300)}}, "too large"),
    "text": (lambda d: {**d, "test": {**d["test"], "original_fmri": np.array(["a"])}}, "not numbers"),
    "a scalar": (lambda d: {**d, "test": {**d["test"], "fmri_embeddings": 3.}}, "has shape"),
    "ragged": (lambda d: {**d, "test": {**d["test"], "original_fmri": [[1, 2], [3]]}}, "not an array"),
    "images in [-1, 1]": (lambda d: {**d, "test": {**d["test"], "original_images": d["test"]["original_images"] * 2 - 1}}, "range from -1 to"),
    "stimuli 0-255": (lambda d: {**d, "test": {**d["test"], "stimuli": d["test"]["stimuli"] * 255}}, r"must lie in \[0, 1\]"),
    "channels last": (lambda d: {**d, "test": {**d["test"], "original_images": d["test"]["original_images"].transpose(0, 2, 3, 1)}}, "has shape"),
    "other voxels": (lambda d: {**d, "test": {**d["test"], "original_fmri": d["test"]["original_fmri"][:, :9]}}, "train rows have 100 voxels, test rows 9"),
    "metadata is a list": (lambda d: {**d, "metadata": [1]}, "metadata is a list"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_schema(kind, files, tmp_path):
    spoil, says = FOREIGN[kind]
    data = spoil(pickle.loads((files / "digit69_embeddings.pkl").read_bytes()))
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(data))
    with pytest.raises(DataError, match=says) as e:
        Digit69EmbeddingConverter().load_embeddings(tmp_path / "x.pkl")
    assert "\n" not in str(e.value)


def test_npz_objects_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", train_fmri_emb=np.array([Reduce(os.system, f"touch {tmp_path / 'ran'}")], object))
    with pytest.raises(DataError, match="plain arrays"):
        Digit69EmbeddingConverter().load_embeddings(tmp_path / "x.npz")
    np.savez(tmp_path / "y.npz", something=np.zeros(3))
    with pytest.raises(DataError, match="lacks fmri_embeddings"):
        Digit69EmbeddingConverter().load_embeddings(tmp_path / "y.npz")
    assert not (tmp_path / "ran").exists()


def test_foreign_file_without_exact_stimuli_still_serves(files, tmp_path):
    data = pickle.loads((files / "digit69_embeddings.pkl").read_bytes())
    exact = data["test"].pop("stimuli")
    del data["metadata"]
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(data))
    dataset = Digit69BaselineDataset(tmp_path / "x.pkl", "test")
    assert not dataset.exact and np.abs(dataset.targets[:, 0].numpy() - exact).mean() < .03


@pytest.mark.parametrize("name", ["validation", "Test", "", None, 0])
def test_wrong_split_names(name, files):
    with pytest.raises(DataError, match="choose train or test"):
        Digit69BaselineDataset(files / "digit69_embeddings.npz", name)


def test_loader_gives_batches(files):
    loader = torch.utils.data.DataLoader(Digit69BaselineDataset(files / "digit69_embeddings.npz", "train"), batch_size=16, num_workers=1)
    shapes = [tuple(map(tuple, (a.shape, b.shape))) for a, b in loader]
    assert shapes == [((16, 512), (16, 1, 28, 28)), ((14, 512), (14, 1, 28, 28))]


# --- the CLIP extra -------------------------------------------------------------------------------------------------

def clip_here():
    try:
        import digit69.clip as c
        return bool(c._open_clip())
    except ModelError:
        return False


needs_clip = pytest.mark.skipif(not clip_here(), reason="open_clip is not installed: pip install digit69[clip]")


def test_absent_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)   # as if it were not installed
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ModelError, match=r"pip install digit69\[clip\]"):
        ClipImageEncoder(weights=None)


@needs_clip
def test_clip_with_random_weights(split, tmp_path):
    import open_clip
    clip = ClipImageEncoder(weights=None, device="cpu")
    seen = clip(split.test.images)
    assert seen.shape == (6, 512) and torch.allclose(seen.norm(dim=1), torch.ones(6), atol=1e-4)
    assert torch.equal(seen, ClipImageEncoder(weights=None, device="cpu")(split.test.images))      # the same seed, the same weights
    resize, crop = clip.preprocess.transforms[:2]
    assert resize.size in (224, (224, 224)) and tuple(clip.preprocess.transforms[-1].mean) == open_clip.OPENAI_DATASET_MEAN
    torch.save(clip.model.state_dict(), tmp_path / "clip.pt")                                      # the path a real weights file takes
    assert torch.allclose(ClipImageEncoder(weights=str(tmp_path / "clip.pt"), device="cpu", seed=1)(split.test.images), seen, atol=1e-5)


@needs_clip
def test_clip_as_image_encoder(split, tmp_path):
    data = Digit69EmbeddingConverter().convert(split, tmp_path, "smoke", image_encoder=ClipImageEncoder(weights=None, device="cpu"))
    assert data["test"]["image_embeddings"].shape == (6, 512) and "ClipImageEncoder" in data["metadata"]["image_embeddings"]


@needs_clip
def test_unreachable_or_damaged_weights_are_one_line(monkeypatch, tmp_path):
    import huggingface_hub
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    silent = socket.create_server(("127.0.0.1", 0))                            # takes calls and never answers
    for place in ("http://weights.invalid", f"http://127.0.0.1:{silent.getsockname()[1]}"):
        monkeypatch.setattr(huggingface_hub, "hf_hub_url", lambda *_, place=place: place)
        start = time.perf_counter()
        with pytest.raises(ModelError, match="does not answer") as e:
            ClipImageEncoder()
        assert time.perf_counter() - start < 10 and "\n" not in str(e.value)
    (tmp_path / "bad.pt").write_bytes(pickle.dumps(Reduce(os.system, f"touch {tmp_path / 'ran'}")))
    with pytest.raises(ModelError, match="cannot be loaded"):
        ClipImageEncoder(weights=str(tmp_path / "bad.pt"))
    with pytest.raises(ModelError, match="no CLIP weights"):
        ClipImageEncoder(weights="openai")
    assert not (tmp_path / "ran").exists()
