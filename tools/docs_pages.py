"""Write the site's pages into build/docs, from docs/ and from files outside it: the step before either engine builds.

    python tools/docs_pages.py

Files link to each other by their places in the repository, so that they read well as files too; in the written pages a
link to a file that has a page leads to that page.
"""

from __future__ import annotations

import ast
import posixpath
import re
import shutil
from pathlib import Path

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "build/docs"
# Pages of files outside docs/: every page that a benchmark writes is one.
OUTSIDE = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"} | {
    f"benchmarks/{file.name}": "benchmarks.md" if file.stem == "README" else f"benchmarks/{file.name}"
    for file in sorted((ROOT / "benchmarks").glob("*.md"))
}
EXAMPLES = "examples.md"
# What of docs/ is copied as it is. Records and states of the results are read in the repository.
COPIED = {".css", ".js", ".png", ".svg", ".webp"}
# Lines before a page's text. The first page is alone in its section: its list of pages would hold nothing else.
BEFORE = {"index.md": "---\nhide: [navigation]\n---\n\n"}

_LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(#[^)\s]*)?(?=\))")


def main() -> None:
    """Write all pages anew."""
    shutil.rmtree(TARGET, ignore_errors=True)
    for name, text in sorted(pages().items()):
        page = TARGET / name
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(text, encoding="utf-8")
    for file in sorted((ROOT / "docs").rglob("*")):
        if file.suffix in COPIED:
            place = TARGET / file.relative_to(ROOT / "docs")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)


def pages() -> dict[str, str]:
    """The text of every page, by its name on the site."""
    places = {file.relative_to(ROOT / "docs").as_posix(): file for file in (ROOT / "docs").rglob("*.md")}
    places |= {name: ROOT / source for source, name in OUTSIDE.items()}
    made = {
        name: BEFORE.get(name, "") + with_links(file.read_text(encoding="utf-8"), name) for name, file in places.items()
    }
    return made | {EXAMPLES: examples()}


def examples() -> str:
    """A page with every file of examples/: its docstring as text, the rest as code."""
    parts = ["# Examples\n\nWhole programs, to copy and change. Each has `--help`.\n"]
    for file in sorted((ROOT / "examples").glob("*.py")):
        text = file.read_text(encoding="utf-8")
        about = ast.get_docstring(ast.parse(text)) or ""
        code = re.sub(r'\A(#!.*\n)?"""(.*?)"""\n+(from __future__ import annotations\n+)?', "", text, flags=re.DOTALL)
        parts.append(f"## {file.name}\n\n{about}\n\n```python\n{code.strip()}\n```\n")
    return "\n".join(parts)


def with_links(text: str, name: str) -> str:
    """The text of the page `name`, its links between files made links between pages."""
    place = {page: source for source, page in OUTSIDE.items()}.get(name, f"docs/{name}")

    def moved(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(place), match[1]))
        anchor = match[2] or ""
        if target.startswith("examples/") and target.endswith(".py"):
            page, anchor = EXAMPLES, "#" + posixpath.basename(target).replace(".", "")
        elif target in OUTSIDE:
            page = OUTSIDE[target]
        elif target.startswith("docs/"):
            page = target.removeprefix("docs/")
        else:
            return match[0]
        return posixpath.relpath(page, posixpath.dirname(name) or ".") + anchor

    return _LINK.sub(moved, text)


if __name__ == "__main__":
    main()
