"""Measure how readable the code is, and hold its bounds.

    readability.py              prints the table
    readability.py --json       the same for programs
    readability.py --worst 10   adds the ten worst places of each measure
    readability.py --check      one line per violated bound; exits 1 if there is any

Cells are the exported cells of all notebooks; modules are the files of the package. A code line is one that
is neither blank nor a comment; docstrings count.
"""

import argparse
import ast
import io
import json
import statistics
import sys
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from notebooks import ROOT, Cell, code_cells, package_files

LINE_LENGTH = 110
FEWEST_LINES_FOR_DENSITY = 5  # below that a cell is too short to be called dense


@dataclass(frozen=True)
class Measure:
    """A row of the table; `most` is its bound, None where it is shown only."""

    label: str
    most: float | None
    decimals: int = 0


MEASURES = {
    "cells": Measure("exported cells", None),
    "cell_median": Measure("lines of an exported cell, median", 10),
    "cell_p90": Measure("lines of an exported cell, 90th percentile", 25),
    "cell_max": Measure("lines of an exported cell, maximum", 40),
    "several_definitions": Measure("% of defining cells with several definitions", 5, 1),
    "nodes_per_line": Measure("syntax nodes per code line", 8, 1),
    "long_lines": Measure(f"lines over {LINE_LENGTH} characters", 0),
    "semicolons": Measure("semicolons per 1,000 lines", 0, 1),
    "named_lambdas": Measure("named lambdas per 1,000 lines", 0, 1),
    "nested_comprehensions": Measure("nested comprehensions per 1,000 lines", None, 1),
    "tuple_attributes": Measure("tuple-assigned attributes in __init__", 0),
    "bare_parameters": Measure("parameters of public functions without a type", 0),
    "modules": Measure("modules", None),
    "module_median": Measure("lines of a module, median", None),
    "module_max": Measure("lines of a module, maximum", 300),
}
PER_THOUSAND_LINES = ("semicolons", "named_lambdas", "nested_comprehensions")
COUNTED = ("long_lines", "tuple_attributes", "bare_parameters")

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINITIONS = (*FUNCTIONS, ast.ClassDef)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


# --- one source text ---------------------------------------------------------------------------------------


def count_code_lines(source: str) -> int:
    """Lines that are neither blank nor a comment."""
    lines = [line.strip() for line in source.splitlines()]
    return sum(1 for line in lines if line and not line.startswith("#"))


def parse_cell(source: str) -> ast.Module:
    """The syntax tree of a cell, with IPython's magic lines blanked."""
    lines = ["" if line.startswith(("%", "!")) else line for line in source.splitlines()]
    return ast.parse("\n".join(lines))


def top_level_definitions(tree: ast.Module) -> list[ast.stmt]:
    """The functions and classes that a cell defines."""
    return [node for node in tree.body if isinstance(node, DEFINITIONS)]


def find_long_lines(source: str) -> list[int]:
    """Numbers of the lines that are longer than the page is wide."""
    numbered = enumerate(source.splitlines(), start=1)
    return [number for number, line in numbered if len(line) > LINE_LENGTH]


def find_semicolons(source: str) -> list[int]:
    """Line number of each semicolon that separates or ends statements."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [
        token.start[0] for token in tokens if token.type == tokenize.OP and token.string == ";"
    ]


def find_named_lambdas(tree: ast.Module) -> list[int]:
    """Line number of each lambda that is given a name, where `def` would do."""
    assignments = (ast.Assign, ast.AnnAssign, ast.NamedExpr)
    named = [node for node in ast.walk(tree) if isinstance(node, assignments)]
    return [node.lineno for node in named if isinstance(node.value, ast.Lambda)]


def find_nested_comprehensions(tree: ast.Module) -> list[int]:
    """Line number of each comprehension that holds another."""
    outer = [node for node in ast.walk(tree) if isinstance(node, COMPREHENSIONS)]
    return [node.lineno for node in outer if holds_comprehension(node)]


def holds_comprehension(outer: ast.AST) -> bool:
    """Whether another comprehension stands anywhere inside this one."""
    return any(isinstance(node, COMPREHENSIONS) for node in ast.walk(outer) if node is not outer)


def find_tuple_attributes(tree: ast.Module) -> list[int]:
    """Line number of each `self.a, self.b = a, b` in a constructor."""
    functions = [node for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]
    constructors = [node for node in functions if node.name == "__init__"]
    statements = [node for constructor in constructors for node in ast.walk(constructor)]
    return [
        node.lineno
        for node in statements
        if isinstance(node, ast.Assign) and sets_several_attributes(node)
    ]


def sets_several_attributes(assignment: ast.Assign) -> bool:
    """Whether a tuple on the left holds an attribute of self."""
    tuples = [target for target in assignment.targets if isinstance(target, ast.Tuple)]
    return any(is_self_attribute(element) for target in tuples for element in target.elts)


def is_self_attribute(node: ast.expr) -> bool:
    """Whether the expression reads `self.something`."""
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    )


def find_bare_parameters(tree: ast.Module) -> list[int]:
    """Line number of each parameter of a public function or method that has no type."""
    return [
        parameter.lineno
        for function, is_method in public_functions(tree)
        for parameter in named_parameters(function, is_method)
        if parameter.annotation is None
    ]


def public_functions(tree: ast.Module) -> Iterator[tuple[ast.FunctionDef, bool]]:
    """Public functions and the public methods of public classes, each with whether it is a method."""
    for node in top_level_definitions(tree):
        if node.name.startswith("_"):
            continue
        if isinstance(node, FUNCTIONS):
            yield node, False
            continue
        for method in node.body:
            if isinstance(method, FUNCTIONS) and is_public_method(method.name):
                yield method, True


def is_public_method(name: str) -> bool:
    """Whether a user of the class calls this method by name or by constructing or calling the object."""
    return not name.startswith("_") or name in ("__init__", "__call__")


def named_parameters(function: ast.FunctionDef, is_method: bool) -> list[ast.arg]:
    """The parameters of a function without `self` or `cls`, `*args` and `**kwargs`."""
    positional = [*function.args.posonlyargs, *function.args.args]
    decorators = [node.id for node in function.decorator_list if isinstance(node, ast.Name)]
    if is_method and "staticmethod" not in decorators:
        positional = positional[1:]
    return positional + function.args.kwonlyargs


# --- one cell, one module ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class CellReport:
    """What is measured of one exported cell; `places` holds line numbers for each kind of finding."""

    cell: Cell
    n_lines: int
    n_nodes: int
    definitions: list[ast.stmt]
    places: dict[str, list[int]] = field(default_factory=dict)

    @property
    def density(self) -> float:
        """Syntax nodes per code line."""
        return self.n_nodes / max(self.n_lines, 1)

    def name_at(self, line: int | None = None) -> str:
        """Notebook, cell index and the definition around a line, or the first one."""
        around = [d for d in self.definitions if line is None or d.lineno <= line <= d.end_lineno]
        definition = around[0].name if around else "-"
        return f"{self.cell.notebook} cell {self.cell.index} {definition}"


def report_cell(cell: Cell) -> CellReport:
    """Measure one exported cell."""
    tree = parse_cell(cell.source)
    places = {
        "long_lines": find_long_lines(cell.source),
        "semicolons": find_semicolons(cell.source),
        "named_lambdas": find_named_lambdas(tree),
        "nested_comprehensions": find_nested_comprehensions(tree),
        "tuple_attributes": find_tuple_attributes(tree),
        "bare_parameters": find_bare_parameters(tree),
    }
    n_nodes = sum(1 for _ in ast.walk(tree))
    return CellReport(
        cell, count_code_lines(cell.source), n_nodes, top_level_definitions(tree), places
    )


def count_module_lines(source: str) -> int:
    """Code lines of a module without the `__all__` that nbdev generates."""
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    return count_code_lines("\n".join(lines))


# --- the whole tree ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """Everything measured in one checkout."""

    cells: list[CellReport]
    module_lines: dict[str, int]


def measure_tree(root: Path = ROOT) -> Report:
    """Measure all exported cells and all modules below a folder."""
    cells = [report_cell(cell) for cell in code_cells(root) if cell.is_exported]
    modules = {
        file.relative_to(root).as_posix(): count_module_lines(file.read_text(encoding="utf-8"))
        for file in package_files(root)
    }
    return Report(cells, modules)


def summarise(report: Report) -> dict[str, float]:
    """The number behind each row of the table."""
    values = {**summarise_cells(report.cells), **summarise_syntax(report.cells)}
    lines = list(report.module_lines.values()) or [0]
    values["modules"] = len(report.module_lines)
    values["module_median"] = statistics.median(lines)
    values["module_max"] = max(lines)
    return {name: values[name] for name in MEASURES}


def summarise_cells(cells: list[CellReport]) -> dict[str, float]:
    """How long cells are, and how many of those that define something define several things."""
    lines = [cell.n_lines for cell in cells] or [0]
    defining = [cell for cell in cells if cell.definitions]
    several = [cell for cell in defining if len(cell.definitions) > 1]
    return {
        "cells": len(cells),
        "cell_median": statistics.median(lines),
        "cell_p90": percentile_90(lines),
        "cell_max": max(lines),
        "several_definitions": 100 * len(several) / max(len(defining), 1),
    }


def percentile_90(values: list[int]) -> float:
    """The 90th percentile, interpolated linearly as numpy does."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=10, method="inclusive")[8]


def summarise_syntax(cells: list[CellReport]) -> dict[str, float]:
    """How dense the code is, and how often it uses what makes it hard to read."""
    n_lines = max(sum(cell.n_lines for cell in cells), 1)
    found = {
        name: sum(len(cell.places[name]) for cell in cells)
        for name in (*COUNTED, *PER_THOUSAND_LINES)
    }
    for name in PER_THOUSAND_LINES:
        found[name] = 1000 * found[name] / n_lines
    return {"nodes_per_line": sum(cell.n_nodes for cell in cells) / n_lines, **found}


def violations(values: dict[str, float]) -> list[str]:
    """One line per bound that is not held."""
    bounded = {name: measure for name, measure in MEASURES.items() if measure.most is not None}
    return [
        f"{measure.label}: {values[name]:.4g}, at most {measure.most:g}"
        for name, measure in bounded.items()
        if values[name] > measure.most
    ]


def worst_places(report: Report, n: int) -> dict[str, list[str]]:
    """The `n` worst places of each measure, by name."""
    modules = sorted(report.module_lines.items(), key=lambda item: -item[1])
    places = {
        "longest cells": worst_cells(report.cells, n, lambda cell: cell.n_lines),
        "most definitions in a cell": worst_cells(
            report.cells, n, lambda cell: len(cell.definitions)
        ),
        "most syntax nodes per line": worst_cells(report.cells, n, rounded_density),
        "longest modules": [f"{lines} {name}" for name, lines in modules[:n]],
    }
    for name in (*COUNTED, *PER_THOUSAND_LINES):
        places[MEASURES[name].label] = found_places(report.cells, name)[:n]
    return {title: lines for title, lines in places.items() if lines}


def rounded_density(cell: CellReport) -> float:
    """Syntax nodes per line of a cell that is long enough to be judged by it."""
    return round(cell.density, 1) if cell.n_lines >= FEWEST_LINES_FOR_DENSITY else 0


def worst_cells(
    cells: list[CellReport], n: int, value: Callable[[CellReport], float]
) -> list[str]:
    """The `n` cells for which a value is highest."""
    ranked = sorted(cells, key=lambda cell: -value(cell))
    return [f"{value(cell)} {cell.name_at()}" for cell in ranked[:n]]


def found_places(cells: list[CellReport], name: str) -> list[str]:
    """Where one kind of finding stands, cells with most of it first."""
    ranked = sorted(cells, key=lambda cell: -len(cell.places[name]))
    return [f"{cell.name_at(line)} line {line}" for cell in ranked for line in cell.places[name]]


# --- the command -------------------------------------------------------------------------------------------


def table(values: dict[str, float]) -> str:
    """The measures as text: label, value, bound."""
    rows = []
    for name, measure in MEASURES.items():
        bound = "" if measure.most is None else f"<= {measure.most:g}"
        mark = "!" if measure.most is not None and values[name] > measure.most else " "
        rows.append(
            f"{mark} {measure.label:46} {values[name]:8.{measure.decimals}f}  {bound}".rstrip()
        )
    return "\n".join(rows)


def parse_arguments() -> argparse.Namespace:
    """What was asked for on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit 1 if a bound is violated")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--worst",
        type=int,
        default=0,
        metavar="N",
        help="also the N worst places of each measure",
    )
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout to measure")
    return parser.parse_args()


def print_report(values: dict[str, float], worst: dict[str, list[str]], as_json: bool) -> None:
    """Print the table and the worst places."""
    if as_json:
        print(
            json.dumps(
                {"measures": values, "violations": violations(values), "worst": worst}, indent=1
            )
        )
        return
    print(table(values))
    for title, places in worst.items():
        print(f"\n{title}", *places, sep="\n    ")


def main() -> int:
    """Measure, print, check."""
    arguments = parse_arguments()
    report = measure_tree(arguments.root.resolve())
    values = summarise(report)
    print_report(
        values, worst_places(report, arguments.worst) if arguments.worst else {}, arguments.json
    )
    if not arguments.check:
        return 0
    violated = violations(values)
    if violated:
        print(*violated, sep="\n", file=sys.stderr)
    return int(bool(violated))


if __name__ == "__main__":
    sys.exit(main())
