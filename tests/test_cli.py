"""The command line keeps its manners: examples that parse, completion that works in a real shell, a table at the end, chapters that end as promised."""
import functools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from digit69.cli import app
from digit69.models.base import available_models

ROOT = Path(__file__).resolve().parents[1]
GROUP = typer.main.get_command(app)
RUN = "import sys; from digit69.cli import main; sys.exit(main())"
COMMANDS = {**{(n,): c for n, c in GROUP.commands.items() if n != "data"}, **{("data", n): c for n, c in GROUP.commands["data"].commands.items()}}


def parses(line):
    "Whether the options of a command line exist and take such values."
    words = shlex.split(line.partition(" < ")[0].partition(" # ")[0], comments=True)[1:]
    n = 2 if words[0] == "data" else 1
    assert tuple(words[:n]) in COMMANDS, f"no such command: {line}"
    COMMANDS[tuple(words[:n])].make_context(words[n - 1], words[n:])


@pytest.mark.parametrize("name", [" ".join(n) for n in COMMANDS])
def test_every_help_has_an_example_that_parses(name):
    command = COMMANDS[tuple(name.split())]
    with typer.Context(command, info_name=name) as ctx: text = command.get_help(ctx)
    examples = re.findall(r"^\s+(digit69 .+)$", text, re.M)
    assert examples and all(e.startswith(f"digit69 {name}") for e in examples), text
    for line in examples: parses(line)


def test_every_command_of_the_readme_parses():
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    lines = [line for b in blocks for line in b.splitlines() if line.startswith("digit69 ") and "|" not in line and "[" not in line]
    lines += [c for c in re.findall(r"`(digit69 [^`]+)`", (ROOT / "README.md").read_text(encoding="utf-8")) if "COMMAND" not in c and "completion" not in c]
    assert len(lines) > 12
    for line in lines: parses(line)


@functools.cache
def script():
    "What --install-completion installs for bash."
    return subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, env={**os.environ, "_DIGIT69_COMPLETE": "source_bash"}).stdout


def complete(line, tmp_path):
    "What bash offers after `line` and Tab."
    assert "complete -o default" in script()
    (tmp_path / "digit69").write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{RUN}" "$@"\n'); (tmp_path / "digit69").chmod(0o755)
    words = line.split(" ")
    ask = f'{script()}\nCOMP_WORDS=({" ".join(repr(w) for w in words)})\nCOMP_CWORD={len(words) - 1}\n_digit69_completion digit69\nprintf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("line, offers", [("digit69 cr", ["crossval"]), ("digit69 data s", ["simulate"]), ("digit69 run --pre", ["--preset"]), ("digit69 run --preset q", ["quick"]),
                                          ("digit69 train --model po", ["posterior"]), ("digit69 run --models mean,rid", ["mean,ridge"]), ("digit69 run --data sim", ["simulated", "simulated-patterns"]), ("digit69 run --data ./x", [])])
def test_bash_completes(line, offers, tmp_path): assert complete(line, tmp_path) == offers


def test_completion_knows_every_model():
    from digit69.cli_options import known_models
    assert set(known_models()) == set(available_models())


@pytest.mark.parametrize("path", sorted((ROOT / "nbs").glob("[0-9]*.ipynb")), ids=lambda p: p.stem)
def test_every_chapter_ends_with_what_it_showed_and_an_exercise(path):
    cells = [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if "".join(c["source"]).strip()]
    last = "".join(next(c for c in reversed(cells) if c["cell_type"] == "markdown")["source"])
    assert re.search(r"^## What this showed$", last, re.M) and "**Exercise.**" in last, f"{path.name} ends with: {last[-200:]}"
    assert cells[-1]["cell_type"] == "markdown" or "#| hide" in "".join(cells[-1]["source"]), f"{path.name} goes on after its end"
