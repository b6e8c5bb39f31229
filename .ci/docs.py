"""The book: a static site of all notebooks, with API pages from docstrings and search, from the repository alone and for reading without a network.

    python .ci/docs.py [OUT]        writes _docs/index.html and what it needs; ends with 1 if a page asks the network for something or a link leads nowhere"""
import html
import importlib
import inspect
import json
import re
import shutil
import sys
import urllib.parse
from pathlib import Path

import nbformat
from fastcore.docments import docments
from latex2mathml.converter import convert as mathml
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import markdown2html_mistune
from pygments.formatters import HtmlFormatter

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {"i": "", "0": "Ground floor", "1": "Data", "2": "Metrics, figures, training", "3": "Quality, encoding, embeddings", "4": "Models", "5": "Evaluation", "6": "Reports and explorer", "7": "Command line"}

CSS = """
:root {--back: #fff; --text: #1c1c1c; --soft: #666; --line: #ddd; --code: #f6f6f4; --link: #005b96;}
@media (prefers-color-scheme: dark) {:root {--back: #16181b; --text: #e4e4e0; --soft: #a5a5a0; --line: #3a3d42; --code: #1f2226; --link: #7cc0ee;} .output img, .output_png img {background: #fff;}}
* {box-sizing: border-box;} body {margin: 0; background: var(--back); color: var(--text); font: 16px/1.6 system-ui, sans-serif;} a {color: var(--link);}
.page {display: grid; grid-template-columns: 17rem minmax(0, 46rem); gap: 3rem; max-width: 78rem; margin: 0 auto; padding: 0 1.2rem;}
nav {position: sticky; top: 0; height: 100vh; overflow-y: auto; padding: 1.2rem 0; font-size: .88rem; line-height: 1.45;} nav ul {list-style: none; margin: .1rem 0 .6rem; padding: 0;} nav a {text-decoration: none; display: block; padding: .08rem 0;}
nav a[aria-current] {font-weight: 650; color: var(--text);} nav .floor {color: var(--soft); font-size: .75rem; margin: .5rem 0 0;} nav summary {cursor: pointer;} .brand {font-weight: 700; font-size: 1.1rem;}
input[type=search] {width: 100%; font: inherit; padding: .35rem .5rem; border: 1px solid var(--line); border-radius: 4px; background: var(--back); color: var(--text); margin: .5rem 0;}
#found {list-style: none; padding: 0; margin: 0; overflow-wrap: anywhere;} #found li {border-bottom: 1px solid var(--line); padding: .25rem 0;} #found small {color: var(--soft); display: block; overflow-wrap: anywhere;}
main {padding: 1.2rem 0 4rem; min-width: 0;} h1, h2, h3, main p {overflow-wrap: anywhere;} .api pre {overflow-wrap: anywhere;} h1 {line-height: 1.2; margin: .6rem 0;} h2 {margin: 2.2rem 0 .5rem; line-height: 1.25;} h3 {margin: 1.6rem 0 .4rem;} .anchor-link {visibility: hidden; text-decoration: none; padding-left: .3rem;} :is(h1,h2,h3):hover .anchor-link {visibility: visible;}
blockquote {margin: .5rem 0 1rem; padding-left: .9rem; border-left: 3px solid var(--line); color: var(--soft);} pre, code {font: .84rem/1.5 ui-monospace, "DejaVu Sans Mono", monospace;} code {overflow-wrap: anywhere;} pre code {overflow-wrap: normal;}
.highlight, .api pre, .text_cell_render pre {background: var(--code); border-radius: 5px; padding: .1rem .8rem; overflow-x: auto;} .output, .output_wrapper {overflow-x: auto; font-size: .88rem;} .prompt, .input_prompt, .output_prompt {display: none;} img {max-width: 100%; height: auto;}
table {border-collapse: collapse; font-size: .86rem; display: block; overflow-x: auto; max-width: 100%;} td, th {border-bottom: 1px solid var(--line); padding: .25rem .8rem .25rem 0; text-align: left; vertical-align: top;}
.turn {display: flex; justify-content: space-between; gap: 1rem; border-top: 1px solid var(--line); margin-top: 3rem; padding-top: 1rem;} .api pre {white-space: pre-wrap;} .api h3 {border-top: 1px solid var(--line); padding-top: .8rem;} math {font-size: 1.06em;} math[display=block] {margin: .6rem 0; overflow-x: auto;} .skip {position: absolute; left: -99rem;} .skip:focus {left: 1rem;}
@media (max-width: 800px) {.page {display: block;} nav {position: static; height: auto; border-bottom: 1px solid var(--line);}}
"""

JS = """
const box = document.querySelector('input[type=search]'), list = document.getElementById('found');
box.addEventListener('input', () => {
  const words = box.value.toLowerCase().split(/\\s+/).filter(Boolean);
  list.replaceChildren();
  if (!words.length || box.value.trim().length < 2) return;
  const score = e => words.every(w => (e.t + ' ' + e.x).toLowerCase().includes(w)) ? words.reduce((s, w) => s + (e.t.toLowerCase().includes(w) ? 10 : 0) + Math.min(5, e.x.toLowerCase().split(w).length - 1), 0) : 0;
  const hits = INDEX.map(e => [score(e), e]).filter(h => h[0]).sort((a, b) => b[0] - a[0]).slice(0, 15);
  for (const [, e] of hits) {
    const found = Math.max(0, e.x.toLowerCase().indexOf(words[0]) - 40), at = found ? e.x.indexOf(' ', found) + 1 : 0, item = document.createElement('li'), link = document.createElement('a'), text = document.createElement('small');
    link.href = BASE + e.u; link.textContent = e.t; text.textContent = e.x.slice(at, at + 130); item.append(link, text); list.append(item);
  }
  if (!hits.length) list.innerHTML = '<li>nothing found</li>';
});
if (innerWidth <= 800) document.querySelectorAll('nav details').forEach(d => d.open = false);
"""


def formulas(text):
    "TeX between dollars, outside of code, becomes MathML, which browsers draw by themselves."
    def one(m):
        display = m[1] is not None
        return mathml(html.unescape(m[1] or m[2]), display="block" if display else "inline")
    parts = re.split(r"(<pre.*?</pre>|<code.*?</code>)", text, flags=re.S)
    return "".join(p if k % 2 else re.sub(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$", one, p, flags=re.S) for k, p in enumerate(parts))


def read(path):
    "A notebook without its hidden cells and nbdev's directives: (title, notebook, module it exports or None)."
    notebook, module, kept = nbformat.read(path, 4), None, []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            if found := re.search(r"^#\|\s*default_exp\s+(\S+)", cell.source, re.M): module = found[1]; continue
            if re.search(r"^#\|\s*hide\b", cell.source, re.M): continue
            cell["made_by"] = cell.source
            if re.search(r"^#\|\s*hide_input\b", cell.source, re.M): cell.source = ""
            cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M).strip()
            cell.outputs = [o for o in cell.get("outputs", []) if o.get("name") != "stderr" and "application/vnd.jupyter.widget-view+json" not in o.get("data", {})]      # (a progress bar is no result)
            if not cell.source and not cell.outputs: continue
        kept.append(cell)      # (an empty source leaves its outputs)
    notebook.cells = kept
    title = next((re.search(r"^#\s+(.+)", c.source, re.M)[1] for c in kept if c.cell_type == "markdown" and re.search(r"^#\s+", c.source, re.M)), path.stem)
    return title, notebook, module


def sections(notebook, title, url):
    "What search finds in a notebook: one entry a heading."
    entries, name, anchor, text = [], title, "", []
    def close():
        if text: entries.append({"t": f"{title}: {name}" if name != title else title, "u": url + anchor, "x": re.sub(r"\s+", " ", " ".join(text))[:1500]})
    for cell in notebook.cells:
        if cell.cell_type != "markdown": text.append(" ".join(re.findall(r"(?:def|class) (\w+)", cell.source))); continue
        for line in cell.source.splitlines():
            if found := re.match(r"#{1,4}\s+(.+)", line):
                close(); name, text = found[1], []
                anchor = "#" + urllib.parse.quote(name.replace(" ", "-"), safe="?/:!$&'()*+,;=@")
            else: text.append(re.sub(r"[*`>#]|\]\([^)]*\)|\[", "", line))
    close()
    return entries


def picture_of(name, notebook):
    "The first picture in a notebook that a call of `name` made, as HTML; empty when there is none."
    for cell in notebook.cells:
        if cell.cell_type != "code" or f"def {name}(" in cell["made_by"] or not re.search(rf"\b{name}\(", cell["made_by"]): continue
        for o in cell.get("outputs", []):
            if data := o.get("data", {}).get("image/png"): return f'<p><img loading="lazy" alt="what {name} draws" src="data:image/png;base64,{"".join(data.split())}"></p>'
    return ""


def draws(thing): return inspect.isfunction(thing) and getattr(inspect.signature(thing).return_annotation, "__name__", inspect.signature(thing).return_annotation) == "Figure"


def described(name, thing, notebook):
    "A function or class as HTML: signature, docstring, picture, parameters with their comments, methods."
    try: signature = str(inspect.signature(thing))
    except (TypeError, ValueError): signature = ""
    signature = re.sub(r" at 0x[0-9a-f]+|<function (\w+)[^>]*>", r"\1", re.sub(r"digit69\.[\w.]+\.|numpy\.|matplotlib\.figure\.|pathlib\._local\.|pathlib\.", "", signature)).replace("<factory>", "...")
    kind = "class" if inspect.isclass(thing) else "def"
    out = [f'<h3 id="{name}">{html.escape(name)}</h3><pre>{kind} {html.escape(name + signature)}</pre>', markdown2html_mistune(inspect.cleandoc(thing.__doc__ or "")), picture_of(name, notebook) if draws(thing) else ""]
    try: comments = {k: v for k, v in docments(thing).items() if v}
    except Exception: comments = {}
    if comments: out.append("<table>" + "".join(f"<tr><td><code>{html.escape('returns' if k == 'return' else k)}</code></td><td>{html.escape(v)}</td></tr>" for k, v in comments.items()) + "</table>")
    methods = [(k, inspect.unwrap(getattr(m, "__func__", m))) for k, m in vars(thing).items() if not k.startswith("_") and callable(getattr(m, "__func__", m)) and getattr(getattr(m, "__func__", m), "__doc__", None)] if kind == "class" else []
    if methods: out.append("<table>" + "".join(f"<tr><td><code>.{html.escape(k)}</code></td><td>{html.escape(inspect.cleandoc(m.__doc__))}</td></tr>" for k, m in methods if not inspect.isclass(m)) + "</table>")
    return "".join(out)


def api(module, url, notebook):
    "A module's public names as HTML, its search entries, and the functions that draw a figure but are shown without one."
    m = importlib.import_module(f"digit69.{module}")
    things = [(n, getattr(m, n)) for n in getattr(m, "__all__", []) if callable(getattr(m, n)) and getattr(getattr(m, n), "__module__", "") == m.__name__]
    values = [(n, getattr(m, n)) for n in m.__all__ if not callable(getattr(m, n)) and n.isupper()]
    constants = "<h2>Constants</h2><table>" + "".join(f"<tr><td><code>{n}</code></td><td><code>{html.escape(repr(v)[:300])}</code></td></tr>" for n, v in values) + "</table>" if values else ""
    body = f'<div class="api"><h1>digit69.{module}</h1>{markdown2html_mistune(inspect.cleandoc(m.__doc__ or ""))}' + "".join(described(n, t, notebook) for n, t in things) + constants + "</div>"
    bare = [f"digit69.{module}.{n} draws a figure, and its notebook shows none" for n, t in things if draws(t) and not picture_of(n, notebook)]
    return body, [{"t": f"{module}.{n}", "u": f"{url}#{n}", "x": re.sub(r"\s+", " ", inspect.cleandoc(t.__doc__ or ""))[:600]} for n, t in things], bare


def navigation(books, modules, here, base):
    link = lambda url, title: f'<li><a href="{base}{url}"{" aria-current=page" if url == here else ""}>{html.escape(title)}</a></li>'
    chapters, floor = "", None
    for url, title, number in books:
        if number != floor: chapters += ("</ul>" if floor is not None else "") + (f'<p class="floor">{FLOORS.get(number, "")}</p>' if FLOORS.get(number) else "") + "<ul>"; floor = number
        chapters += link(url, title)
    reference = "".join(link(f"api/{m}.html", m) for m in modules)
    return (f'<nav aria-label="Contents"><a class="brand" href="{base}index.html">digit69</a><input type="search" placeholder="search" aria-label="Search the book"><ul id="found" role="status"></ul>'
            f"<details open><summary>The book</summary>{chapters}</ul></details><details{' open' if here.startswith('api/') else ''}><summary>Reference</summary><ul>{reference}</ul></details></nav>")


def page(title, body, nav, base):
    return (f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{html.escape(title)}</title><link rel="icon" href="data:,">'
            f'<link rel="stylesheet" href="{base}style.css"></head><body><a class="skip" href="#main">to the text</a><div class="page">{nav}<main id="main">{body}</main></div>'
            f'<script>const BASE = "{base}"</script><script src="{base}search-index.js"></script><script src="{base}search.js"></script></body></html>\n')


def check(out):
    "Links that lead nowhere, and things a page would fetch from elsewhere."
    wrong, ids = [], {}
    pages = {p.relative_to(out).as_posix(): p.read_text(encoding="utf-8") for p in out.rglob("*.html")}
    for name, text in pages.items(): ids[name] = set(re.findall(r'\bid="([^"]+)"', text))
    for name, text in pages.items():
        wrong += [f"{name} fetches {u}" for u in re.findall(r'<(?:script|img|link|iframe)[^>]+(?:src|href)="((?:https?:)?//[^"]+)"', text)]
        for url in re.findall(r'<a [^>]*href="([^"]+)"', text):
            if re.match(r"[a-z]+:", url): continue
            path, _, anchor = html.unescape(urllib.parse.unquote(url)).partition("#")
            target = (Path(name).parent / path).as_posix() if path else name
            target = Path(*[p for p in Path(target).parts]).as_posix()
            full = (out / target).resolve()
            if not full.exists(): wrong.append(f"{name}: no such page {url}"); continue
            key = full.relative_to(out.resolve()).as_posix()
            if anchor and key in ids and anchor not in {html.unescape(i) for i in ids[key]}: wrong.append(f"{name}: no such place {url}")
    return sorted(set(wrong))


def main(out):
    shutil.rmtree(out, ignore_errors=True); (out / "api").mkdir(parents=True)
    found = sorted((ROOT / "nbs").glob("*.ipynb"), key=lambda p: (p.stem != "index", p.stem))
    read_books = [(p, *read(p)) for p in found]
    books = [(f"{p.stem}.html", title, p.stem[0]) for p, title, _, _ in read_books]
    modules = {m: notebook for _, _, notebook, m in read_books if m}
    exporter, index, wrong = HTMLExporter(template_name="basic"), [], []
    for k, (path, title, notebook, module) in enumerate(read_books):
        url = books[k][0]
        body = formulas(re.sub(r'<div class="[^"]*highlight[^"]*">\s*<pre>(<span></span>)?\s*</pre>\s*</div>', "", exporter.from_notebook_node(notebook)[0]))     # (a hidden input leaves no empty box)
        body = body.replace('alt="No description has been provided for this image"', 'alt="what the code above draws"')
        more = f'<p><a href="api/{module}.html">Reference of digit69.{module}</a></p>' if module else ""
        turn = '<div class="turn">' + (f'<a rel="prev" href="{books[k - 1][0]}">← {html.escape(books[k - 1][1])}</a>' if k else "<span></span>") + (f'<a rel="next" href="{books[k + 1][0]}">{html.escape(books[k + 1][1])} →</a>' if k + 1 < len(books) else "") + "</div>"
        (out / url).write_text(page(f"{title} - digit69", body + more + turn, navigation(books, modules, url, ""), ""), encoding="utf-8")
        index += sections(notebook, title, url)
    for module, notebook in modules.items():
        url = f"api/{module}.html"
        body, entries, bare = api(module, url, notebook)
        wrong += bare if module == "plots" else []        # of the others, two are shown by way of a dictionary
        (out / url).write_text(page(f"digit69.{module}", body, navigation(books, modules, url, "../"), "../"), encoding="utf-8")
        index += entries
    light, dark = (HtmlFormatter(style=s).get_style_defs(".highlight") for s in ("friendly", "github-dark"))
    (out / "style.css").write_text(light + "\n@media (prefers-color-scheme: dark) {" + dark + "}\n" + CSS, encoding="utf-8")
    (out / "search-index.js").write_text("const INDEX = " + json.dumps(index, ensure_ascii=False) + ";\n", encoding="utf-8")
    (out / "search.js").write_text(JS, encoding="utf-8")
    if (ROOT / "nbs" / "images").is_dir(): shutil.copytree(ROOT / "nbs" / "images", out / "images")
    wrong += check(out)
    print(*wrong, sep="\n", file=sys.stderr)
    print(f"{len(books)} notebooks, {len(modules)} modules, {len(index)} search entries: {out / 'index.html'}")
    return bool(wrong)


if __name__ == "__main__": sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "_docs"))
