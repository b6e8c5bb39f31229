"""README.md and its pictures, made from nbs/index.ipynb.

    readme.py          writes them
    readme.py --check  exits 1 when they are not what the notebook gives

nbdev's own command needs a program that is no Python package; this does the same with nbconvert. A line
`# picture: TEXT` in a cell says what its picture shows, for those who cannot see it.
"""

import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from nbformat import NotebookNode

from notebooks import ROOT, Cell, directive_lines

PICTURE_TEXT = re.compile(r"^# picture: (.+)$", re.MULTILINE)
PREFERRED_KINDS = ("image/png", "text/markdown")


def shown_notebook() -> tuple[NotebookNode, dict[str, str]]:
    """The notebook as a reader sees it, and what its pictures show, by the beginning of their file names."""
    notebook = nbformat.read(ROOT / "nbs" / "index.ipynb", 4)
    notebook.cells = [cell for cell in notebook.cells if "hide" not in directives(cell)]
    texts = find_picture_texts(notebook)
    for cell in notebook.cells:
        show_cell(cell)
    return notebook, texts


def directives(cell: NotebookNode) -> list[str]:
    """The names of the `#|` lines of a cell."""
    return Cell("index.ipynb", 0, cell.source).directives


def find_picture_texts(notebook: NotebookNode) -> dict[str, str]:
    """What the pictures of each cell show; nbconvert names files after the position of the cell."""
    found = [PICTURE_TEXT.search(cell.source) for cell in notebook.cells]
    return {f"output_{index}_": match[1] for index, match in enumerate(found) if match}


def show_cell(cell: NotebookNode) -> None:
    """Hide what is not for readers: the input where asked for, directives, second forms of an output."""
    if cell.cell_type == "code" and "hide_input" in directives(cell):
        cell.source = ""
    hidden = directive_lines(cell.source)
    cell.source = "\n".join(line for line in cell.source.splitlines() if line not in hidden)
    for output in cell.get("outputs", []):
        keep_one_form(output)


def keep_one_form(output: NotebookNode) -> None:
    """Keep the picture or the Markdown of an output, not its repr beside it."""
    data = output.get("data", {})
    kinds = [kind for kind in PREFERRED_KINDS if kind in data]
    if kinds:
        output["data"] = {kinds[0]: data[kinds[0]]}


def make_files() -> dict[str, bytes]:
    """The content of README.md and of each picture, by path."""
    notebook, picture_texts = shown_notebook()
    text, resources = MarkdownExporter().from_notebook_node(notebook)
    files = {}
    for number, (name, content) in enumerate(sorted(resources["outputs"].items())):
        target = f"nbs/images/readme_{number}{Path(name).suffix}"
        files[target] = content
        alternative = text_of_picture(name, picture_texts)
        text = re.sub(rf"!\[[^\]]*\]\({re.escape(name)}\)", f"![{alternative}]({target})", text)
    files["README.md"] = tidy(text).encode()
    return files


def text_of_picture(name: str, picture_texts: dict[str, str]) -> str:
    """What a picture shows; a picture that does not say is refused."""
    for beginning, text in picture_texts.items():
        if name.startswith(beginning):
            return text
    sys.exit(f"{name} of nbs/index.ipynb has no line `# picture: TEXT` in its cell")


def tidy(text: str) -> str:
    """Remove empty code blocks, blanks at line ends and repeated empty lines."""
    text = re.sub(r"```[a-z]*\n\s*```\n", "", text)
    text = re.sub(r"^ +$", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def is_stale(path: str, content: bytes) -> bool:
    """Whether a file is missing or holds something else."""
    file = ROOT / path
    return not file.is_file() or file.read_bytes() != content


def main() -> int:
    """Write the files, or check them."""
    files = make_files()
    if "--check" in sys.argv:
        stale = [path for path, content in files.items() if is_stale(path, content)]
        if stale:
            print(
                f"not what nbs/index.ipynb gives: {', '.join(stale)}; run make readme",
                file=sys.stderr,
            )
        return int(bool(stale))
    for path, content in files.items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_bytes(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
