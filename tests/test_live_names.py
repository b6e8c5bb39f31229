"""Names that are tags run nothing in a browser: a page with hostile names is opened in Chromium."""

import shutil
import subprocess

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from digit69.report import to_html

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
HOSTILE = (
    "<img src=x onerror=\"document.title='it ran'\">",
    "<svg onload=\"document.title='it ran'\"></svg>",
    "<script>document.title='it ran'</script>",
)

needs_browser = pytest.mark.skipif(
    not CHROMIUM, reason="there is no Chromium: apt-get install chromium"
)


def title_in_browser(page, folder):
    "The title of a page after a browser has opened it."
    file = folder / "page.html"
    file.write_text(page, encoding="utf-8")
    words = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={folder / 'user'}",
    ]
    command = [CHROMIUM, *words, "--virtual-time-budget=2000", "--dump-dom", file.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    assert "</html>" in dom
    return dom.partition("<title>")[2].partition("</title>")[0]


@needs_browser
@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_in_a_report_runs_nothing(name, tmp_path):
    shown = new_output("display_data", {"text/html": f"<table><tr><td>{name}</td></tr></table>"})
    cells = [new_markdown_cell(f"# Run of {name}\n\n{name}"), new_code_cell("", outputs=[shown])]
    page = to_html(new_notebook(cells=cells), "digit69: evaluate")
    assert "it ran" in page  # the name is there, as text
    assert title_in_browser(page, tmp_path) == "digit69: evaluate"


@needs_browser
@pytest.mark.parametrize("name", HOSTILE)
def test_the_same_name_runs_where_nothing_is_cleaned(name, tmp_path):
    page = f"<html><head><title>safe</title></head><body>{name}</body></html>"
    assert title_in_browser(page, tmp_path) == "it ran"
