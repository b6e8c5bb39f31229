"""Seeded damage of every kind of file, and readers that must answer each with a value or with one line.

`python tests/mutations.py [N]` prints how many of N mutants of each kind failed; older versions can be asked
too.
"""

import json
import pickle
import random
import signal
import struct
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import torch

from digit69.cli import main
from digit69.comprehensive import load_weights
from digit69.converter import Digit69EmbeddingConverter, load_embeddings
from digit69.core import Digit69Error, set_quiet
from digit69.datasets import load_dataset
from digit69.grid_file import read_grid
from digit69.model_card import model_card
from digit69.models.settings import parse_settings
from digit69.readers import split_to_arrays, write_split
from digit69.runs import load_reconstructions, load_run
from digit69.scoring import TableEntry, score_run
from digit69.simulation import simulate
from digit69.training import TrainingConfig, train_module
from digit69.training_run import train_to_folder

SECONDS = 20  # that one input may take

# --- damage ------------------------------------------------------------------------------------------------


def damage_bytes(content: bytes, draw: random.Random) -> bytes:
    """Bytes that were cut, overwritten, repeated or moved."""
    data = bytearray(content)
    how = draw.choice(["cut", "flip", "zero", "repeat", "insert", "header", "empty"])
    place = draw.randrange(len(data))
    if how == "cut":
        del data[place:]
    elif how == "flip":
        for _ in range(draw.choice([1, 8, 64])):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif how == "zero":
        data[place : place + 64] = bytes(len(data[place : place + 64]))
    elif how == "repeat":
        data[place:place] = data[place : place + 128]
    elif how == "insert":
        data[place:place] = draw.randbytes(16)
    elif how == "header":
        start = draw.randrange(min(200, len(data)))
        data[start : start + 8] = draw.choice([b"\xff" * 8, bytes(8), struct.pack("<Q", 2**62)])
    else:
        data.clear()
    return bytes(data)


ODD_VALUES = [
    None,
    True,
    "x",
    "",
    -1,
    0,
    10**12,
    1e300,
    float("nan"),
    float("inf"),
    [],
    {},
    [None],
    {"x": None},
    [[[[1]]]],
    "<img src=x onerror=alert(1)>",
    "../../etc/passwd",
    10**400,
]


def places(value: object, found: list | None = None) -> list[tuple]:
    """(container, key) of everything inside a JSON value."""
    found = [] if found is None else found
    keys = (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    for key in keys:
        found.append((value, key))
        places(value[key], found)
    return found


def damage_value(value: object, draw: random.Random) -> object:
    """A JSON value in which one place was replaced, removed, renamed or repeated."""
    value = deepcopy(value)
    container, key = draw.choice(places(value))
    how = draw.choice(["replace", "replace", "replace", "remove", "rename", "top"])
    if how == "replace":
        container[key] = draw.choice(ODD_VALUES)
    elif how == "remove":
        del container[key]
    elif how == "rename" and isinstance(container, dict):
        container[draw.choice(["", "x", "<b>", "../x"])] = container.pop(key)
    else:
        return draw.choice(ODD_VALUES) if draw.random() < 0.2 else value
    return value


def damage_json(content: bytes, draw: random.Random) -> bytes:
    """A JSON file with damaged contents, or damaged bytes."""
    if draw.random() < 0.2:
        return damage_bytes(content, draw)
    return json.dumps(damage_value(json.loads(content), draw)).encode()


def damage_array(array: np.ndarray, draw: random.Random) -> np.ndarray:
    """An array of another shape, kind or range."""
    array = np.array(array)
    changes = [
        lambda a: a[:0],
        lambda a: a[:1],
        lambda a: a.ravel(),
        lambda a: a[None],
        lambda a: a.T,
        lambda a: a.astype(complex),
        lambda a: a.astype(str),
        lambda a: a.astype(object),
        lambda a: np.full(a.shape, np.nan),
        lambda a: np.full(a.shape, np.inf),
        lambda a: np.full(a.shape, 1e30),
        lambda a: np.full(a.shape, -5.0),
        lambda a: np.zeros(a.shape),
        lambda a: a.astype("datetime64[s]") if a.dtype.kind in "iu" else a > 0,
        lambda a: np.array(3.0),
        lambda a: np.zeros((3, 0, 28)),
        lambda a: np.full(a.shape, 2**63, np.uint64),
    ]
    return draw.choice(changes)(array)


def damage_npz(content: bytes, draw: random.Random) -> bytes:
    """An .npz file with damaged bytes, arrays, headers or packing."""
    how = draw.choice(["bytes", "array", "array", "array", "header", "missing", "packing"])
    if how == "bytes":
        return damage_bytes(content, draw)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.npz"
        file.write_bytes(content)
        with np.load(file) as loaded:
            arrays = dict(loaded)
        key = draw.choice(list(arrays))
        if how == "missing":
            del arrays[key]
        elif how == "array":
            arrays[key] = damage_array(arrays[key], draw)
        np.savez(file, **arrays)
        if how in ("header", "packing"):
            rewrite_member(file, key, how, draw)
        return file.read_bytes()


def rewrite_member(file: Path, key: str, how: str, draw: random.Random) -> None:
    """Give one array of an .npz file an impossible header or an unusual packing."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = f"{key}.npy"
    if how == "header":
        shape = draw.choice([(10**15,), (10**30,), (2**31, 2**31, 2**31), (-1,), (3.5,), ("x",)])
        descr = draw.choice(["<f8", "<f4", "|O", "no", "<U1000000"])
        text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape!r}, }}\n".encode()
        magic = np.lib.format.magic(1, 0)
        members[name] = magic + struct.pack("<H", len(text)) + text + members[name][128:]
    kinds = [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2] if how == "packing" else [zipfile.ZIP_DEFLATED]
    with zipfile.ZipFile(file, "w", draw.choice(kinds)) as archive:
        for member, content in members.items():
            archive.writestr(member, content)


def damage_pickle(content: bytes, draw: random.Random) -> bytes:
    """A pickle with damaged bytes, other contents, or instructions that build without end."""
    how = draw.choice(["bytes", "bytes", "value", "nest", "memory", "deep"])
    if how == "bytes":
        return damage_bytes(content, draw)
    if how == "nest":
        return b"\x80\x04" + b")" + b"\x85" * draw.choice([1000, 300_000]) + b"."
    if how == "deep":
        return b"\x80\x04" + b"(" * 100_000 + b"l" * 100_000 + b"."
    if how == "memory":
        return (
            b"\x80\x04cbuiltins\nbytearray\n\x8a\x06" + (10**14).to_bytes(6, "little") + b"\x85R."
        )
    data = pickle.loads(content)
    part = data[draw.choice(["train", "test"])]
    key = draw.choice(list(part))
    part[key] = draw.choice([damage_array(part[key], draw), draw.choice(ODD_VALUES)])
    return pickle.dumps(draw.choice([data, part, [data], {**data, "metadata": part[key]}]))


GRID = """
- command: run
  fixed: {data: simulated, preset: smoke, set: {ldm.optim_steps: 20}}
  grid: {models: ["ridge,ldm", mean], seed: [0, 1]}
- command: train
  fixed: {model: ldm}
  grid: {set: {ldm.optim_steps: [5, 10]}}
"""

GRID_VALUE = [
    {
        "command": "run",
        "fixed": {"data": "simulated", "preset": "smoke", "ldm.optim_steps": 20},
        "grid": {"models": ["ridge,ldm", "mean"], "seed": [0, 1]},
    }
]

LEVELS = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)]
BOMB = "a0: &a0 [x, x]\n" + "".join(LEVELS)


def damage_grid(content: bytes, draw: random.Random) -> bytes:
    """A grid file with damaged text or values, with aliases that unfold, or with too many combinations."""
    import yaml

    how = draw.choice(["bytes", "value", "value", "value", "hostile"])
    if how == "bytes":
        return damage_bytes(content, draw)
    if how == "value":
        return yaml.safe_dump(damage_value(GRID_VALUE, draw)).encode()
    digits = list(range(100))
    many = {
        "command": "run",
        "grid": {"seed": digits, "folds": digits, "null": digits, "repeats": digits},
    }
    texts = [
        BOMB,
        f"command: run\nfixed: {{models: *a}}\n{BOMB}",
        f"{BOMB}\ncommand: run",
        yaml.safe_dump(many),
        "command: run\nnull: 1",
        "command: run\nfixed: {2026-01-01: 1, seed: 2026-01-01}",
        "command: run\ngrid: {null: [1], seed: [null]}",
        "&a [*a]",
        "command: [run]",
        "report: {a: b}",
        "[" * 10_000,
        "!!python/object/apply:os.system [ls]",
        "command: run\nfixed: {seed: !!binary aGk=, models: !!set {a}}",
        "\0",
    ]
    return draw.choice(texts).encode()


# --- readers -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A kind of file: a whole one, how it is damaged, and what reads it."""

    file: Path
    damage: Callable
    read: Callable  # read(file)


class TooSlowError(Exception):
    """Reading took too long."""


@contextmanager
def limited(seconds: int):
    """Raise `TooSlowError` in the body after some seconds."""

    def stop(number: int, frame: object) -> None:
        raise TooSlowError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def is_one_line(text: str) -> bool:
    """Whether a message is a line, and not an empty one."""
    return len(text.strip().splitlines()) == 1


def outcome(read: Callable, file: Path) -> str | None:
    """None where a file is read or refused in one line, else what went wrong."""
    try:
        with limited(SECONDS), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            read(file)
    except Digit69Error as error:
        return None if is_one_line(str(error)) else f"not one line: {str(error)!r:.80}"
    except TooSlowError:
        return "too slow"
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} in {Path(place.filename).name}:{place.lineno} {str(error)[:80]}"
    return None


def command(*words: object) -> None:
    """Run a command in this process; it ends with exit code 0, or with 2 and one line."""
    with redirect_stderr(StringIO()) as said:
        code = main([*map(str, words), "--quiet"])
    if code not in (0, 2) or (code == 2 and not is_one_line(said.getvalue())):
        raise AssertionError(f"exit code {code}: {said.getvalue()[:80]!r}")


def make_checkpoint(file: Path) -> Callable:
    """A checkpoint of a small training, and a function that goes on from it."""
    settings = TrainingConfig(steps=2, check_every=1)

    def train(checkpoint: Path) -> None:
        module = torch.nn.Linear(2, 1)
        draw = lambda n, generator: (torch.ones(n, 2), torch.ones(n, 1))  # noqa: E731
        loss = lambda net, batch, generator: ((net(batch[0]) - batch[1]) ** 2).mean()  # noqa: E731
        train_module(module, draw, loss, settings, checkpoint=checkpoint)

    train(file)
    return train


def build_kinds(
    folder: Path, models: tuple = ("ridge", "class_mean", "posterior")
) -> dict[str, Kind]:
    """One whole file of each kind, in a folder."""
    split = simulate(n_train=24, n_test=6, n_voxels=40, seed=3)
    data = {ending: write_split(split, folder / f"data{ending}") for ending in (".npz", ".mat")}
    np.savez(folder / "plain.npz", **split_to_arrays(split))
    kinds = {
        "data .npz": Kind(folder / "plain.npz", damage_npz, lambda file: load_dataset(str(file))),
        "data .mat": Kind(data[".mat"], damage_bytes, lambda file: load_dataset(str(file))),
    }
    recon = folder / "recon.npz"
    np.savez(recon, reconstructions=split.test.images)
    kinds["reconstructions"] = Kind(recon, damage_npz, load_reconstructions)
    for name in models:
        model = folder / name
        train_to_folder(split, name, model, preset="smoke")
        words = [
            "reconstruct",
            "--model",
            model,
            "--data",
            folder / "plain.npz",
            "--out",
            folder / "o.npz",
        ]
        read = lambda file, words=words: command(*words)  # noqa: E731
        kinds[f"{name} model.json"] = Kind(model / "model.json", damage_json, read)
        kinds[f"{name} weights"] = Kind(model / "model.safetensors", damage_bytes, read)
    run = folder / "run"
    np_file = run / "reconstructions" / "ridge.npz"
    np_file.parent.mkdir(parents=True)
    np.savez(np_file, reconstructions=split.test.images)
    costs = {"n_parameters": 3, "train_seconds": 1.0, "latency_ms_per_image": 1.0}
    score_run(split, {"ridge": TableEntry(split.test.images, costs)}, run)
    (run / "manifest.json").write_text(
        '{"identity": {}, "set": {"a.b": 1}, "prior": {}, "preset": "quick"}'
    )
    read_run = lambda file: model_card(load_run(run))  # noqa: E731
    for name in ("metrics.json", "manifest.json"):
        kinds[f"run {name}"] = Kind(run / name, damage_json, read_run)
    kinds["run table"] = Kind(run / "metrics_per_image.csv", damage_bytes, read_run)
    kinds["run targets"] = Kind(run / "targets.npz", damage_npz, read_run)
    Digit69EmbeddingConverter().convert(split, folder / "emb", preset="smoke", name="digit69")
    pickled = folder / "emb" / "digit69_embeddings.pkl"
    small = load_embeddings(pickled)
    for part in ("train", "test"):
        small[part] = {
            key: value[:3] for key, value in small[part].items() if key != "original_images"
        }
    pickled.write_bytes(pickle.dumps({**small, "metadata": {}}))
    kinds["embeddings .pkl"] = Kind(pickled, damage_pickle, load_embeddings)
    grid = folder / "grid.yaml"
    grid.write_text(GRID)
    kinds["grid"] = Kind(grid, damage_grid, read_grid)
    weights = folder / "w.pth"
    torch.save({"a": torch.ones(3)}, weights)
    kinds["state dict"] = Kind(weights, damage_bytes, load_weights)
    checkpoint = folder / "c.pth"
    kinds["checkpoint"] = Kind(checkpoint, damage_bytes, make_checkpoint(checkpoint))
    return kinds


def settings_failures(n: int, seed: int = 0) -> list[str]:
    """What goes wrong with `n` odd values of `--set`."""
    draw, problems = random.Random(seed), []
    for _ in range(n):
        value = draw.choice(ODD_VALUES)
        word = f"ldm.{draw.choice(['optim_steps', 'lr', 'x', ''])}={value if draw.random() < 0.7 else '{['}"
        problems.append(outcome(lambda file, word=word: parse_settings([word]), Path("none")))
    return [problem for problem in problems if problem]


def failures(kind: Kind, n: int, seed: int = 0) -> list[str]:
    """What goes wrong with `n` damaged files of a kind."""
    whole, draw, problems = kind.file.read_bytes(), random.Random(seed), []
    assert outcome(kind.read, kind.file) is None, outcome(kind.read, kind.file)
    for _ in range(n):
        try:
            mutant = kind.damage(whole, draw)
        except (TypeError, ValueError, OverflowError, IndexError):
            continue  # this damage does not exist for that array
        kind.file.write_bytes(mutant)
        problem = outcome(kind.read, kind.file)
        if problem:
            problems.append(problem)
    kind.file.write_bytes(whole)
    return problems


def survey(n: int, seed: int) -> None:
    """Print how many of `n` mutants of each kind failed, and why."""
    set_quiet()
    with tempfile.TemporaryDirectory() as folder:
        for name, kind in build_kinds(Path(folder)).items():
            started = time.perf_counter()
            found = failures(kind, n, seed)
            seconds = time.perf_counter() - started
            print(f"{name:24} {len(found):4} of {n} failed, {seconds:5.1f} s", flush=True)
            for problem, times in Counter(found).most_common(8):
                print(f"    {times:4} {problem}", flush=True)
        found = settings_failures(n, seed)
        print(f"{'--set':24} {len(found):4} of {n} failed")


if __name__ == "__main__":
    survey(
        int(sys.argv[1]) if len(sys.argv) > 1 else 40,
        int(sys.argv[2]) if len(sys.argv) > 2 else 0,
    )
