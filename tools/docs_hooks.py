"""What the site adds to mkdocs: pages from files outside docs/, links to them, and formulas as MathML.

Files link to each other by their places in the repository, so that they read well as files too; here a link to a file
that has a page becomes one to that page.
"""

from __future__ import annotations

import ast
import html
import logging
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
OUTSIDE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
}
EXAMPLES = "examples.md"

_log = logging.getLogger("mkdocs.hooks.neuralcollapse")
_LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(#[^)\s]*)?(?=\))")
_OUTSIDE = re.compile(r'<(?:script|img|link|iframe|source|video)\b[^>]*(?:src|href)="?((?:https?:)?//[^"\s>]+)')
_FORMULA = re.compile(
    r'<span class="arithmatex">\\\((?P<inline>.*?)\\\)</span>'
    r'|<div class="arithmatex">\s*\\\[(?P<block>.*?)\\\]\s*</div>',
    re.DOTALL,
)
# Bars that open and close: latex2mathml would let them stretch, and does not say which is which.
_BARS = {"lvert": ("prefix", "|"), "rvert": ("postfix", "|"), "lVert": ("prefix", "‖"), "rVert": ("postfix", "‖")}


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages of files outside docs/."""
    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    files.append(File.generated(config, EXAMPLES, content=examples()))
    return files


def examples() -> str:
    """A page with every file of examples/: its docstring as text, the rest as code."""
    parts = ["# Examples\n\nWhole programs, to copy and change. Each has `--help`.\n"]
    for file in sorted((ROOT / "examples").glob("*.py")):
        text = file.read_text(encoding="utf-8")
        about = ast.get_docstring(ast.parse(text)) or ""
        code = re.sub(r'\A(#!.*\n)?"""(.*?)"""\n+(from __future__ import annotations\n+)?', "", text, flags=re.DOTALL)
        parts.append(f"## {file.name}\n\n{about}\n\n```python\n{code.strip()}\n```\n")
    return "\n".join(parts)


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Links between files of the repository become links between pages."""
    own = page.file.src_uri
    if own == "index.md":
        page.meta["hide"] = ["navigation"]  # it would hold but this page
    place = {name: source for source, name in OUTSIDE.items()}.get(own, f"docs/{own}")

    def moved(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(place), match[1]))
        anchor = match[2] or ""
        if target.startswith("examples/") and target.endswith(".py"):
            name, anchor = EXAMPLES, "#" + posixpath.basename(target).replace(".", "")
        elif target in OUTSIDE:
            name = OUTSIDE[target]
        elif target.startswith("docs/"):
            name = target.removeprefix("docs/")
        else:
            return match[0]
        return posixpath.relpath(name, posixpath.dirname(own) or ".") + anchor

    return _LINK.sub(moved, markdown)


def on_page_content(content: str, *, page: Any, **_: Any) -> str:
    """Formulas become MathML, which browsers show without a script."""

    def shown(match: re.Match[str]) -> str:
        block = match["block"] is not None
        latex = html.unescape(match["block"] if block else match["inline"]).strip()
        try:
            made = mathml(latex, "block" if block else "inline")
        except Exception as error:  # its errors share no class; a warning fails the build
            _log.warning("%s: cannot read the formula %s (%s)", page.file.src_uri, latex, type(error).__name__)
            return match[0]
        if "\\" in made:
            _log.warning("%s: unknown command in the formula %s", page.file.src_uri, latex)
        return f'<div class="formula">{made}</div>' if block else made

    return _FORMULA.sub(shown, content)


def mathml(latex: str, display: str) -> str:
    """A formula as MathML."""
    latex = re.sub(r"\\mathrm\{(\w{2,})\}", r"\\operatorname{\1}", latex)
    for place, name in enumerate(_BARS):
        latex = re.sub(rf"(?<!\\left)(?<!\\right)\\{name}(?![A-Za-z])", chr(0xE000 + place), latex)
    made = convert(latex, display=display)
    for place, (form, bar) in enumerate(_BARS.values()):
        made = re.sub(f"<m[io]>{chr(0xE000 + place)}</m[io]>", f'<mo form="{form}" stretchy="false">{bar}</mo>', made)
    return made


def on_post_page(output: str, *, page: Any, **_: Any) -> str:
    """Warn of whatever a browser would fetch from another host."""
    for outside in _OUTSIDE.findall(output):
        _log.warning("%s: loads %s: the site must not need other hosts", page.file.src_uri, outside)
    return output
