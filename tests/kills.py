"""Commands that are killed at one of their renames, and then given once more.

`python tests/kills.py 20` kills each command 20 times, and says how often the second call gave what an
undisturbed one gives. `--pages` makes pictures and reports as well, which takes a minute a kill.

Each command runs in a process of its own, a copy of this one (which has imported everything). The file
`sitecustomize.py`, which Python imports when it starts, counts renames in its workers and kernels too.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from digit69 import audit_run, batch, comparison, experiment, report, training_run  # noqa: F401
from digit69.cli import main
from digit69.core import set_quiet
from digit69.files import write_text
from digit69.readers import write_split
from digit69.scoring import drop_timings
from digit69.simulation import simulate
from kill_at_rename import watch_renames

SITE = """
import sys
sys.path.insert(0, {tests!r})
from kill_at_rename import watch_renames
watch_renames({folder!r})
"""

GRID = """
- command: run
  fixed: {data: DATA, preset: smoke, models: mean}
"""

# Where workers do it, there are no pages to leave out.
TRAINING_GRID = """
- command: train
  fixed: {data: DATA, preset: smoke}
  grid: {model: [mean, class_mean, ridge]}
"""

COMMANDS = {
    "run": "run --models ridge --data DATA --preset smoke --quiet --jobs 1",
    "run --jobs 2": "run --models ridge --data DATA --preset smoke --quiet --jobs 2",
    "crossval": "crossval --models ridge --folds 2 --data DATA --preset smoke --quiet",
    "crossval --jobs 2": "crossval --models ridge --folds 2 --data DATA --preset smoke --quiet --jobs 2",
    "train": "train --model ridge --data DATA --preset smoke --quiet",
    "batch": "batch GRID --quiet",
    "batch --jobs 2": "batch TRAINING --quiet --jobs 2",
}
CLOCK = ("train_seconds", "latency_ms_per_image", "latency_ms")  # what no seed determines
SECONDS = 180  # that a command may take on a busy machine
RESUMED = ("run", "train")  # these go on with --resume; the others by themselves


def write_stub(name: str, out: Path, /, **parameters: object) -> Path:
    """Two files where a report writes two."""
    write_text(out / f"{name}.ipynb", "")
    return write_text(out / f"{name}.html", "")


def leave_out_pages() -> None:
    """Make no pictures, and pages without content: they take longer than the fits."""
    for module in (experiment, comparison, report, audit_run):
        module.run_notebook = write_stub
        module.check_kernel = lambda: None
    experiment.save_figure = lambda figure, path, **options: write_text(path, "")
    experiment.quality_figure = lambda split, audit: None
    experiment.write_readout_figure = lambda *arguments, **options: None
    experiment.run_figures = experiment.diagnostic_figures = lambda run: {}


@dataclass(frozen=True)
class Place:
    """Where commands are killed: a folder with data, a grid and the files that Python finds at its start."""

    folder: Path

    @property
    def site(self) -> Path:
        """The folder that stands first on the path of every process."""
        return self.folder / "site"

    @property
    def out(self) -> Path:
        """What the commands write."""
        return self.folder / "out"

    def words(self, name: str) -> list[str]:
        """A command of `COMMANDS` in words."""
        files = {"DATA": "data.npz", "GRID": "grid.yaml", "TRAINING": "training.yaml"}
        words = [
            str(self.folder / files[word]) if word in files else word
            for word in COMMANDS[name].split()
        ]
        return [*words, "--out", str(self.out)]


@dataclass(frozen=True)
class Kill:
    """At which rename a command is killed; 0: not at all."""

    at: int = 0
    how: str = "half"  # half: while the file is written; after: when it has its name
    whole_group: bool = True  # False: only the process that renames


def make_place(folder: Path) -> Place:
    """Data, grids and a `sitecustomize.py` in a folder."""
    place = Place(folder)
    place.site.mkdir()
    data = write_split(simulate(n_train=24, n_test=6, n_voxels=40, seed=3), folder / "data.npz")
    for name, grid in {"grid": GRID, "training": TRAINING_GRID}.items():
        (folder / f"{name}.yaml").write_text(grid.replace("DATA", str(data)))
    site = SITE.format(tests=str(Path(__file__).parent), folder=str(place.site))
    (place.site / "sitecustomize.py").write_text(site)
    return place


def become_command(place: Place, words: list[str]) -> None:
    """In a copy of this process: run a command, its words and remarks in a file, and end."""
    os.setsid()
    with open(place.folder / "said.txt", "w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(place.site), *sys.path[1:]])
    sys.path.insert(0, str(place.site))
    watch_renames(str(place.site))
    code = 1
    try:
        code = main(words)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def call(place: Place, words: list[str], kill: Kill) -> int:
    """Run a command that is killed at a rename; its exit code, or minus the signal that ended it."""
    plan = {"out": str(place.out), **asdict(kill)}
    (place.site / "plan.json").write_text(json.dumps(plan))
    (place.site / "renames").write_bytes(b"")
    child = os.fork()
    if child == 0:
        become_command(place, words)
    deadline, status = time.monotonic() + SECONDS, None
    while status is None and time.monotonic() < deadline:
        ended, found = os.waitpid(child, os.WNOHANG)
        status = found if ended else None
        time.sleep(0.02)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # workers that lost their command
    assert status is not None, f"{words} did not end after {kill}"
    return os.waitstatus_to_exitcode(status)


def without_clock(table: pd.DataFrame) -> str:
    """A table without the columns that a clock measured."""
    return table.drop(columns=[name for name in CLOCK if name in table]).to_csv()


def content(path: Path) -> object:
    """What the seed determines of a file; None where that is nothing that can be compared."""
    if path.name == "metrics.json":
        return drop_timings(json.loads(path.read_text()))
    if path.suffix == ".csv":
        return without_clock(pd.read_csv(path))
    if path.suffix == ".npz":
        with np.load(path) as file:
            return {name: file[name].tobytes() for name in file if name not in CLOCK}
    return path.read_bytes() if path.suffix == ".safetensors" else None


def results(out: Path) -> dict[str, object]:
    """The contents of all files below a folder, by their paths."""
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return {str(path.relative_to(out)): content(path) for path in files}


@dataclass(frozen=True)
class Recovery:
    """What came of a kill: how the command ended, and what is wrong after the second call (None: nothing)."""

    kill: Kill
    ended: int
    problem: str | None


def find_problem(place: Place, code: int, expected: dict) -> str | None:
    """What is wrong with the second call, in words; None where all is as if nothing had happened."""
    said = (place.folder / "said.txt").read_text()
    if code != 0:
        return f"exit code {code}: {said[-1500:]}"
    found = results(place.out)
    missing, new = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    changed = [name for name in expected if name in found and found[name] != expected[name]]
    if missing or new or changed:
        return f"missing {missing}, new {new}, changed {changed}"
    return None


def recover(place: Place, name: str, kill: Kill, expected: dict) -> Recovery:
    """Kill a command, give it once more, and compare."""
    shutil.rmtree(place.out, ignore_errors=True)
    words = place.words(name)
    ended = call(place, words, kill)
    said = (place.folder / "said.txt").read_text()
    if ended not in (-signal.SIGKILL, 2) or "Traceback" in said:
        return Recovery(kill, ended, f"the killed command: exit code {ended}: {said[-1500:]}")
    again = [*words, "--resume"] if words[0] in RESUMED else words
    return Recovery(kill, ended, find_problem(place, call(place, again, Kill()), expected))


def draw_kills(n_renames: int, n: int, seed: int) -> list[Kill]:
    """Kills spread over all renames of a command: one at a random place of each n-th part."""
    draw = random.Random(seed)
    edges = [1 + number * n_renames // n for number in range(n + 1)]
    kills = []
    for first, end in zip(edges, edges[1:]):
        at = draw.randrange(first, max(end, first + 1))
        kills.append(Kill(at, draw.choice(["half", "after"]), draw.random() < 0.5))
    return kills


def try_kills(name: str, n: int, seed: int = 0) -> list[Recovery]:
    """Kill a command `n` times, each time in a new folder."""
    with tempfile.TemporaryDirectory() as folder:
        place = make_place(Path(folder))
        code = call(place, place.words(name), Kill())
        assert code == 0, (place.folder / "said.txt").read_text()
        expected = results(place.out)
        n_renames = (place.site / "renames").stat().st_size
        kills = draw_kills(n_renames, n, seed)
        return [recover(place, name, kill, expected) for kill in kills]


def survey(names: list[str], n: int, seed: int) -> bool:
    """Print how many of `n` kills of each command were recovered from; whether all were."""
    failed = []
    for name in names:
        started = time.perf_counter()
        tried = try_kills(name, n, seed)
        problems = [recovery for recovery in tried if recovery.problem]
        seconds = time.perf_counter() - started
        print(f"{name:20} {n - len(problems)} of {n} recovered, {seconds:.0f} s", flush=True)
        for recovery in problems:
            print(f"    {recovery.kill}\n        {recovery.problem}", flush=True)
        failed += problems
    return not failed


def parse_options() -> argparse.Namespace:
    """How many kills, of which commands."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("n", type=int, nargs="?", default=4, help="kills of each command")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--only", choices=COMMANDS, help="one command")
    options.add_argument("--pages", action="store_true", help="execute the reports as well")
    return options.parse_args()


if __name__ == "__main__":
    set_quiet()
    given = parse_options()
    chosen = [given.only] if given.only else list(COMMANDS)
    if not given.pages:
        leave_out_pages()
    sys.exit(not survey(chosen, given.n, given.seed))
