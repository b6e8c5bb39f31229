"""Counts the renames below a folder over all processes, and kills at the one that a plan names.

Imported when Python starts, by the `sitecustomize.py` of `kills.py`: with the standard library alone.
"""

import fcntl
import json
import os
import signal
from pathlib import Path

RENAMES = ("replace", "rename", "link")  # the calls of `os` that give a file its name


def count_rename(counter: Path) -> int:
    "One more rename, by whichever process; how many there were with it."
    with open(counter, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(b".")
        file.flush()
        return os.fstat(file.fileno()).st_size


def die(whole_group: bool) -> None:
    "End this process as if its memory were gone; or all processes of the command, as if the power were."
    if whole_group:
        os.killpg(os.getpgid(0), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def watch_renames(folder: str) -> None:
    "Let renames below OUT count, and one of them kill: plan.json holds `out`, `at`, `how` and `whole_group`."
    plan = json.loads(Path(folder, "plan.json").read_text())
    counter = Path(folder, "renames")

    def watched(rename):
        def call(source, target, **options):
            if not str(target).startswith(plan["out"]):
                return rename(source, target, **options)
            is_last = count_rename(counter) == plan["at"]
            if is_last and plan["how"] == "half":
                os.truncate(source, os.path.getsize(source) // 2)
                die(plan["whole_group"])
            rename(source, target, **options)
            if is_last:
                die(plan["whole_group"])

        return call

    for name in RENAMES:
        setattr(os, name, watched(getattr(os, name)))
