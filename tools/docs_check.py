"""Check a built site: every link leads somewhere, nothing is loaded from another host, no formula is left as TeX.

python tools/docs_check.py site              check one build
python tools/docs_check.py site other        and compare it with another engine's: the same pages, article by article
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What a browser fetches by itself when it opens a page.
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "link": "href"}
# Links that themes put into an article differ: to a heading itself, and to edit a page.
OF_THE_THEME = {"headerlink"}
# Elements without an end tag.
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
_TEX = re.compile(r"\\[()\[\]]|\\[A-Za-z]{2,}\b|(?<!\S)\$[\w\\(]")
_UNRESOLVED = re.compile(r"\[[^\[\]]+\]\[[^\[\]]*\]")


@dataclass
class Page:
    """What is looked at in one page."""

    title: str = ""
    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    text: list[str] = field(default_factory=list)  # of the article, code left out
    headings: list[str] = field(default_factory=list)
    article_links: set[str] = field(default_factory=set)
    counts: dict[str, int] = field(default_factory=dict)


class _Reader(HTMLParser):
    """Fills a Page from HTML."""

    def __init__(self) -> None:
        super().__init__()
        self.page = Page()
        self.open: list[str] = []
        self.article = 0  # how deep the article lies, 0 outside

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        page, classes = self.page, set(given.get("class", "").split())
        if "id" in given:
            page.ids.add(given["id"])
        if tag in LOADED and LOADED[tag] in given and given.get("rel") not in ("canonical", "next", "prev"):
            page.loads.append(given[LOADED[tag]])
        if tag == "a" and "href" in given:
            page.links.append(given["href"])
        if tag not in VOID:
            self.open.append(tag)
        if tag == "article":
            self.article = len(self.open)
        if self.article:
            if tag == "a" and "href" in given and not classes & OF_THE_THEME:
                page.article_links.add(given["href"])
            if tag in ("h1", "h2", "h3", "h4") and "id" in given:
                page.headings.append(given["id"])
            if tag in ("math", "img", "table", "pre"):
                page.counts[tag] = page.counts.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            while self.open.pop() != tag:
                pass
        if self.article > len(self.open):
            self.article = 0

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "title" and "svg" not in self.open:
            self.page.title += data
        if self.article and not {"code", "pre", "script", "style", "button", "nav", "annotation"} & set(self.open):
            self.page.text.append(data)


def read(file: Path) -> Page:
    """One page of a built site."""
    reader = _Reader()
    reader.feed(file.read_text(encoding="utf-8"))
    return reader.page


def site_of(folder: Path) -> dict[str, Page]:
    """Every page of a built site by its path, but for the error page, whose links are those of a server's root."""
    found = {file.relative_to(folder).as_posix(): read(file) for file in sorted(folder.rglob("*.html"))}
    found.pop("404.html", None)
    return found


def faults(folder: Path) -> list[str]:
    """What is wrong with a built site, one line each."""
    pages, said = site_of(folder), []
    if "index.html" not in pages:
        return [f"expected a built site with index.html, got {folder}"]
    for name, page in pages.items():
        said += [f"{name}: loads {url} from another host" for url in page.loads if _host(url)]
        said += [f"{name}: loads {url}, which is not there" for url in page.loads if not _reached(folder, name, url)]
        for url in page.links:
            problem = _broken(folder, pages, name, url)
            if problem:
                said.append(f"{name}: links to {url}, {problem}")
        text = "".join(page.text)
        said += [f"{name}: {found[0]!r} is left as TeX" for found in _TEX.finditer(text)]
        said += [f"{name}: {found[0]!r} names nothing" for found in _UNRESOLVED.finditer(text)]
    return said


def differences(one: Path, other: Path) -> list[str]:
    """What two builds of the same pages do not share, one line each."""
    left, right = site_of(one), site_of(other)
    said = [f"{name}: only in {one}" for name in sorted(left.keys() - right.keys())]
    said += [f"{name}: only in {other}" for name in sorted(right.keys() - left.keys())]
    for name in sorted(left.keys() & right.keys()):
        a, b = left[name], right[name]
        # Zensical writes "Home - " before the title of the first page where mkdocs writes the name of the site alone.
        for what in ("headings", "article_links", "counts", *(["title"] if name != "index.html" else [])):
            mine, theirs = getattr(a, what), getattr(b, what)
            if isinstance(mine, set):
                mine, theirs = sorted(mine - theirs), sorted(theirs - mine)
            if mine != theirs:
                said.append(f"{name}: {what} {mine} in {one}, {theirs} in {other}")
        words, others = _words(a), _words(b)
        if words != others:
            at = next((i for i, pair in enumerate(zip(words, others, strict=False)) if pair[0] != pair[1]), 0)
            here, there = (" ".join(side[at : at + 8]) for side in (words, others))
            said.append(f"{name}: {here!r} in {one}, {there!r} in {other}")
    return said


def _words(page: Page) -> list[str]:
    return " ".join(page.text).replace("¶", "").split()


def _host(url: str) -> str:
    return urlsplit(url).netloc


def _reached(folder: Path, name: str, url: str) -> bool:
    parts = urlsplit(url)
    if parts.scheme or parts.netloc:
        return True
    return _target(folder, name, parts.path).is_file()


def _target(folder: Path, name: str, path: str) -> Path:
    return (folder / name).parent.joinpath(unquote(path)).resolve() if path else (folder / name).resolve()


def _broken(folder: Path, pages: dict[str, Page], name: str, url: str) -> str:
    """Why a link leads nowhere, or nothing."""
    parts = urlsplit(url)
    if parts.scheme in ("http", "https", "mailto", "javascript"):
        return ""
    if parts.scheme or parts.netloc or parts.path.startswith("/"):
        return "which is not relative"
    target = _target(folder, name, parts.path)
    if not target.is_relative_to(folder.resolve()):
        return "which is outside the site"
    if not target.is_file():
        return "a folder: pages opened from disk need a file" if target.is_dir() else "which is not there"
    page = pages.get(target.relative_to(folder.resolve()).as_posix())
    if parts.fragment and page and unquote(parts.fragment) not in page.ids | {"__top"}:
        return "whose anchor is not there"
    return ""


def main(folders: list[str]) -> int:
    """Print what is wrong; 0 where nothing is."""
    paths = [Path(folder) for folder in folders]
    said = [f"{path}/{fault}" for path in paths for fault in faults(path)]
    if len(paths) == 2:
        said += differences(*paths)
    for line in said:
        print(line)
    if not said:
        same = "; both builds say the same" if len(paths) == 2 else ""
        print(f"{len(site_of(paths[0]))} pages, every link leads somewhere{same}")
    return 1 if said else 0


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("expected one folder or two, as in: python tools/docs_check.py site")
    sys.exit(main(sys.argv[1:]))
