"""A Sphinx extension for books written with nbdev.

It copies the notebooks to docs/nbs as readers should see them, and writes a page in docs/api for the module
that each exports. The first digit of a notebook's number is its floor; the contents of index.md are
grouped by it.
"""

import importlib
import inspect
import json
import re
import shutil
from pathlib import Path
from typing import Annotated, get_origin

from docutils import nodes
from fastcore.docments import docments
from latex2mathml.converter import convert
from sphinx.ext.autodoc import INSTANCEATTR
from sphinx.util import logging

EXPORTS = re.compile(r"^#\|\s*default_exp\s+(\S+)", re.MULTILINE)
HIDDEN = re.compile(r"^#\|\s*(hide\s*$|default_exp\b)", re.MULTILINE)
INPUT_HIDDEN = re.compile(r"^#\|\s*(hide_input|echo:\s*false)\b", re.MULTILINE)
DIRECTIVE = re.compile(r"^#\|.*\n?", re.MULTILINE)
CODE = re.compile(r"(`+[^`]+`+)")
MARKUP = re.compile(r"[*|]|(?<=\w)_(?!\w)")
NAME_AND_TYPE = re.compile(r"\s*\**\w+(, \**\w+)*( : .*)?")
WIDGET = "application/vnd.jupyter.widget-view+json"
VALUES = (bool, int, float, str, tuple, list, dict, type(None))
LONGEST_VALUE = 200
logger = logging.getLogger(__name__)

REFERENCE_PAGE = """\
digit69.{module}
{underline}

Explained, with examples, in :doc:`/nbs/{notebook}`.

.. automodule:: digit69.{module}
"""

CONTENTS = """\
:::{{toctree}}
:hidden:
:caption: {title}

{entries}
:::
"""


def exported_module(notebook):
    """The name of the module that a notebook exports; None when it exports none."""
    for cell in notebook["cells"]:
        found = EXPORTS.search("".join(cell["source"]))
        if found:
            return found[1]
    return None


def is_widget(output):
    """Whether an output is the view of a widget, which needs a kernel: a progress bar, for example."""
    return WIDGET in output.get("data", {})


def readable_cell(cell):
    """A code cell as readers see it: no directives, and tags for what MyST-NB leaves out."""
    source = "".join(cell["source"])
    code = DIRECTIVE.sub("", source).strip()
    tags = []
    if HIDDEN.search(source) or not code:
        tags.append("remove-cell")
    if INPUT_HIDDEN.search(source):
        tags.append("remove-input")
    outputs = [output for output in cell["outputs"] if not is_widget(output)]
    metadata = {"tags": tags, "mystnb": {"image": {"alt": "what the code above draws"}}}
    return cell | {"source": code, "outputs": outputs, "metadata": metadata}


def readable_notebook(notebook, module):
    """A notebook as readers see it, which ends with a link to the reference of its module."""
    cells = [
        readable_cell(cell) if cell["cell_type"] == "code" else cell for cell in notebook["cells"]
    ]
    if module:
        link = f"Reference: [digit69.{module}](../api/{module}.rst)"
        cells.append({"cell_type": "markdown", "id": "reference", "metadata": {}, "source": link})
    return notebook | {"cells": cells}


def constants(module):
    """Directives for the constants of a module, which automodule leaves out; a long value is not shown."""
    values = vars(importlib.import_module(f"digit69.{module}"))
    directives = []
    for name in filter(str.isupper, values["__all__"]):
        directives.append(constant(f"digit69.{module}.{name}", values[name]))
    return "\n".join(directives)


def constant(name, value):
    """The directive for a constant; of an array, or another object that is documented elsewhere, its name."""
    if type(value).__module__ != "builtins":
        return f".. py:data:: {name}\n"
    option = "   :no-value:\n" if len(repr(value)) > LONGEST_VALUE else ""
    return f".. autodata:: {name}\n{option}"


def reference_page(module, notebook_name):
    """The source of a module's page."""
    underline = "=" * len(f"digit69.{module}")
    page = REFERENCE_PAGE.format(module=module, underline=underline, notebook=notebook_name)
    return f"{page}\n{constants(module)}"


def contents(names, floors):
    """The tables of contents of the notebooks, one for each floor that has any; the last floor is first."""
    tables = []
    numbered = list(enumerate(floors))
    for number, title in [numbered[-1], *numbered[:-1]]:
        entries = [f"nbs/{name}" for name in names if name.startswith(str(number))]
        if entries:
            tables.append(CONTENTS.format(title=title, entries="\n".join(entries)))
    return "\n".join(tables)


def write_pages(app):
    """Fill docs/nbs and docs/api: a page for every notebook, and one for every module."""
    source = Path(app.srcdir)
    notebooks = source.parent / "nbs"
    for folder in ("nbs", "api"):
        shutil.rmtree(source / folder, ignore_errors=True)
        (source / folder).mkdir()
    shutil.copytree(notebooks / "images", source / "nbs" / "images")
    paths = sorted(notebooks.glob("[0-9]*.ipynb"))
    tables = contents([path.stem for path in paths], app.config.floors)
    (source / "nbs" / "contents.txt").write_text(tables, encoding="utf-8")
    for path in paths:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        module = exported_module(notebook)
        text = json.dumps(readable_notebook(notebook, module))
        (source / "nbs" / path.name).write_text(text, encoding="utf-8")
        if module:
            page = reference_page(module, path.stem)
            (source / "api" / f"{module}.rst").write_text(page, encoding="utf-8")


def drop_option_details(app, thing, bound_method):
    """Show an option of the command line with its type alone: its help is no part of the signature."""
    hints = getattr(thing, "__annotations__", {})
    for name, hint in hints.items():
        if get_origin(hint) is Annotated:
            hints[name] = hint.__origin__


def skip_member(app, what, name, thing, skip, options):
    """Leave out what the signature of a class says, and methods that scikit-learn adds to estimators."""
    is_field = what == "class" and (thing is INSTANCEATTR or type(thing) in VALUES)
    is_metadata_request = re.fullmatch(r"set_\w+_request", name)
    return True if is_field or is_metadata_request else None


def drop_type_docstring(app, what, name, thing, options, lines):
    """A constant has no docstring of its own: leave out what Python says of all tuples or numbers."""
    is_of_type = "\n".join(lines).strip() == inspect.getdoc(type(thing))
    if what == "data" and is_of_type:
        lines.clear()


def protected(text):
    """Plain text for reStructuredText: a star, a bar or a final underscore is no markup, except in code."""
    parts = CODE.split(text)
    for number in range(0, len(parts), 2):
        part = MARKUP.sub(r"\\\g<0>", parts[number])
        joined = number > 0 and re.match(r"\w", parts[number])
        parts[number] = "\\ " + part if joined else part
    return "".join(parts)


def protect_docstring(app, what, name, thing, options, lines):
    """Read a docstring as plain text. After the sign \\b, lines up to the next empty one stay as they are."""
    read = []
    as_it_is = False
    for line in lines:
        if line == "\b":
            as_it_is = True
            read += ["", ".. code-block:: sh", ""]
            continue
        as_it_is = as_it_is and bool(line.strip())
        if as_it_is:
            read.append("    " + line)
        elif NAME_AND_TYPE.fullmatch(line):  # of a parameter, which napoleon protects
            read.append(line)
        else:
            read.append(protected(line))
    lines[:] = read


def parameter_comments(thing):
    """The comments behind the parameters of a function or class; {} when it has none."""
    try:
        comments = docments(thing)
    except (OSError, TypeError, ValueError, SyntaxError):  # not written in Python
        return {}
    return {name: comment for name, comment in comments.items() if comment}


def add_parameter_comments(app, what, name, thing, options, lines):
    """Describe parameters by the comments behind them, where the docstring has no section for it."""
    described = any(line.startswith(":param") for line in lines)
    if described or what not in ("function", "method", "class"):
        return
    lines.append("")
    for parameter, comment in parameter_comments(inspect.unwrap(thing)).items():
        field = ":returns:" if parameter == "return" else f":param {parameter}:"
        lines.append(f"{field} {protected(comment)}")


def pages_by_name(app):
    """What a text may call a page: `31_encoding` is a notebook, `digit69.encoding` a module."""
    pages = {}
    for docname in app.env.found_docs:
        folder, _, name = docname.partition("/")
        if folder == "nbs":
            pages[name] = docname
        if folder == "api":
            pages[f"digit69.{name}"] = docname
    return pages


def link_names(app, doctree, docname):
    """Turn the name of a notebook or module in code type into a link to its page."""
    pages = pages_by_name(app)
    for literal in list(doctree.findall(nodes.literal)):
        target = pages.get(literal.astext())
        linked_already = isinstance(literal.parent, nodes.reference)
        if target is None or target == docname or linked_already:
            continue
        link = nodes.reference(
            refuri=app.builder.get_relative_uri(docname, target), internal=True
        )
        literal.replace_self(link)
        link += literal


def drop_object(app, doctree):
    """Leave out that a class is an object: every class is."""
    for paragraph in list(doctree.findall(nodes.paragraph)):
        if paragraph.astext() == "Bases: object":
            paragraph.parent.remove(paragraph)


def write_formula(writer, node):
    """TeX as MathML, which browsers draw by themselves."""
    display = "block" if isinstance(node, nodes.math_block) else "inline"
    try:
        writer.body.append(convert(node.astext(), display=display))
    except Exception as problem:  # the parser has no common class of errors
        logger.warning("the formula %s: %r", node.astext(), problem, location=node)
    raise nodes.SkipNode


def setup(app):
    """Tell Sphinx when to call what."""
    app.add_config_value("floors", [], "env", list)
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-before-process-signature", drop_option_details)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("autodoc-process-docstring", drop_type_docstring, priority=300)
    app.connect("autodoc-process-docstring", protect_docstring, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", add_parameter_comments)
    app.connect("doctree-read", drop_object)
    app.connect("doctree-resolved", link_names)
    app.add_html_math_renderer("mathml", (write_formula, None), (write_formula, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
