"""Check that imports run downward only: from a notebook to those with a smaller number.

    floors.py          one line per violation; exits 1 if there is any

The number at the start of a notebook's name places its module in the house, its first digit is the floor.
Numbers are compared digit by digit from the left: 52 and 520 stand on the same floor, 52 before 520. Imports
inside functions count, and so do `import_module` and `__import__` with a name in quotes.
"""

import argparse
import ast
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from notebooks import ROOT, notebook_files, package_files, read_code_cells

PACKAGE = "digit69"
NUMBERED_NAME = re.compile(r"^(\d+)_(.+)$")
DYNAMIC_IMPORTS = ("import_module", "__import__")


@dataclass(frozen=True)
class Home:
    """The notebook that a module is exported from, and the number that places it."""

    notebook: str
    number: str


@dataclass(frozen=True)
class Import:
    """A module of the package that is imported, and the line that does it."""

    module: str
    line: int


# --- where modules live ------------------------------------------------------------------------------------


def exported_module(file: Path, root: Path) -> str | None:
    """The module that a notebook is exported to, None for a notebook without code for the package."""
    sources = [cell.source for cell in read_code_cells(file, root)]
    found = re.search(r"^#\|\s*default_exp\s+(\S+)", "\n".join(sources), re.MULTILINE)
    return found[1] if found else None


def find_homes(root: Path = ROOT) -> tuple[dict[str, Home], list[str]]:
    """The home of each module, and a line for each notebook whose name does not place it."""
    homes, wrong = {}, []
    for file in notebook_files(root):
        module = exported_module(file, root)
        if module is None:
            continue
        problem = naming_problem(file, module, homes)
        if problem:
            wrong.append(problem)
        else:
            homes[module] = Home(file.name, NUMBERED_NAME.match(file.stem)[1])
    return homes, wrong


def naming_problem(file: Path, module: str, homes: dict[str, Home]) -> str | None:
    """What is wrong with the name of a notebook that exports a module."""
    name = NUMBERED_NAME.match(file.stem)
    if name is None:
        return f"{file.name}: exports {module}, but its name has no number"
    if name[2] != module:
        return f"{file.name}: exports {module}, but is named {name[2]}"
    if module in homes:
        return f"{file.name}: {module} is also exported by {homes[module].notebook}"
    same = [home.notebook for home in homes.values() if home.number == name[1]]
    return f"{file.name}: {same[0]} has the same number" if same else None


def module_name(file: Path, root: Path) -> str:
    """The name of a module inside the package, such as `models.ldm`."""
    return ".".join(file.relative_to(root / PACKAGE).with_suffix("").parts)


# --- what modules import -----------------------------------------------------------------------------------


def find_imports(tree: ast.Module, module: str, known: set[str]) -> list[Import]:
    """The modules of the package that a module imports, wherever the statement stands."""
    found = []
    for node in ast.walk(tree):
        for name in imported_names(node, module):
            target = longest_module(name, known)
            if target:
                found.append(Import(target, node.lineno))
    return sorted(set(found), key=lambda found_import: found_import.line)


def imported_names(node: ast.AST, module: str) -> list[str]:
    """The full dotted names that one node imports, without the name of the package; empty for other nodes."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        origin = absolute_origin(node, module)
        names = [f"{origin}.{alias.name}" for alias in node.names]
    elif isinstance(node, ast.Call):
        names = quoted_import(node)
    else:
        return []
    prefix = f"{PACKAGE}."
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def absolute_origin(node: ast.ImportFrom, module: str) -> str:
    """The dotted name after `from`, relative dots resolved as Python does."""
    if not node.level:
        return node.module
    parents = [PACKAGE, *module.split(".")][: -node.level]
    return ".".join([*parents, *([node.module] if node.module else [])])


def quoted_import(call: ast.Call) -> list[str]:
    """The module that `import_module("...")` asks for."""
    function = getattr(call.func, "attr", getattr(call.func, "id", ""))
    if function not in DYNAMIC_IMPORTS or not call.args:
        return []
    name = call.args[0]
    return [name.value] if isinstance(name, ast.Constant) and isinstance(name.value, str) else []


def longest_module(name: str, known: set[str]) -> str | None:
    """The module that a dotted name lies in: `models.base.Reconstructor` lies in `models.base`."""
    parts = name.split(".")
    beginnings = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return next((beginning for beginning in beginnings if beginning in known), None)


# --- the check ---------------------------------------------------------------------------------------------


def violations(root: Path = ROOT) -> list[str]:
    """One line per import that does not run downward, and per module without a place."""
    homes, wrong = find_homes(root)
    for file in package_files(root):
        module = module_name(file, root)
        if module in homes:
            wrong += upward_imports(file, module, homes)
        else:
            wrong.append(f"{PACKAGE}.{module}: no notebook with a place exports it")
    return wrong


def upward_imports(file: Path, module: str, homes: dict[str, Home]) -> list[str]:
    """One line per import of a module that does not stand below."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    own = homes[module].number
    return [
        f"{PACKAGE}.{module} line {found.line}: imports {found.module} "
        f"({homes[found.module].number}), which is not below {own}"
        for found in find_imports(tree, module, set(homes))
        if found.module != module and homes[found.module].number >= own
    ]


def main() -> int:
    """Print the violations."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout to check")
    wrong = violations(parser.parse_args().root.resolve())
    if wrong:
        print(*wrong, sep="\n", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
