"""The step before the build: which pages there are, and links between files that become links between pages."""

import ast
import posixpath
import re
from pathlib import Path

import pytest

from tests.test_docs import ROOT


@pytest.mark.parametrize(
    ("page", "link", "wanted"),
    [
        ("index.md", "guides/measure.md", "guides/measure.md"),
        ("guides/measure.md", "../measures.md#nc1", "../measures.md#nc1"),
        ("guides/measure.md", "../../CHANGELOG.md", "../changelog.md"),
        ("changelog.md", "docs/guides/measure.md", "guides/measure.md"),
        ("benchmarks.md", "../docs/theory.md#the-model", "theory.md#the-model"),
        ("benchmarks.md", "growth.md", "benchmarks/growth.md"),
        ("results.md", "../benchmarks/verdicts.md", "benchmarks/verdicts.md"),
        ("benchmarks/growth.md", "../docs/theory.md#the-model", "../theory.md#the-model"),
        ("training.md", "../examples/plain_loop.py", "examples.md#plain_looppy"),
        ("index.md", "#here", "#here"),
        ("index.md", "https://example.org/a.md", "https://example.org/a.md"),
    ],
)
def test_links_lead_to_pages(page, link, wanted):
    from docs_pages import with_links

    assert with_links(f"See [this]({link}).", page) == f"See [this]({wanted})."


# Links and pictures in line, with a title or in angle brackets too; definitions of references; HTML.
LINK = re.compile(r"""\]\(\s*<?([^)\s>]+)|^ {0,3}\[[^\]]+\]:\s*<?([^\s>]+)|(?:href|src)=["']([^"']+)""", re.MULTILINE)
CODE = re.compile(r"^ *(```+).*?^ *\1|`[^`\n]+`", re.DOTALL | re.MULTILINE)


def anchors(text):
    """Those of a page's headings, as both engines name them, and of what it has of the API."""
    headings = re.findall(r"^#+ +(.+?) *$", re.sub(r"^ *(```+).*?^ *\1", "", text, flags=CODE.flags), re.MULTILINE)
    words = [re.sub(r"\]\([^)]*\)", "", heading).lower() for heading in headings]
    named = {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", each, flags=re.ASCII).strip()) for each in words}
    return named | set(re.findall(r"^::: (\S+)", text, re.MULTILINE))


def lost(written):
    """(page, link) for each link of the pages that leads to no page, no anchor and no file beside them."""
    from docs_pages import COPIED

    for name, text in written.items():
        for found in LINK.findall(CODE.sub("", text)):
            link = "".join(found)
            path, _, anchor = link.partition("#")
            target = posixpath.normpath(posixpath.join(posixpath.dirname(name), path)) if path else name
            if re.match(r"[a-z]+:", link):
                continue
            if target in written:
                if anchor and anchor not in anchors(written[target]):
                    yield name, link
            elif Path(target).suffix not in COPIED or not (ROOT / "docs" / target).is_file():
                yield name, link


def test_every_link_of_every_page_leads_to_a_page_or_to_a_file_beside_it():
    """What either engine says of a link that leads nowhere, without a build: a benchmark writes pages, too."""
    from docs_pages import pages

    assert not set(lost(pages()))


@pytest.mark.parametrize(
    "link",
    [
        *("[x](gone.md)", "[x](../src/neuralcollapse/cli.py)", "[x](/theory.md)", "[x](guides)", "![x](gone.png)"),
        *(
            '[x](gone.md "t")',
            "[x](<gone.md>)",
            "[x][y]\n\n[y]: gone.md",
            '<a href="gone.md">x</a>',
            '<img src="gone.png">',
        ),
        *("[x](theory.md#gone)", "[x](#gone)", "[`x`](gone.md)", "```\ncode\n```\n[x](gone.md)\n```\ncode\n```"),
    ],
)
def test_a_link_that_leads_nowhere_is_found(link):
    assert len(list(lost({"index.md": link, "theory.md": "# The model\n"}))) == 1


@pytest.mark.parametrize(
    "link",
    [
        *("[x](theory.md#the-model-of-1w)", "[x](#here)", "[x](theory.md#neuralcollapse.ufm)", "`[x](gone.md)`"),
        *("[x](https://example.org/gone.md)", "![x](assets/mark.svg)", "```\n[x](gone.md)\n```"),
    ],
)
def test_a_link_that_leads_somewhere_is_not(link):
    there = "# The [model](index.md) of `|1'W|`\n\n::: neuralcollapse.ufm\n"
    assert not list(lost({"index.md": f"## Here\n\n{link}", "theory.md": there}))


def test_every_page_of_the_navigation_is_written_and_no_other():
    from docs_pages import pages

    navigation = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(pages()) == sorted(navigation)


def test_the_examples_are_on_a_page_with_their_words_and_their_code():
    from docs_pages import examples

    text = examples()
    for file in (ROOT / "examples").glob("*.py"):
        source = file.read_text(encoding="utf-8")
        assert f"## {file.name}\n" in text
        assert ast.get_docstring(ast.parse(source)) in text
        assert source.strip().splitlines()[-1] in text


def test_what_is_written_is_what_a_page_needs(tmp_path, monkeypatch):
    import docs_pages

    monkeypatch.setattr(docs_pages, "TARGET", tmp_path / "docs")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/old.md").write_text("gone")
    docs_pages.main()
    written = {file.relative_to(tmp_path / "docs") for file in (tmp_path / "docs").rglob("*") if file.is_file()}
    assert {file.suffix for file in written} <= {".md", *docs_pages.COPIED}
    assert not (tmp_path / "docs/old.md").exists()
    assert (tmp_path / "docs/index.md").read_text().startswith("---\nhide: [navigation]\n---\n")


def test_docstrings_become_the_markdown_of_the_site():
    pytest.importorskip("griffe", reason="the docs extra is not installed")
    from docs_griffe import rewritten

    text = "The\n:math:`a_1\n b`.\n\n.. math:: \\frac{a}{b}\n    + c\n\nSee `measures`.\n\n>>> 1 + 1\n2\n"
    made = rewritten(text, {"measures": "neuralcollapse.measures"})
    assert "$a_1 b$" in made
    assert "$$\\frac{a}{b} + c$$" in made
    assert "[`measures`][neuralcollapse.measures]" in made
    assert "```pycon\n>>> 1 + 1\n2\n```" in made
