"""The command line keeps its manners: examples parse, a shell completes, chapters end as promised."""

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
from digit69.cli_options import known_models
from digit69.models.registry import available_models

ROOT = Path(__file__).resolve().parents[1]
GROUP = typer.main.get_command(app)
PROGRAM = "import sys; from digit69.cli import main; sys.exit(main())"
COMMANDS = {(name,): command for name, command in GROUP.commands.items() if name != "data"}
COMMANDS |= {("data", name): command for name, command in GROUP.commands["data"].commands.items()}


def check_that_it_parses(line):
    "Fail unless the command of a line exists and its options take such values."
    without_pipe = line.partition(" < ")[0].partition(" # ")[0]
    words = shlex.split(without_pipe, comments=True)[1:]
    n_words = 2 if words[0] == "data" else 1
    name = tuple(words[:n_words])
    assert name in COMMANDS, f"no such command: {line}"
    COMMANDS[name].make_context(name[-1], words[n_words:])


@pytest.mark.parametrize("name", [" ".join(name) for name in COMMANDS])
def test_every_help_has_an_example_that_parses(name):
    command = COMMANDS[tuple(name.split())]
    with typer.Context(command, info_name=name) as context:
        text = command.get_help(context)
    whole_lines = re.sub(r"\\\n\s+", "", text)
    examples = re.findall(r"^\s+(digit69 .+)$", whole_lines, re.MULTILINE)
    assert examples, text
    assert all(example.startswith(f"digit69 {name}") for example in examples)
    for example in examples:
        check_that_it_parses(example)


def text_of_notebook(name):
    "The prose of a notebook."
    cells = json.loads((ROOT / "nbs" / name).read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def commands_of_the_readme():
    "Every command in README, the list of commands and the guide for scripts, from blocks and sentences."
    pages = [text_of_notebook(f"{name}.ipynb") for name in ("840_cli", "910_coming_from_scripts")]
    text = "\n\n".join([(ROOT / "README.md").read_text(encoding="utf-8"), *pages])
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [
        line for block in blocks for line in block.splitlines() if line.startswith("digit69 ")
    ]
    commands = [line for line in lines if "|" not in line and "[" not in line]
    quoted = re.findall(r"`(digit69 [^`]+)`", text)
    return commands + [
        line for line in quoted if "COMMAND" not in line and "completion" not in line
    ]


def test_every_command_of_the_readme_parses():
    commands = commands_of_the_readme()
    assert len(commands) > 12
    for line in commands:
        check_that_it_parses(line)


@functools.cache
def completion_script():
    "What --install-completion installs for bash."
    environment = {**os.environ, "_DIGIT69_COMPLETE": "source_bash"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment
    )
    return done.stdout


def complete_in_bash(line, folder):
    "What bash offers after `line` and Tab."
    assert "complete -o default" in completion_script()
    program = folder / "digit69"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{PROGRAM}" "$@"\n')
    program.chmod(0o755)
    words = line.split(" ")
    quoted = " ".join(map(repr, words))
    script = "\n".join(
        [
            completion_script(),
            f"COMP_WORDS=({quoted})",
            f"COMP_CWORD={len(words) - 1}",
            "_digit69_completion digit69",
            'printf "%s\\n" "${COMPREPLY[@]}"',
        ]
    )
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offers"),
    [
        ("digit69 cr", ["crossval"]),
        ("digit69 data s", ["simulate"]),
        ("digit69 run --pre", ["--preset"]),
        ("digit69 run --preset q", ["quick"]),
        ("digit69 train --model po", ["posterior"]),
        ("digit69 run --models mean,rid", ["mean,ridge"]),
        ("digit69 run --data sim", ["simulated", "simulated-patterns"]),
        ("digit69 run --data ./x", []),
    ],
)
def test_bash_completes(line, offers, tmp_path):
    assert complete_in_bash(line, tmp_path) == offers


def test_completion_knows_every_model():
    assert set(known_models()) == set(available_models())


@pytest.mark.parametrize(
    "path", sorted((ROOT / "nbs").glob("[0-9]*.ipynb")), ids=lambda path: path.stem
)
def test_every_chapter_ends_with_what_it_showed_and_an_exercise(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = [
        (cell["cell_type"], "".join(cell["source"]))
        for cell in cells
        if "".join(cell["source"]).strip()
    ]
    texts = [source for kind, source in sources if kind == "markdown"]
    assert re.search(r"^## What this showed$", texts[-1], re.MULTILINE), texts[-1][-200:]
    assert "**Exercise.**" in texts[-1]
    last_kind, last_source = sources[-1]
    assert last_kind == "markdown" or "#| hide" in last_source, (
        f"{path.name} goes on after its end"
    )
