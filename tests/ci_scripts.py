"""The scripts in .ci as modules, and tiny notebooks to try them on."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).resolve().parents[1] / ".ci"


def load_script(name: str) -> ModuleType:
    """A script of .ci, imported by name."""
    if str(FOLDER) not in sys.path:
        sys.path.insert(0, str(FOLDER))
    return importlib.import_module(name)


def code_cell(source: str, outputs: list | None = None) -> dict:
    """A code cell as it stands in a notebook file."""
    return {
        "cell_type": "code",
        "execution_count": None,
        "id": f"c{abs(hash(source)) % 10**6}",
        "metadata": {},
        "outputs": outputs or [],
        "source": source.splitlines(keepends=True),
    }


def write_notebook(file: Path, *cells: dict) -> Path:
    """A notebook with these cells."""
    kernel = {"display_name": "python3", "language": "python", "name": "python3"}
    content = {
        "cells": list(cells),
        "metadata": {"kernelspec": kernel},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def write_module(root: Path, notebook: str, source: str) -> None:
    """A notebook that exports one cell, and the module it gives."""
    name = notebook.split("_", 1)[1].removesuffix(".ipynb")
    cells = [code_cell(f"#| default_exp {name}"), code_cell(f"#| export\n{source}")]
    write_notebook(root / "nbs" / notebook, *cells)
    file = root / "digit69" / Path(*name.split("."))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.with_suffix(".py").write_text(f"__all__ = ['x',\n  'y']\n\n{source}\n", encoding="utf-8")
