"""Drive the explorer in a real browser, as a Voila page and in JupyterLab, and open the book. make test-browser

Debian's Chromium and its driver are installed when they are missing and we are root. Pictures go to --out, the times of every control are printed.
Nothing here waits for a fixed time: it waits for what must appear, and fails when it does not."""
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
from pathlib import Path

import numpy as np

WAIT = 180


def install():
    "Chromium and its driver, from the distribution."
    if shutil.which("chromium") and shutil.which("chromedriver"): return
    if os.getuid() != 0 or not shutil.which("apt-get"): sys.exit("please run: sudo apt-get install chromium chromium-driver")
    print("installing chromium and chromium-driver")
    subprocess.run("apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium chromium-driver >/dev/null", shell=True, check=True)


def open_browser():
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service
    options = Options()
    options.binary_location = shutil.which("chromium")
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"): options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))


def until(what, found, wait=WAIT):
    "What `found()` returns once it is true."
    end = time.monotonic() + wait
    while time.monotonic() < end:
        if got := found(): return got
        time.sleep(.02)
    raise AssertionError(f"waited {wait} s in vain for: {what}")


def size(driver, width, height):
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600})


def errors(driver):
    "What the browser complained of. JupyterLab's own warnings are not ours; an error is an error."
    return [e["message"] for e in driver.get_log("browser") if e["level"] == "SEVERE"]


# The picture is the answer: the second of the large ones (the first is what was shown, where that is known).
ANSWER = "(() => { const f = [...document.querySelectorAll('.d69 figure')].find(f => / says|, step|T =/.test(f.innerText)); return f ? f.querySelector('img').src : null })()"
HANDLE = """const label = [...document.querySelectorAll('.widget-label')].find(l => l.textContent === arguments[0]);
            return label ? label.parentElement.querySelector('.noUi-handle') : null"""
# Milliseconds from the key to the next answer on the page, and to the last one so far (a search or a slow sampler shows where it stands first), measured in the page.
CLOCK = f"""window.d69 = {{src: {ANSWER}, start: null, ms: null, last: null}};
addEventListener('keydown', () => {{ d69.start = performance.now(); d69.ms = d69.last = null; d69.src = {ANSWER} }}, true);
new MutationObserver(() => {{ if (d69.start === null) return; const now = {ANSWER};
  if (now && now !== d69.src) {{ d69.src = now; d69.last = performance.now() - d69.start; d69.ms ??= d69.last }} }}).observe(document.body, {{subtree: true, childList: true, attributes: true}});"""
UNFINISHED = "[...document.querySelectorAll('.d69 figcaption')].some(c => /first look|, step /.test(c.innerText) && c.parentElement.offsetWidth > 100)"
READS = """const label = [...document.querySelectorAll('.widget-label')].find(l => l.textContent === arguments[0]); return label ? label.parentElement.querySelector('.widget-readout').innerText : null"""


def press(driver, label, keys):
    "Focus a control and press keys on it; milliseconds until the picture changed and until it was final, for each key that changed it."
    handle, times = driver.execute_script(HANDLE, label), []
    assert handle is not None, f"there is no control '{label}' on the page"
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'}); arguments[0].focus()", handle)
    assert driver.execute_script("return document.activeElement === arguments[0]", handle), f"'{label}' cannot be reached by keyboard"
    for key in keys:
        handle.send_keys(key)
        try: first = until("a new picture", lambda: driver.execute_script("return d69.ms"), 5)
        except AssertionError: continue      # some keys change nothing: a seed that draws the same, the end of a slider
        until("the end of the search", lambda: not driver.execute_script(f"return {UNFINISHED}"))
        times.append((first, driver.execute_script("return d69.last")))
    assert times, f"'{label}' was moved {len(keys)} times, and the picture never changed"
    return times


def look_back(test):
    "Keep a picture of the page when a test fails."
    def run(driver, url, out, name, *more):
        try: return test(driver, url, out, name, *more)
        except BaseException:
            driver.save_screenshot(str(out / f"failed_{name}.png"))
            print(f"see {out / f'failed_{name}.png'}", *errors(driver), sep="\n", file=sys.stderr)
            raise
    return run


def click(driver, text):
    "Press a button by keyboard."
    from selenium.webdriver.common.keys import Keys
    button = driver.execute_script("return [...document.querySelectorAll('button.jupyter-button, .widget-play button')].find(b => b.innerText.trim() === arguments[0] || b.title === arguments[0] || b.querySelector('.fa-' + arguments[0]))", text)
    assert button is not None, f"there is no button '{text}'"
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'}); arguments[0].focus()", button)
    assert driver.execute_script("return document.activeElement === arguments[0]", button), f"'{text}' cannot be reached by keyboard"
    button.send_keys(Keys.ENTER)


def play(driver, Keys, name):
    "Every control of every model that draws, then the walk, the film, the way back, and a model that is missing; {(model, control): [(first, last picture in ms)]}."
    keys = {"share of it, %": Keys.PAGE_UP, "silence best": Keys.ARROW_RIGHT, "noise, SDs": Keys.PAGE_UP, "temperature": Keys.PAGE_UP, "steps": Keys.ARROW_RIGHT, "guidance": Keys.PAGE_UP, "sampler": Keys.ARROW_RIGHT,
            "seed": Keys.ARROW_RIGHT, "row": Keys.ARROW_RIGHT, "estimate": Keys.ARROW_RIGHT}
    reads, rows, seen = lambda label: driver.execute_script(READS, label), {}, []
    press(driver, "model", [Keys.ARROW_LEFT] * 8)
    while (model := reads("model")) not in seen:
        seen.append(model)
        there = [k for k in keys if driver.execute_script(HANDLE.replace("return label", "return label && label.offsetParent"), k)]
        if "seed" in there:
            brain = [k for k in there if k in list(keys)[:3]] if model == "posterior" else []       # a network of the smoke preset hardly listens to the brain
            for label in [*brain, *(k for k in there if k not in list(keys)[:3])]: rows[model, label] = press(driver, label, [keys[label]] * (3 if label in ("estimate", "sampler") else 6))
            click(driver, "Undisturbed"); until("an undisturbed brain", lambda: reads("share of it, %") == "0")
            click(driver, "Watch it form"); until("a film", lambda: driver.execute_script("return [...document.querySelectorAll('.d69 h4')].some(h => h.innerText === 'The film' && h.parentElement.querySelectorAll('img').length > 1)"))
        try: press(driver, "model", [Keys.ARROW_RIGHT])
        except AssertionError: pass                                                   # the last one
    said = lambda: driver.execute_script("return [...document.querySelectorAll('.d69-note')].map(n => n.innerText).join(' ')")
    if "class_mean" in seen: assert "class_mean cannot be asked again" in said(), f"{seen}, and only: {said()}"        # (taken away before the page was opened)
    before = reads("share of it, %")
    click(driver, "play"); until("the walk", lambda: reads("share of it, %") != before); click(driver, "pause")
    for _ in seen:
        if reads("model") in ("posterior", seen[0]): break
        press(driver, "model", [Keys.ARROW_LEFT])
    print(f"{name}: milliseconds from a key to the new picture, and to the final one where a search shows where it stands\n  {'model':12}{'control':16}{'changes':>8}{'median':>8}{'worst':>8}{'final':>8}")
    for (model, label), ms in rows.items():
        first, last = np.array(ms, float).T
        print(f"  {model:12}{label:16}{len(ms):8}{np.median(first):8.0f}{first.max():8.0f}{np.median(last):8.0f}")
    return [{"model": m, "control": c, "ms": ms} for (m, c), ms in rows.items()]


@look_back
def drive(driver, url, out, name, start=None):
    "Open a page with the explorer, move every control by keyboard, look at it wide and narrow."
    from selenium.webdriver.common.keys import Keys
    size(driver, 1200, 1000)
    begun = time.monotonic()
    driver.get(url)
    if start: start(driver)
    until("the explorer's picture", lambda: driver.execute_script(f"return {ANSWER}"))
    print(f"{name}: first picture after {time.monotonic() - begun:.1f} s")
    driver.execute_script(CLOCK)
    until("all models", lambda: driver.execute_script("return document.querySelectorAll('.d69 figure img').length > 8"))
    rows = play(driver, Keys, name)
    for width, height in ((1200, 1500), (420, 2600)):
        size(driver, width, height)
        until("the page to fit", lambda w=width: driver.execute_script("return innerWidth") == w)
        driver.execute_script("return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        driver.save_screenshot(str(out / f"explore_{name}_{width}.png"))
        if name == "voila":
            wide = driver.execute_script("return Math.max(...[...document.querySelectorAll('.d69, .widget-inline-hbox')].map(e => e.getBoundingClientRect().right))")
            assert wide <= width, f"at {width} pixels something ends at {wide:.0f}"
    assert all(driver.execute_script("return [...document.querySelectorAll('.d69 figure img')].map(i => i.complete && i.naturalWidth > 0)"))
    abroad = driver.execute_script("return performance.getEntriesByType('resource').map(e => e.name).filter(n => !/^(data:|blob:|https?:..(localhost|127.0.0.1))/.test(n))")
    assert not abroad, f"{name} asks the internet for {abroad}"
    return rows


def with_one_missing(folder):
    "A small run of models that draw, one of whose models has been taken away."
    from digit69.serve import small_run
    run = small_run(folder, ("ridge", "posterior", "ldm"))[1]
    (Path(run) / "models" / "class_mean" / "model.json").unlink()
    return run


def free_port():
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); return s.getsockname()[1]


def serve(words, port, path, log):
    "A server in a process of its own, once it answers."
    import urllib.error
    import urllib.request
    def answers():
        assert server.poll() is None, f"the server ended:\n{Path(log.name).read_text()[-2000:]}"
        try: urllib.request.urlopen(f"http://localhost:{port}{path}", timeout=2); return True
        except urllib.error.HTTPError: return True
        except OSError: return False
    server = subprocess.Popen([sys.executable, *words], stdout=log, stderr=log)
    try: until("the server", answers)
    except AssertionError: server.terminate(); raise
    return server


def run_all(driver):
    "In JupyterLab: run all cells once the notebook and its kernel are there."
    until("the notebook", lambda: driver.execute_script("return !!(window.jupyterapp && document.querySelector('.jp-NotebookPanel .jp-Cell'))"))
    idle = "const s = jupyterapp.shell.currentWidget?.sessionContext; return !!s && s.isReady && s.session?.kernel?.status === 'idle'"
    until("its kernel", lambda: driver.execute_script(idle))
    driver.execute_script("jupyterapp.commands.execute('notebook:run-all-cells')")


TEXT = """return [...document.querySelectorAll('article p')].map(paragraph => {
  const copy = paragraph.cloneNode(true);
  copy.querySelectorAll('code, math').forEach(part => part.remove());
  return copy.textContent;
}).join(' ')"""


def look_at_page(driver, file, out):
    "Open a page of the book from the disk, wide and narrow: it fits, and its formulas are drawn."
    driver.get(file.as_uri())
    for width in (1280, 420):
        size(driver, width, 900)
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
    size(driver, 1280, 900)
    driver.get(index.as_uri())
    box = driver.find_element(By.CSS_SELECTOR, "input.sidebar-search")
    box.send_keys("contrastive", Keys.ENTER)

    def found():
        results = driver.find_elements(By.CSS_SELECTOR, "ul.search a")
        return [result for result in results if result.text.startswith("Embeddings")]

    until("a notebook on embeddings among the results", found, 20)[0].click()
    assert driver.title.startswith("Embeddings"), driver.title


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


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "digit69_browser")
    options.add_argument("--run", help="a run folder; without it a small simulated run is made")
    options.add_argument("--skip-lab", action="store_true")
    options.add_argument("--skip-book", action="store_true")
    options.add_argument("--only-book", action="store_true")
    o = options.parse_args()
    begun = time.monotonic()
    install()
    from digit69.core import set_quiet, set_threads
    from digit69.report import report_notebook
    set_threads(1); set_quiet(); o.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as tmp, open(o.out / "server.log", "w+") as log:
        run = "" if o.only_book else str(Path(o.run).resolve()) if o.run else str(with_one_missing(Path(tmp) / "run"))
        os.environ["DIGIT69_EXPLORE_RUN"] = run
        driver, results = open_browser(), {}
        try:
            if not o.skip_book: look_at_book(driver, o.out)
            if o.only_book: return
            port = free_port()
            page = serve(["-c", f"from digit69.explore import explore_command; explore_command({run!r}, port={port}, browser=False)"], port, "/voila/static/voila.js", log)
            try: results["voila"] = drive(driver, f"http://localhost:{port}/", o.out, "voila"); complaints = errors(driver)
            finally: driver.get('about:blank'); page.terminate(); page.wait(WAIT)
            assert not complaints, f"the Voila page: {complaints}"
            if not o.skip_lab:
                port = free_port()
                notebook = Path(tmp) / "explore.ipynb"
                shutil.copy(report_notebook("explore"), notebook)
                lab = serve(["-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--IdentityProvider.token=", f"--ServerApp.root_dir={tmp}", "--LabApp.expose_app_in_browser=True", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"], port, "/api", log)
                try: results["lab"] = drive(driver, f"http://localhost:{port}/lab/tree/explore.ipynb", o.out, "lab", run_all); complaints = errors(driver)
                finally: driver.get('about:blank'); lab.terminate(); lab.wait(WAIT)
                assert not complaints, f"JupyterLab: {complaints}"
        finally: driver.quit()
    (o.out / "times.json").write_text(json.dumps(results))
    print(f"passed in {time.monotonic() - begun:.0f} s; pictures in {o.out}")


if __name__ == "__main__": main()
