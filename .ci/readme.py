"""README.md from nbs/index.ipynb: `readme.py` writes it and its figures, `readme.py --check` fails when they are out of step.

nbdev's own command needs a program that is not a Python package; this does the same with nbconvert."""
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

root = Path(__file__).resolve().parents[1]
notebook = nbformat.read(root / "nbs" / "index.ipynb", 4)
notebook.cells = [c for c in notebook.cells if "#| hide\n" not in c.source + "\n"]
says = {f"output_{k}_": found[1] for k, c in enumerate(notebook.cells) if (found := re.search(r"^# picture: (.+)$", c.source, re.M))}     # what a picture shows, for those who cannot see it
for cell in notebook.cells:
    if cell.cell_type == "code" and "#| hide_input" in cell.source: cell.source = ""
for cell in notebook.cells:
    cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M)
    for output in cell.get("outputs", []):   # keep one form of each output: a picture or the markdown, not its repr
        for kind in ("image/png", "text/markdown"):
            if kind in output.get("data", {}): output["data"] = {kind: output["data"][kind]}; break
text, resources = MarkdownExporter().from_notebook_node(notebook)
files = {}
for k, (name, content) in enumerate(sorted(resources["outputs"].items())):
    target = f"nbs/images/readme_{k}{Path(name).suffix}"
    files[target] = content
    text = re.sub(rf"!\[[^\]]*\]\({re.escape(name)}\)", f"![{next(v for k, v in says.items() if name.startswith(k))}]({target})", text)
text = re.sub(r"```[a-z]*\n\s*```\n", "", text)
text = re.sub(r"^ +$", "", text, flags=re.M)
text = re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
files["README.md"] = text.encode()

if "--check" in sys.argv:
    stale = [f for f, content in files.items() if not (root / f).is_file() or (root / f).read_bytes() != content]
    if stale: sys.exit(f"{', '.join(stale)} not in step with nbs/index.ipynb: run make readme, then commit")
else:
    for f, content in files.items():
        (root / f).parent.mkdir(parents=True, exist_ok=True)
        (root / f).write_bytes(content)
