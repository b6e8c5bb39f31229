"""Drive the explorer in a real browser, as a Voila page and in JupyterLab, and open the book.

make test-browser. Debian's Chromium and its driver are installed when they are missing and we are root.
Pictures go to --out, the times of every control are printed. Nothing here waits for a fixed time: it waits
for what must appear, and fails when it does not.
"""

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path

import numpy as np

WAIT_SECONDS = 180

INSTALL = (
    "apt-get update -qq && "
    "apt-get install -y -qq --no-install-recommends chromium chromium-driver >/dev/null"
)

BROWSER_OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)

# --- the browser -------------------------------------------------------------------------------------------


def install():
    "Chromium and its driver, from the distribution."
    if shutil.which("chromium") and shutil.which("chromedriver"):
        return
    if os.getuid() != 0 or not shutil.which("apt-get"):
        sys.exit("please run: sudo apt-get install chromium chromium-driver")
    print("installing chromium and chromium-driver")
    subprocess.run(INSTALL, shell=True, check=True)


def open_browser():
    "A browser without a window that keeps what its console says."
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = shutil.which("chromium")
    for word in BROWSER_OPTIONS:
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))


def until(what, condition, seconds=WAIT_SECONDS):
    "Wait until `condition()` is true, and return what it returns."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"waited {seconds} s in vain for: {what}")


def resize(driver, width, height):
    "Give the page a size; below 600 pixels as on a phone."
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def errors(driver):
    "What the browser complained of. JupyterLab's own warnings are not ours; an error is an error."
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


# --- the page, in the browser's language -------------------------------------------------------------------

# The source of the picture of the answer: the one whose caption says so.
ANSWER = """(() => {
  const figures = [...document.querySelectorAll('.d69 figure')];
  const figure = figures.find(f => / says|, step|T =/.test(f.innerText));
  return figure ? figure.querySelector('img').src : null;
})()"""

FIND_LABEL = """const labels = [...document.querySelectorAll('.widget-label')];
const label = labels.find(l => l.textContent === arguments[0]);"""

# What takes the keyboard: the handle of a slider, a menu, or the button that is pressed.
HANDLE = (
    FIND_LABEL
    + """return label ? label.parentElement.querySelector(
  '.noUi-handle, select, .jupyter-button.mod-active') : null;"""
)

# The button after the pressed one, or before it; null at either end, and for other controls.
NEIGHBOR = (
    FIND_LABEL
    + """const buttons = [...label.parentElement.querySelectorAll('.jupyter-button')];
return buttons[buttons.findIndex(b => b.classList.contains('mod-active')) + arguments[1]] || null;"""
)

IS_SHOWN = FIND_LABEL + "return !!(label && label.offsetParent);"

READOUT = (
    FIND_LABEL
    + """if (!label) return null;
const menu = label.parentElement.querySelector('select');
if (menu) return menu.selectedOptions[0].text;
return label.parentElement.querySelector('.widget-readout, .mod-active').innerText.trim();"""
)

# Milliseconds from a key to the next answer (ms), and to the latest one (last): a search or a slow sampler
# shows where it stands before its answer is complete. Measured in the page, by a clock that every key starts.
CLOCK = f"""window.d69 = {{src: {ANSWER}, start: null, ms: null, last: null}};
addEventListener('keydown', () => {{
  d69.start = performance.now();
  d69.ms = d69.last = null;
  d69.src = {ANSWER};
}}, true);
new MutationObserver(() => {{
  if (d69.start === null) return;
  const now = {ANSWER};
  if (now && now !== d69.src) {{
    d69.src = now;
    d69.last = performance.now() - d69.start;
    d69.ms ??= d69.last;
  }}
}}).observe(document.body, {{subtree: true, childList: true, attributes: true}});"""

IS_UNFINISHED = """return [...document.querySelectorAll('.d69 figcaption')].some(
  c => /first look|, step /.test(c.innerText) && c.parentElement.offsetWidth > 100);"""

BUTTON = """return [...document.querySelectorAll('button.jupyter-button, .widget-play button')].find(
  b => b.innerText.trim() === arguments[0] || b.title === arguments[0]
    || b.querySelector('.fa-' + arguments[0]));"""

FILM_IS_SHOWN = """return [...document.querySelectorAll('.d69 h4')].some(
  h => h.innerText === 'The film' && h.parentElement.querySelectorAll('img').length > 1);"""

ANSWER_IS_COMPLETE = """return [...document.querySelectorAll('.d69 figcaption')].some(
  c => / says/.test(c.innerText) && !/first look/.test(c.innerText));"""

NOTES = "return [...document.querySelectorAll('.d69-note')].map(n => n.innerText).join(' ');"

SCORES = """return [...document.querySelectorAll('.d69 table tr')].map(
  row => [...row.children].map(cell => cell.innerText.trim())).filter(row => row[1] && row[1] !== 'now');"""

ALL_MODELS_ARE_SHOWN = "return document.querySelectorAll('.d69 figure img').length > 8;"

PICTURES_ARE_COMPLETE = """return [...document.querySelectorAll('.d69 figure img')].every(
  i => i.complete && i.naturalWidth > 0);"""

RIGHT_EDGE = """return Math.max(...[...document.querySelectorAll('.d69, .widget-inline-hbox')].map(
  e => e.getBoundingClientRect().right));"""

TWO_FRAMES = (
    "return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));"
)

FOREIGN_ADDRESSES = """return performance.getEntriesByType('resource').map(e => e.name).filter(
  n => !/^(data:|blob:|https?:..(localhost|127.0.0.1))/.test(n));"""

# --- using the page by keyboard ----------------------------------------------------------------------------


def focus(driver, element, name):
    "Bring an element into view and give it the keyboard."
    driver.execute_script(
        "arguments[0].scrollIntoView({block: 'center'}); arguments[0].focus();", element
    )
    has_focus = driver.execute_script("return document.activeElement === arguments[0];", element)
    assert has_focus, f"'{name}' cannot be reached by keyboard"


def use_key(driver, label, handle, key):
    "Send a key to a slider or a menu; with buttons, an arrow goes to the next one and presses it."
    from selenium.webdriver.common.keys import Keys

    step = {Keys.ARROW_LEFT: -1, Keys.ARROW_RIGHT: 1}.get(key)
    button = driver.execute_script(NEIGHBOR, label, step) if step else None
    if button is None:
        handle.send_keys(key)
    else:
        focus(driver, button, label)
        button.send_keys(Keys.ENTER)


def press(driver, label, keys):
    """Press keys on a control; of each that changed the picture: ms until the next and the final one."""
    handle = driver.execute_script(HANDLE, label)
    assert handle is not None, f"there is no control '{label}' on the page"
    focus(driver, handle, label)
    times = []
    for key in keys:
        use_key(driver, label, handle, key)
        try:
            first = until("a new picture", lambda: driver.execute_script("return d69.ms"), 5)
        except AssertionError:
            continue  # some keys change nothing: a seed that draws the same, the end of a slider
        until("the end of the search", lambda: not driver.execute_script(IS_UNFINISHED))
        times.append((first, driver.execute_script("return d69.last")))
    assert times, f"'{label}' was moved {len(keys)} times, and the picture never changed"
    return times


def click(driver, text):
    "Press a button by keyboard."
    from selenium.webdriver.common.keys import Keys

    button = driver.execute_script(BUTTON, text)
    assert button is not None, f"there is no button '{text}'"
    focus(driver, button, text)
    button.send_keys(Keys.ENTER)


def read(driver, label):
    "What a control shows: the number beside a slider, the name chosen in a menu or among buttons."
    return driver.execute_script(READOUT, label)


def check_own_answer(driver):
    "The page opens on what the run reconstructed: its scores now are those in the run."
    rows = driver.execute_script(SCORES)
    assert rows, "there are no scores"
    for name, now, in_run in rows:
        assert now == in_run, f"{name} is {now} on opening, and {in_run} in the run"


# --- what a screen reader hears ---------------------------------------------------------------------------


def hear(driver):
    "What a screen reader says of the explorer's controls: (role, name, value, whether pressed)."
    heard = []
    for node in driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]:
        role = node.get("role", {}).get("value")
        if role not in ("slider", "combobox", "button") or node.get("ignored"):
            continue
        facts = {
            entry["name"]: entry["value"].get("value") for entry in node.get("properties", [])
        }
        value = facts.get("valuetext") or node.get("value", {}).get("value")
        heard.append((role, node.get("name", {}).get("value"), value, facts.get("pressed")))
    return heard


def check_names(driver):
    "Every control has a name; a slider says what stands beside it; the chosen model is said to be pressed."
    heard = hear(driver)
    sliders = {name: value for role, name, value, _ in heard if role == "slider"}
    assert sliders and "" not in sliders, f"a slider without a name: {sliders}"
    for name, value in sliders.items():
        assert value == read(driver, name), f"'{name}' is said to be {value}"
    pressed = [name for role, name, _, is_pressed in heard if is_pressed == "true"]
    assert read(driver, "model") in pressed, f"pressed are {pressed}"


# --- what is done on the page ------------------------------------------------------------------------------


@dataclass
class Timing:
    "Milliseconds of a control of a model: of each change, until the first and until the final picture."

    model: str
    control: str
    ms: list[tuple[float, float]]


def control_keys():
    "The key that moves each control."
    from selenium.webdriver.common.keys import Keys

    brain = {
        "share of it, %": Keys.PAGE_UP,
        "silence best": Keys.ARROW_RIGHT,
        "noise, SDs": Keys.PAGE_UP,
    }
    model = {
        "temperature": Keys.PAGE_UP,
        "steps": Keys.ARROW_RIGHT,
        "guidance": Keys.PAGE_UP,
        "sampler": Keys.ARROW_RIGHT,
        "seed": Keys.ARROW_RIGHT,
        "row": Keys.ARROW_DOWN,
        "estimate": Keys.ARROW_RIGHT,
    }
    return brain, model


def move_controls(driver, model):
    "Move every control of the chosen model; those of the brain only for the posterior."
    of_brain, of_model = control_keys()
    keys = (
        {**of_brain, **of_model} if model == "posterior" else of_model
    )  # others of this size hardly listen
    timings = []
    for label, key in keys.items():
        if driver.execute_script(IS_SHOWN, label):
            n_presses = 3 if label in ("estimate", "sampler") else 6
            timings.append(Timing(model, label, press(driver, label, [key] * n_presses)))
    return timings


def watch_film(driver):
    "Take back what was done to the brain, and watch the digit form."
    click(driver, "Undisturbed")
    until("an undisturbed brain", lambda: read(driver, "share of it, %") == "0")
    click(driver, "Watch it form")
    until("a film", lambda: driver.execute_script(FILM_IS_SHOWN))
    until("the answer after it", lambda: driver.execute_script(ANSWER_IS_COMPLETE))


def move_model(driver, key, n_presses=1):
    "Choose another model; at the last of them nothing changes."
    try:
        press(driver, "model", [key] * n_presses)
    except AssertionError as error:
        if "never changed" not in str(error):
            raise


def visit_models(driver):
    "Every control of every model that samples, from the first model to the last: names and timings."
    from selenium.webdriver.common.keys import Keys

    visited, timings = [], []
    press(driver, "model", [Keys.ARROW_LEFT] * 8)
    while (model := read(driver, "model")) not in visited:
        visited.append(model)
        if driver.execute_script(IS_SHOWN, "seed"):
            timings += move_controls(driver, model)
            watch_film(driver)
        move_model(driver, Keys.ARROW_RIGHT)
    return visited, timings


def walk_to_other_row(driver):
    "Let the page mix the other row in by itself."
    before = read(driver, "share of it, %")
    click(driver, "play")
    until("the walk", lambda: read(driver, "share of it, %") != before)
    click(driver, "pause")


def return_to_posterior(driver, visited):
    "Choose the posterior again, or the first model."
    from selenium.webdriver.common.keys import Keys

    for _ in visited:
        if read(driver, "model") in ("posterior", visited[0]):
            return
        press(driver, "model", [Keys.ARROW_LEFT])


def print_timings(name, timings):
    "Milliseconds to the new picture, and to the final one where a search shows where it stands."
    print(f"{name}: milliseconds from a key to the new picture, and to the final one")
    print(f"  {'model':12}{'control':16}{'changes':>8}{'median':>8}{'worst':>8}{'final':>8}")
    for timing in timings:
        first, last = np.array(timing.ms, float).T
        numbers = f"{np.median(first):8.0f}{first.max():8.0f}{np.median(last):8.0f}"
        print(f"  {timing.model:12}{timing.control:16}{len(first):8}{numbers}")


def play(driver, name):
    "Use the page: all models and controls, the sentence on a missing model, the walk, the way back."
    visited, timings = visit_models(driver)
    if "class_mean" in visited:  # it was taken away before the page was opened
        notes = driver.execute_script(NOTES)
        assert "class_mean cannot be asked again" in notes, f"{visited}, and only: {notes}"
    walk_to_other_row(driver)
    return_to_posterior(driver, visited)
    print_timings(name, timings)
    return [asdict(timing) for timing in timings]


def look_at_explorer(driver, out, name):
    "Pictures of the page wide and narrow; nothing may stand out over the edge."
    for width, height in ((1200, 1500), (420, 2600)):
        resize(driver, width, height)
        until(
            "the page to fit",
            lambda width=width: driver.execute_script("return innerWidth") == width,
        )
        driver.execute_script(TWO_FRAMES)
        driver.save_screenshot(str(out / f"explore_{name}_{width}.png"))
        if name == "voila":
            edge = driver.execute_script(RIGHT_EDGE)
            assert edge <= width, f"at {width} pixels something ends at {edge:.0f}"


def keep_picture_of_failure(test):
    "Keep a picture of the page when a test fails."

    @wraps(test)
    def run(driver, url, out, name, *more):
        try:
            return test(driver, url, out, name, *more)
        except BaseException:
            picture = out / f"failed_{name}.png"
            driver.save_screenshot(str(picture))
            print(f"see {picture}", *errors(driver), sep="\n", file=sys.stderr)
            raise

    return run


@keep_picture_of_failure
def drive(driver, url, out, name, start=None):
    "Open a page with the explorer, move every control by keyboard, look at it wide and narrow."
    resize(driver, 1200, 1000)
    opened = time.monotonic()
    driver.get(url)
    if start:
        start(driver)
    until("the explorer's picture", lambda: driver.execute_script(f"return {ANSWER}"))
    print(f"{name}: first picture after {time.monotonic() - opened:.1f} s")
    driver.execute_script(CLOCK)
    until("all models", lambda: driver.execute_script(ALL_MODELS_ARE_SHOWN))
    check_own_answer(driver)
    check_names(driver)
    timings = play(driver, name)
    check_names(driver)
    look_at_explorer(driver, out, name)
    assert driver.execute_script(PICTURES_ARE_COMPLETE)
    addresses = driver.execute_script(FOREIGN_ADDRESSES)
    assert not addresses, f"{name} asks the internet for {addresses}"
    return timings


# --- servers -----------------------------------------------------------------------------------------------


def make_run_with_one_missing(folder):
    "A small run of models that sample, one of whose models has been taken away."
    from digit69.explore_session import small_run

    _, run = small_run(folder, ("ridge", "posterior", "ldm"))
    (run / "models" / "class_mean" / "model.json").unlink()
    return run


def free_port():
    "A port that nobody listens on."
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def answers(url):
    "Whether a server answers, whatever it says."
    try:
        urllib.request.urlopen(url, timeout=2)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


@contextmanager
def serve(words: list[str], url: str, log) -> Iterator[None]:
    "Run a Python server in a process of its own while the block lasts; `url` is asked until it answers."
    server = subprocess.Popen([sys.executable, *words], stdout=log, stderr=log)

    def is_up() -> bool:
        assert server.poll() is None, f"the server ended:\n{Path(log.name).read_text()[-2000:]}"
        return answers(url)

    try:
        until("the server", is_up)
        yield
    finally:
        server.terminate()
        server.wait(WAIT_SECONDS)


def drive_server(driver, words, probe, page, out, name, log, start: Callable | None = None):
    "Start a server, drive the explorer on its page, and leave the page before the server ends."
    with serve(words, probe, log):
        try:
            timings = drive(driver, page, out, name, start)
            complaints = errors(driver)
        finally:
            driver.get("about:blank")
    assert not complaints, f"{name}: {complaints}"
    return timings


def drive_voila(driver, run, out, log):
    "The explorer as a page of its own."
    port = free_port()
    url = f"http://localhost:{port}/"
    script = f"from digit69.serve import serve_explorer; serve_explorer({run!r}, port={port}, browser=False)"
    return drive_server(
        driver, ["-c", script], f"{url}voila/static/voila.js", url, out, "voila", log
    )


# JupyterLab writes kernel and language into a notebook when it knows both: a moment after this.
KERNEL_IS_NOTED = """const done = arguments[0], context = jupyterapp.shell.currentWidget.sessionContext;
const kernel = context.session.kernel;
Promise.all([kernel.info, kernel.spec]).then(() => setTimeout(done, 500));"""

IS_MODIFIED = "return jupyterapp.shell.currentWidget.context.model.dirty;"


def run_all_cells(driver):
    "In JupyterLab: once notebook and kernel are there, nothing is modified; then run all cells."
    is_open = "window.jupyterapp && document.querySelector('.jp-NotebookPanel .jp-Cell')"
    until("the notebook", lambda: driver.execute_script(f"return !!({is_open});"))
    is_idle = """const s = jupyterapp.shell.currentWidget?.sessionContext;
    return !!s && s.isReady && s.session?.kernel?.status === 'idle';"""
    until("its kernel", lambda: driver.execute_script(is_idle))
    driver.execute_async_script(KERNEL_IS_NOTED)
    assert not driver.execute_script(IS_MODIFIED), "the notebook opens as modified"
    driver.execute_script("jupyterapp.commands.execute('notebook:run-all-cells');")


def drive_lab(driver, folder, out, log):
    "The explorer's notebook in JupyterLab."
    from digit69.report import report_notebook

    port = free_port()
    url = f"http://localhost:{port}"
    shutil.copy(report_notebook("explore"), folder / "explore.ipynb")
    words = [
        "-m",
        "jupyterlab",
        f"--config={Path(__file__).resolve().parents[2] / '.ci' / 'lab.py'}",
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--IdentityProvider.token=",
        f"--ServerApp.root_dir={folder}",
        f"--LabApp.workspaces_dir={folder / 'workspaces'}",
        f"--LabApp.user_settings_dir={folder / 'settings'}",
        "--LabApp.expose_app_in_browser=True",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    page = f"{url}/lab/tree/explore.ipynb"
    return drive_server(driver, words, f"{url}/api", page, out, "lab", log, run_all_cells)


# --- the book ----------------------------------------------------------------------------------------------

TEXT = """return [...document.querySelectorAll('article p')].map(paragraph => {
  const copy = paragraph.cloneNode(true);
  copy.querySelectorAll('code, math').forEach(part => part.remove());
  return copy.textContent;
}).join(' ')"""


def look_at_page(driver, file, out):
    "Open a page of the book from the disk, wide and narrow: it fits, and its formulas are drawn."
    driver.get(file.as_uri())
    for width in (1280, 420):
        resize(driver, width, 900)
        wide = driver.execute_script("return document.documentElement.scrollWidth")
        assert wide <= width, f"{file.name} is {wide} pixels wide on a screen of {width}"
        if file.stem in ("index", "encoding"):
            driver.save_screenshot(str(out / f"book_{file.stem}_{width}.png"))
    text = driver.execute_script(TEXT)
    assert not re.search(r"\\(frac|bar|sum|cdot|mathcal)", text), f"{file.name} shows TeX source"


def search_book(driver, index):
    "Search the book from its first page, and follow what was found."
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    resize(driver, 1280, 900)
    driver.get(index.as_uri())
    box = driver.find_element(By.CSS_SELECTOR, "input.sidebar-search")
    box.send_keys("contrastive", Keys.ENTER)

    def found():
        results = driver.find_elements(By.CSS_SELECTOR, "ul.search a")
        return [result for result in results if result.text.startswith("Encoders")]

    first = until("the notebook on encoders among the results", found, 20)[0]
    driver.get(first.get_attribute("href"))
    assert driver.title.startswith("Encoders"), driver.title


def look_at_book(driver, out):
    "Open every page of the book in _docs (make docs), and search."
    book = Path(__file__).resolve().parents[2] / "_docs"
    assert book.is_dir(), "there is no book to look at: make docs"
    pages = sorted(book.rglob("*.html"))
    for file in pages:
        look_at_page(driver, file, out)
    print(f"book: {len(pages)} pages, wide and narrow")
    search_book(driver, book / "index.html")
    assert not (wrong := errors(driver)), wrong


# --- the command -------------------------------------------------------------------------------------------


def parse_options():
    "What to drive, and where to keep pictures and times."
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument(
        "--out", type=Path, default=Path(tempfile.gettempdir()) / "digit69_browser"
    )
    options.add_argument("--run", help="a run folder; without it a small simulated run is made")
    options.add_argument("--skip-lab", action="store_true")
    options.add_argument("--skip-book", action="store_true")
    options.add_argument("--only-book", action="store_true")
    return options.parse_args()


def drive_explorer(driver, options, folder, log):
    "The explorer by Voila and in JupyterLab: {name: timings}."
    from digit69.core import set_quiet, set_threads

    set_threads(1)
    set_quiet()
    run = Path(options.run) if options.run else make_run_with_one_missing(folder / "run")
    os.environ["DIGIT69_EXPLORE_RUN"] = str(run.resolve())
    timings = {"voila": drive_voila(driver, str(run.resolve()), options.out, log)}
    if not options.skip_lab:
        timings["lab"] = drive_lab(driver, folder, options.out, log)
    return timings


def main():
    options = parse_options()
    started = time.monotonic()
    install()
    options.out.mkdir(parents=True, exist_ok=True)
    driver = open_browser()
    try:
        if not options.skip_book:
            look_at_book(driver, options.out)
        if options.only_book:
            return
        with (
            tempfile.TemporaryDirectory() as folder,
            open(options.out / "server.log", "w+") as log,
        ):
            timings = drive_explorer(driver, options, Path(folder), log)
    finally:
        driver.quit()
    (options.out / "times.json").write_text(json.dumps(timings))
    print(f"passed in {time.monotonic() - started:.0f} s; pictures in {options.out}")


if __name__ == "__main__":
    main()
