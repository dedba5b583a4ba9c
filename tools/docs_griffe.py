"""Docstrings as the site shows them: :math: and `.. math::` as formulas, doctests as code, own names as links."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe

_DOCUMENTED = re.compile(r"^::: (\S+)$", re.MULTILINE)
_NAME = re.compile(r"(?<![`\[])`([A-Za-z_][\w.]*)`(?!`)")
_MATH = re.compile(r":math:`(.+?)`", re.DOTALL)
_BLOCK = re.compile(r"^\.\. math::((?: .+\n?|\n?)(?:[ \t]+\S.*\n?)*)", re.MULTILINE)
_DOCTEST = re.compile(r"(?:^>>> .*\n?)(?:^.*\S.*\n?)*", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrites every docstring as it is read."""

    def __init__(self) -> None:
        super().__init__()
        text = "\n".join(page.read_text(encoding="utf-8") for page in sorted(Path("docs/api").glob("*.md")))
        # The shortest path last, so that it stands: `measures` is the function, not the module of the same name.
        longest_first = sorted(_DOCUMENTED.findall(text), key=lambda name: -name.count("."))
        self.paths = {name.rpartition(".")[2]: name for name in longest_first}

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called once for each module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = rewritten(obj.docstring.value, self.paths)


def rewritten(text: str, paths: dict[str, str]) -> str:
    """A docstring in the Markdown of the site; `paths` are the documented objects by their last name."""
    text = _MATH.sub(lambda match: f"${' '.join(match[1].split())}$", text)
    text = _BLOCK.sub(lambda match: f"$${' '.join(match[1].split())}$$\n", text)

    def link(match: re.Match[str]) -> str:
        path = paths.get(match[1].rpartition(".")[2])
        return f"[{match[0]}][{path}]" if path and path.endswith(match[1]) else match[0]

    text = _NAME.sub(link, text)
    return _DOCTEST.sub(lambda match: f"```pycon\n{match[0].rstrip()}\n```\n", text)
