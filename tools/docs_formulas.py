"""Formulas of the site as MathML, which browsers show without a script: an extension for Python-Markdown.

`$...$` and `$$...$$` are found by pymdownx.arithmatex. What it leaves in the tree is replaced there, before the table
of contents is made, so that every engine that renders by Python-Markdown shows the same.
"""

from __future__ import annotations

import html
import re
from typing import Any
from xml.etree import ElementTree

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.treeprocessors import Treeprocessor
from pymdownx.arithmatex import ArithmatexExtension

# After the inline patterns (20), which find the formulas, and before the table of contents (5).
PRIORITY = 8
_WRAPPED = re.compile(r"\\[(\[](.*)\\[)\]]", re.DOTALL)
# Bars that open and close: latex2mathml would let them stretch, and does not say which is which.
_BARS = {"lvert": ("prefix", "|"), "rvert": ("postfix", "|"), "lVert": ("prefix", "‖"), "rVert": ("postfix", "‖")}


class Formulas(Extension):
    """Reads formulas as arithmatex does, and writes them as MathML."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Called by Python-Markdown."""
        ArithmatexExtension(generic=True).extendMarkdown(md)
        md.treeprocessors.register(Replace(md), "formulas", PRIORITY)


class Replace(Treeprocessor):
    """Puts a `math` element into the place of every formula."""

    def run(self, root: ElementTree.Element) -> None:
        """Called once for each document."""
        for element in list(root.iter()):
            if element.get("class") == "arithmatex":
                found = _WRAPPED.fullmatch((element.text or "").strip())
                if not found:
                    raise ValueError(f"expected a formula, got {element.text!r}")
                block, latex = element.tag == "div", html.unescape(found[1]).strip()
                element.set("class", "formula")
                element.text = None
                element.append(element_of(mathml(latex, "block" if block else "inline")))


def element_of(text: str) -> ElementTree.Element:
    """MathML as an element without a namespace, as HTML has it."""
    return ElementTree.fromstring(text.replace(' xmlns="http://www.w3.org/1998/Math/MathML"', ""))


def mathml(latex: str, display: str) -> str:
    """A formula as MathML; ValueError where it cannot be read."""
    source = re.sub(r"\\mathrm\{(\w{2,})\}", r"\\operatorname{\1}", latex)
    for place, name in enumerate(_BARS):
        source = re.sub(rf"(?<!\\left)(?<!\\right)\\{name}(?![A-Za-z])", chr(0xE000 + place), source)
    try:
        made = convert(source, display=display)
    except Exception as error:  # its errors share no class
        raise ValueError(f"cannot read the formula {latex} ({type(error).__name__})") from error
    if "\\" in made:
        raise ValueError(f"unknown command in the formula {latex}")
    for place, (form, bar) in enumerate(_BARS.values()):
        made = re.sub(f"<m[io]>{chr(0xE000 + place)}</m[io]>", f'<mo form="{form}" stretchy="false">{bar}</mo>', made)
    return made


def makeExtension(**_: Any) -> Formulas:
    """Called by Python-Markdown for the name of this module."""
    return Formulas()
