"""Tables in the book come from result files, and result files from run folders.

    results.py RUN_FOLDER NAME     writes nbs/results/NAME.json from a scored run folder
    results.py --check [NOTEBOOK]  runs every cell marked `#| results` by itself and compares what it shows
                                   with what is stored; exits 1 if a table is not what its source gives

A marked cell imports what it needs, reads a result file and shows text or Markdown; it runs in the folder of
its notebook and sees nothing of other cells.
"""

import argparse
import contextlib
import difflib
import json
import re
import shlex
import sys
from pathlib import Path

from notebooks import ROOT, Cell, code_cells, plain_name

DIRECTIVE = "results"
DECIMALS = 4
OPTIONS = (
    "models",
    "preset",
    "protocol",
    "folds",
    "repeats",
    "seed",
)  # in the order they are written
TEXT_KINDS = (
    "text/markdown",
    "text/html",
    "text/plain",
)  # the first form that an output has is compared
MACHINE_PATH = re.compile(r"(^|[\s='\"])(/[\w.-]+/|~/|[A-Za-z]:\\)")


# --- from a run folder to a result file ---------------------------------------------------------------------


def summarise_run(folder: Path) -> dict:
    """What a result file keeps of a run: protocol, n, command, scores."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    others = {
        key: value
        for key, value in metrics.items()
        if key not in ("schema_version", "data", "models")
    }
    return {
        "schema_version": 1,
        "command": command_line(manifest, metrics["data"]),
        "protocol": metrics["data"]["protocol"],
        "n": metrics["data"]["n_test"],
        "git_commit": manifest.get("git_commit"),
        "data": metrics["data"],
        "models": rounded(metrics["models"]),
        **calibration_of_samples(folder),
        **rounded(others),
    }


def calibration_of_samples(folder: Path) -> dict:
    """How far samples of each model can be believed, where the run measured it."""
    file = folder / "rigour.json"
    if not file.is_file():
        return {}
    found = json.loads(file.read_text(encoding="utf-8")).get("calibration", {})
    kept = ("n_samples", "coverage_uncertain", "energy_score")
    calibration = {name: {key: entry[key] for key in kept} for name, entry in found.items()}
    return {"calibration": rounded(calibration)}


def command_line(manifest: dict, data: dict) -> str:
    """The command that repeats a run: as the manifest keeps it, else put together from its facts."""
    if "command_line" in manifest:
        return manifest["command_line"]
    facts = {**manifest, **manifest.get("identity", {})}
    source = manifest.get("data", {}).get("file", data["name"])
    words = ["digit69", facts["command"], "--data", source]
    for option in OPTIONS:
        if facts.get(option) is not None:
            words += [f"--{option}", option_value(facts[option])]
    for name, value in (facts.get("set") or {}).items():
        words += ["--set", setting(name, value)]
    if "prior" in facts:  # entries name any other prior themselves: posterior+mnist
        words += ["--prior", "own"]
    return " ".join(words)


def setting(name: str, value: object) -> str:
    """A hyper-parameter MODEL.PARAMETER=VALUE as a shell takes it."""
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return shlex.quote(f"{name}={text}")


def option_value(value: object) -> str:
    """A value as it is written on the command line."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def rounded(value: object) -> object:
    """The same structure with every float rounded."""
    if isinstance(value, float):
        return round(value, DECIMALS)
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return value


def find_machine_paths(value: object) -> list[str]:
    """The texts in a structure that hold a path of the machine it was made on."""
    if isinstance(value, str):
        return [value] if MACHINE_PATH.search(value) else []
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [path for item in value for path in find_machine_paths(item)]
    return []


def write_results(folder: Path, name: str, root: Path = ROOT) -> Path:
    """Write the result file of a run; one that would hold a machine path is refused."""
    missing = [
        file for file in ("metrics.json", "manifest.json") if not (folder / file).is_file()
    ]
    if missing:
        sys.exit(f"{folder} is no scored run folder: {', '.join(missing)} missing")
    results = summarise_run(folder)
    paths = find_machine_paths(results)
    if paths:
        sys.exit(f"machine paths do not belong in a result file: {', '.join(paths)}")
    file = root / "nbs" / "results" / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return file


# --- from a result file to a table --------------------------------------------------------------------------


def shown_text(outputs: list[dict]) -> str:
    """What a cell shows as text: printed lines, Markdown, results; no pictures, no error stream."""
    texts = [output_text(output) for output in outputs if output.get("name") != "stderr"]
    lines = "\n".join(texts).splitlines()
    return "\n".join(line.rstrip() for line in lines).strip()


def output_text(output: dict) -> str:
    """One output as text."""
    if output["output_type"] == "stream":
        return "".join(output["text"])
    if output["output_type"] == "error":
        return f"{output['ename']}: {output['evalue']}"
    data = output.get("data", {})
    if any(kind.startswith("image/") for kind in data):
        return ""
    return next(("".join(data[kind]) for kind in TEXT_KINDS if kind in data), "")


def run_alone(cell: Cell, root: Path) -> list[dict]:
    """The outputs of a cell that runs in a fresh namespace, in the folder of its notebook."""
    from execnb.shell import CaptureShell

    with contextlib.chdir((root / "nbs" / cell.notebook).parent):
        return CaptureShell().run(cell.source)


def difference(cell: Cell, root: Path) -> list[str]:
    """The lines in which the stored output of a cell differs from what it shows now."""
    stored = shown_text(cell.outputs)
    now = shown_text(run_alone(cell, root))
    lines = difflib.unified_diff(
        stored.splitlines(), now.splitlines(), "stored", "now", lineterm="", n=0
    )
    return list(lines)


def check_tables(root: Path = ROOT, names: list[str] | None = None) -> list[str]:
    """One text per marked cell whose stored output is not what its source gives."""
    problems = []
    for cell in marked_cells(root, names):
        lines = difference(cell, root)
        if lines:
            problems.append(
                "\n    ".join([f"{cell.notebook} cell {cell.index} is stale:", *lines])
            )
    return problems


def marked_cells(root: Path = ROOT, names: list[str] | None = None) -> list[Cell]:
    """The cells marked `#| results`, of all notebooks or of some."""
    marked = [cell for cell in code_cells(root) if DIRECTIVE in cell.directives]
    return [cell for cell in marked if not names or plain_name(cell.notebook) in names]


# --- the command --------------------------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    """What was asked for on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="RUN_FOLDER NAME, or notebooks to check")
    parser.add_argument(
        "--check", action="store_true", help="compare stored tables with their sources"
    )
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout to work in")
    arguments = parser.parse_args()
    if not arguments.check and len(arguments.words) != 2:
        parser.error("give RUN_FOLDER NAME, or --check")
    return arguments


def main() -> int:
    """Write a result file, or check the tables."""
    arguments = parse_arguments()
    root = arguments.root.resolve()
    if not arguments.check:
        folder, name = arguments.words
        print(write_results(Path(folder), name, root).relative_to(root))
        return 0
    names = [plain_name(word) for word in arguments.words]
    problems = check_tables(root, names)
    if problems:
        print(*problems, "run make book, then commit", sep="\n", file=sys.stderr)
    print(f"{len(marked_cells(root, names))} tables checked")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
