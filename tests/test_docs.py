"""The website in _docs (make docs) can be read without a network, and its links lead somewhere."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

SITE = Path(__file__).resolve().parents[1] / "_docs"
ELSEWHERE = re.compile(r"(https?:)?//")
FETCHED_BY_CSS = re.compile(r"""(?:url\(|@import)\s*["']?(?:https?:)?//""")
NAVIGATION = {"canonical", "author", "index", "search", "next", "prev"}

pytestmark = pytest.mark.skipif(not SITE.is_dir(), reason="there is no website: make docs")


class Page(HTMLParser):
    """What a page fetches, where it links to, and the places in it that can be linked to."""

    def __init__(self, path):
        super().__init__()
        self.fetched = []
        self.links = []
        self.places = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        """Note one tag of the page."""
        given = dict(attributes)
        self.places.add(given.get("id"))
        self.fetched += [given[name] for name in ("src", "data", "poster") if given.get(name)]
        is_navigation = given.get("rel") in NAVIGATION
        if tag == "link" and not is_navigation:
            self.fetched.append(given["href"])
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])


@pytest.fixture(scope="module")
def pages():
    """All pages of the website, by their path."""
    return {path: Page(path) for path in SITE.rglob("*.html")}


def leads_nowhere(link, path, pages):
    """Whether a link from the page at `path` to another page, or to a place in it, is broken."""
    file, _, place = unquote(link).partition("#")
    target = (path.parent / file.partition("?")[0]).resolve() if file else path
    if target not in pages:
        return not target.exists()
    return bool(place) and place not in pages[target].places


def test_no_page_fetches_anything_from_the_network(pages):
    fetched = [(path.name, url) for path, page in pages.items() for url in page.fetched]
    assert [(name, url) for name, url in fetched if ELSEWHERE.match(url)] == []


def test_no_style_fetches_anything_from_the_network():
    styles = SITE.rglob("*.css")
    assert [
        path.name for path in styles if FETCHED_BY_CSS.search(path.read_text(encoding="utf-8"))
    ] == []


def test_every_link_within_the_website_leads_somewhere(pages):
    broken = []
    for path, page in pages.items():
        within = [link for link in page.links if not re.match(r"[a-z]+:|//", link)]
        broken += [(path.name, link) for link in within if leads_nowhere(link, path, pages)]
    assert broken == []
