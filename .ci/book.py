"""Run the notebooks again and keep what they show: the book as the code stands.

    book.py                    all notebooks of nbs/
    book.py 210_metrics index  only these
    book.py --workers 4        that many at a time, each with one thread

A notebook that fails is left as it was, and book.py ends with 1. The parameterised notebooks of nbs/reports
keep no outputs (papermill runs copies of them): they are left out, and stay as they are.
"""

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from notebooks import ROOT, notebook_files, plain_name

ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
WIDGET = "application/vnd.jupyter.widget-view+json"


@dataclass(frozen=True)
class Execution:
    """How the run of one notebook ended; `error` is empty when it went well."""

    file: Path
    seconds: float
    error: str
    warnings: list[str]


def execute(file: Path) -> Execution:
    """Run a notebook; write it only when no cell failed."""
    started = time.monotonic()
    notebook = nbformat.read(file, 4)
    try:
        make_client(notebook, file.parent).execute()
    except CellExecutionError as error:
        return Execution(file, time.monotonic() - started, str(error), [])
    warnings = drop_transient_outputs(notebook)
    nbformat.write(notebook, file)
    return Execution(file, time.monotonic() - started, "", warnings)


def make_client(notebook: nbformat.NotebookNode, folder: Path) -> NotebookClient:
    """What runs a notebook: the kernel of this interpreter, in the notebook's folder, no time limit."""
    return NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        store_widget_state=False,
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
    )


def drop_transient_outputs(notebook: nbformat.NotebookNode) -> list[str]:
    """Remove what is no result: progress bars, the error stream. Returns the warnings that go with it."""
    warnings = []
    for cell in notebook.cells:
        outputs = cell.get("outputs", [])
        warnings += [line for output in outputs for line in warning_lines(output)]
        if outputs:
            cell.outputs = [output for output in outputs if not is_transient(output)]
    notebook.metadata.pop("widgets", None)
    return warnings


def is_transient(output: nbformat.NotebookNode) -> bool:
    """Whether an output is a progress bar, a live widget or the error stream."""
    return output.get("name") == "stderr" or WIDGET in output.get("data", {})


def warning_lines(output: nbformat.NotebookNode) -> list[str]:
    """The lines of the error stream that warn of something."""
    if output.get("name") != "stderr":
        return []
    return [line for line in output["text"].splitlines() if "Warning" in line]


def clean(files: list[Path]) -> None:
    """Bring notebooks into the form that nbdev_clean gives: no counts, no timings, ids kept."""
    from nbdev.clean import nbdev_clean

    for file in files:
        nbdev_clean(fname=str(file))


def find_notebooks(names: list[str]) -> list[Path]:
    """The chapters of the book with these names; all when none is given."""
    chapters = {file.stem: file for file in notebook_files() if file.parent.name == "nbs"}
    wanted = [plain_name(name) for name in names]
    unknown = [name for name in wanted if name not in chapters]
    if unknown:
        sys.exit(f"no such chapter: {', '.join(unknown)}")
    return [file for name, file in chapters.items() if name in wanted or not wanted]


def prepare_environment() -> None:
    """One thread for each kernel; kernels import the package of this checkout."""
    for name in ONE_THREAD:
        os.environ[name] = "1"
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)


def execute_all(files: list[Path], n_workers: int) -> list[Execution]:
    """Run notebooks side by side, each in a process of its own, and say how each ended."""
    finished = []
    context = get_context("spawn")
    with ProcessPoolExecutor(n_workers, mp_context=context, max_tasks_per_child=1) as pool:
        futures = [pool.submit(execute, file) for file in files]
        for future in as_completed(futures):
            finished.append(future.result())
            print_execution(finished[-1])
    return finished


def print_execution(execution: Execution) -> None:
    """Seconds, name, warnings and, where there is one, the error."""
    state = "FAILED" if execution.error else ""
    print(f"{execution.seconds:7.1f} s  {execution.file.stem} {state}".rstrip(), flush=True)
    for line in execution.warnings:
        print(f"           {line}", flush=True)
    if execution.error:
        print(execution.error, file=sys.stderr, flush=True)


def main() -> int:
    """Run, clean, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", help="notebooks to run; all chapters when none is named"
    )
    parser.add_argument("--workers", type=int, default=2, help="notebooks at a time")
    arguments = parser.parse_args()
    files = find_notebooks(arguments.names)
    prepare_environment()
    finished = execute_all(files, arguments.workers)
    clean([execution.file for execution in finished if not execution.error])
    failed = [execution for execution in finished if execution.error]
    print(f"{len(finished) - len(failed)} notebooks run again, {len(failed)} failed")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
