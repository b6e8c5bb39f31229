"""JupyterLab as `make lab` starts it: notebooks open unmodified, and are saved as nbdev_clean has them."""

import asyncio
import shutil
from pathlib import Path

import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import start_new_kernel

from ci_scripts import load_script

NOTEBOOKS = Path(__file__).resolve().parents[1] / "nbs"


@pytest.fixture
def files(tmp_path):
    "The file manager of `make lab` on a folder with one notebook of the book."
    shutil.copy(NOTEBOOKS / "015_parts.ipynb", tmp_path / "parts.ipynb")
    return load_script("lab").CleanNotebooks(root_dir=str(tmp_path))


def test_what_jupyterlab_would_write_is_there_already(files):
    metadata = asyncio.run(files.get("parts.ipynb"))["content"]["metadata"]
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        told = client.kernel_info(reply=True, timeout=60)["content"]["language_info"]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert metadata["language_info"] == told
    spec = KernelSpecManager().get_kernel_spec("python3")
    expected = {"name": "python3", "display_name": spec.display_name, "language": spec.language}
    assert metadata["kernelspec"] == expected


def test_a_notebook_that_is_saved_unchanged_stays_as_it_was(files, tmp_path):
    model = asyncio.run(files.get("parts.ipynb"))
    asyncio.run(files.save({"type": "notebook", "content": model["content"]}, "parts.ipynb"))
    saved = (tmp_path / "parts.ipynb").read_text(encoding="utf-8")
    assert saved == (NOTEBOOKS / "015_parts.ipynb").read_text(encoding="utf-8")


def test_other_files_are_left_alone(files, tmp_path):
    (tmp_path / "notes.txt").write_text("a line\n")
    assert asyncio.run(files.get("notes.txt"))["content"] == "a line\n"
