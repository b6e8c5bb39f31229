"""Reading notebooks: what the checks in this folder share."""

import json
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Cell:
    """One code cell of a notebook: where it stands, what it says, what it showed."""

    notebook: str
    index: int
    source: str
    outputs: list = field(default_factory=list, compare=False)

    @property
    def directives(self) -> list[str]:
        """The first words of the `#|` lines at the top, such as `export` or `eval:`."""
        words = [line[2:].split() for line in directive_lines(self.source)]
        return [line_words[0] for line_words in words if line_words]

    @property
    def is_exported(self) -> bool:
        """Whether nbdev writes this cell into the package."""
        return any(name in ("export", "exporti", "exports") for name in self.directives)


def directive_lines(source: str) -> list[str]:
    """The `#|` lines before the first line of code."""
    lines = []
    for line in source.splitlines():
        if line.startswith("#|"):
            lines.append(line)
        elif line.strip() and not line.startswith("%"):
            break
    return lines


def notebook_files(root: Path = ROOT) -> list[Path]:
    """All notebooks of a checkout, in reading order, without Jupyter's checkpoints."""
    files = sorted((root / "nbs").rglob("*.ipynb"))
    return [file for file in files if ".ipynb_checkpoints" not in file.parts]


def plain_name(name: str) -> str:
    """A notebook's name as given on a command line, without folder and ending (it may hold other dots)."""
    return Path(name).name.removesuffix(".ipynb")


def read_code_cells(file: Path, root: Path = ROOT) -> list[Cell]:
    """The code cells of one notebook; `index` counts cells of every kind from 0."""
    content = json.loads(file.read_text(encoding="utf-8"))
    name = file.relative_to(root / "nbs").as_posix()
    return [
        Cell(name, index, "".join(cell["source"]), cell.get("outputs", []))
        for index, cell in enumerate(content["cells"])
        if cell["cell_type"] == "code"
    ]


def code_cells(root: Path = ROOT) -> list[Cell]:
    """The code cells of all notebooks of a checkout."""
    return [cell for file in notebook_files(root) for cell in read_code_cells(file, root)]


def package_files(root: Path = ROOT) -> list[Path]:
    """The modules of the package, without `__init__.py` and nbdev's index."""
    files = sorted((root / "digit69").rglob("*.py"))
    return [file for file in files if file.name not in ("__init__.py", "_modidx.py")]
