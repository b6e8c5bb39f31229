"""Check that every module of the package can be imported first, before any other module of the package.

    imports.py [WORKERS]        one line per module that cannot, with the error; exits 1 if there is any

A module that works only because another was imported before it passes its notebook and fails its users. Each
module is imported in a process of its own. The processes are forked from one that has imported the large
libraries and nothing of the package, which saves two seconds for each module.
"""

import importlib
import sys
from multiprocessing import get_context

from notebooks import ROOT, package_files

LARGE_LIBRARIES = ["torch", "pandas", "sklearn", "matplotlib.pyplot"]


def module_names() -> list[str]:
    """The full names of all modules of the package."""
    paths = [file.relative_to(ROOT).with_suffix("") for file in package_files()]
    return [".".join(path.parts) for path in paths]


def import_error(module: str) -> str | None:
    """What happens when a module is imported first: the error, or None when there is none."""
    sys.path.insert(0, str(ROOT))
    already = [name for name in sys.modules if name.split(".")[0] == "digit69"]
    if already:
        return f"{module}: {already[0]} was imported before it, so nothing is shown"
    try:
        importlib.import_module(module)
    except BaseException as error:  # also a module that exits
        return f"{module}: {type(error).__name__}: {error}"
    return None


def main(n_workers: int) -> int:
    """Import all modules, print what failed."""
    context = get_context("forkserver")
    context.set_forkserver_preload(LARGE_LIBRARIES)
    with context.Pool(n_workers, maxtasksperchild=1) as pool:
        results = pool.map(import_error, module_names(), chunksize=1)
    errors = [error for error in results if error]
    print(
        *errors, f"{len(results) - len(errors)} of {len(results)} modules import first", sep="\n"
    )
    return int(bool(errors))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 2))
