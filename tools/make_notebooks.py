"""Make the notebooks of examples/ from the programs: python tools/make_notebooks.py.

A program is the one source of its notebook. Its docstring becomes the text; a cell that installs the library
follows, the only one to edit until the library is on PyPI; then come the imports, each function, and the statements,
with the options of the command line at their defaults. Cells hold no outputs: `tests/test_notebooks.py` runs them.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "examples" / "notebooks"
NAMES = ("plain_loop", "lightning_module", "train_from_python", "few_shots", "huggingface_images", "causal_lm")
NEEDS = {"huggingface_images": " transformers accelerate", "causal_lm": " transformers"}
INSTALL = '%pip install -q "neuralcollapse[train]"{}  # in a clone: %pip install -q -e "../..[train]"'


def notebook(source: str, needs: str = "") -> str:
    """The notebook of a program, as JSON."""
    tree = ast.parse(source)
    title, _, rest = (ast.get_docstring(tree) or "").partition("\n")
    about = "\n".join(line for line in rest.splitlines() if "python examples/" not in line).strip()
    cells = [_cell("markdown", f"# {title}\n\n{about}".strip()), _cell("code", INSTALL.format(needs))]
    cells += [_cell("code", text) for text in _parts(source, tree.body[1:])]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    made = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"


def _parts(source: str, body: list[ast.stmt]) -> list[str]:
    """Cells: imports together, each function or class alone, the statements between them together."""
    lines = source.splitlines()
    body = [node for node in body if not (isinstance(node, ast.ImportFrom) and node.module == "__future__")]
    starts: list[int] = []
    last = ""
    for node in body:
        alone = isinstance(node, ast.FunctionDef | ast.ClassDef | ast.If)
        kind = "alone" if alone else "import" if isinstance(node, ast.Import | ast.ImportFrom) else "statements"
        if kind != last or alone:
            starts.append(min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))]) - 1)
        last = kind
    ends = [*starts[1:], len(lines)]
    return [_in_a_cell("\n".join(lines[start:end]).strip()) for start, end in zip(starts, ends, strict=True)]


def _in_a_cell(text: str) -> str:
    """A part of a program as a notebook has it: no `__main__`, and no options but their defaults."""
    if text.startswith("if __name__"):
        return "main()"
    return text.replace("parser.parse_args()", "parser.parse_args([])")  # a kernel has words of its own in sys.argv


def _cell(kind: str, text: str) -> dict[str, object]:
    cell: dict[str, object] = {"cell_type": kind, "metadata": {}, "source": text.splitlines(keepends=True)}
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {})


def main() -> None:
    """Write them all."""
    FOLDER.mkdir(exist_ok=True)
    for name in NAMES:
        source = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")
        (FOLDER / f"{name}.ipynb").write_text(notebook(source, NEEDS.get(name, "")), encoding="utf-8")


if __name__ == "__main__":
    main()
