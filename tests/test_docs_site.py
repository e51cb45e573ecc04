"""The site of `make docs`: every page of docs/ is in it and can be found, all that it links to is there, nothing is
fetched from elsewhere, and what the forge shows as a list or a table is one."""

import functools
import http.server
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

import pytest
import yaml

from tests.browser import CHROMIUM, opened

ROOT = Path(__file__).parents[1]
DOCS, CONFIG = ROOT / "docs", ROOT / "docs" / "site" / "mkdocs.yml"
FETCHED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "object": "data"}


def navigation() -> list[str]:
    """The files that the navigation names, in its order. Tags are left alone: one is a function of the builder's."""

    def files(node: Any) -> Iterator[str]:
        if isinstance(node, str):
            yield node
        else:
            for inner in node.values() if isinstance(node, dict) else node:
                yield from files(inner)

    return list(files(yaml.load(CONFIG.read_text(), yaml.BaseLoader)["nav"]))


@dataclass
class Page(HTMLParser):
    """A built page: its ids, what it links to, what a browser fetches for it, and the texts of its paragraphs."""

    text: str
    ids: set[str] = field(default_factory=set)
    links: set[str] = field(default_factory=set)
    fetched: set[str] = field(default_factory=set)
    paragraphs: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._in_paragraph = False
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids.update(values[name] for name in ("id", "name") if name in values)
        if tag == "a" and "href" in values:
            self.links.add(values["href"])
        if (name := FETCHED.get(tag)) in values and values.get("rel") not in ("canonical", "next", "prev"):
            self.fetched.add(values[name])
        if tag == "p":
            self._in_paragraph = True
            self.paragraphs.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_paragraph = self._in_paragraph and tag != "p"

    def handle_data(self, data: str) -> None:
        if self._in_paragraph:
            self.paragraphs[-1] += data


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `make docs` builds it, with every warning an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", CONFIG, "--site-dir", folder]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    return {str(file.relative_to(site)): Page(file.read_text()) for file in sorted(site.rglob("*.html"))}


def test_every_page_is_in_the_navigation_once() -> None:
    missing = {page.name for page in DOCS.glob("*.md")} - set(navigation())
    assert missing == set(), f"{CONFIG.relative_to(ROOT)} has no line in `nav` for them"
    assert sorted(navigation()) == sorted(page.name for page in DOCS.glob("*.md"))


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_a_page_begins_with_what_it_is_for(page: Path) -> None:
    """A title, and then a paragraph: neither a section nor a table nor a command."""
    title, blank, *rest = page.read_text().splitlines()
    assert re.fullmatch(r"# \S.+", title)
    assert blank == ""
    first = " ".join(rest).partition("  ")[0]
    assert re.match(r"[A-Z`].{60}", first)


def test_the_site_has_every_page(pages: dict[str, Page]) -> None:
    made = {"index.html" if name == "README.md" else f"{name.removesuffix('.md')}.html" for name in navigation()}
    assert set(pages) == {*made, "404.html"}


def test_all_links_and_anchors_lead_somewhere(site: Path, pages: dict[str, Page]) -> None:
    astray = []
    for name, page in pages.items():
        for link in page.links | page.fetched:
            path, anchor = urldefrag(urljoin(f"http://site/{name}", unquote(link)))
            inside = path.removeprefix("http://site/")
            if inside == path:
                continue
            target = inside or "index.html"
            there = (site / target).is_file()
            if not there or (anchor and anchor != "__skip" and anchor not in pages[target].ids):
                astray.append((name, link))
    assert astray == []


def test_nothing_is_fetched_from_elsewhere(site: Path, pages: dict[str, Page]) -> None:
    outside = {url for page in pages.values() for url in page.fetched if re.match(r"(https?:)?//", url)}
    assert outside == set()
    styles = [file.read_text() for file in site.rglob("*.css")]
    assert styles
    asked = re.compile(r"(?:url\(|@import )[\"']?((?:https?:)?//[^)\"']+)")
    assert [url for text in styles for url in asked.findall(text)] == []


def test_lists_and_tables_are_more_than_paragraphs(pages: dict[str, Page]) -> None:
    """The forge begins a list without an empty line before it; the site's Markdown does not."""
    mark = re.compile(r"^(- |\||\d\. |```)", re.MULTILINE)
    assert [(name, text) for name, page in pages.items() for text in page.paragraphs if mark.search(text)] == []


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Requests are nobody's news."""


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """Where a server of files has the site."""
    handler = functools.partial(Quiet, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.nightly
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
def test_a_browser_asks_nobody_else_and_meets_no_error(address: str, pages: dict[str, Page], tmp_path: Path) -> None:
    for name in pages:
        page = opened(f"{address}/{name}", tmp_path / "profile")
        assert "CONSOLE" not in page.logged, (name, page.logged)
        assert page.requests == [], name
        assert "md-search__input" in page.document
