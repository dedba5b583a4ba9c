"""Draw the package's rooms and what they import, floor by floor, as docs/assets/rooms.svg.

    python tools/draw_rooms.py

An arrow that a longer way implies is left out: `cli` reaches `errors` through every floor.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

import grimp

PACKAGE = "neuralcollapse"
TARGET = Path(__file__).parents[1] / "docs/assets/rooms.svg"
WIDTH, BOX, HEIGHT, FLOOR = 760, 132, 34, 82
# What a room is for, and its column: chosen by eye, so that no arrow runs behind a box.
ROOMS = {
    "cli": ("parse, call, print", 2),
    "reproduce": ("the paper's experiments", 3.2),
    "training": ("a run, from its config", 3.2),
    "checkpoints": ("weights from files", 1.6),
    "loops": ("measure while training", 2),
    "ood": ("outlier scores", 0.5),
    "capture": ("model and loader in", 0.8),
    "networks": ("built by name", 2.65),
    "report": ("figures and pages", 4.2),
    "heads": ("last layers, fixed frames", 0.8),
    "ufm": ("the theory's model", 2.2),
    "geometry": ("moments and measures", 1.5),
    "data": ("image sets by name", 3.2),
    "runs": ("folders and records", 4.2),
    "checks": ("of what users hand in", 1.5),
    "extras": ("optional packages", 3.2),
    "errors": ("what users are shown", 2.2),
}


def rooms_and_imports() -> dict[str, set[str]]:
    """Each room with the rooms that its files import."""
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    names = {child.rpartition(".")[2] for child in graph.find_children(PACKAGE)} - {"__main__"}
    return {
        name: {
            other
            for other in names - {name}
            if graph.direct_import_exists(importer=f"{PACKAGE}.{name}", imported=f"{PACKAGE}.{other}", as_packages=True)
        }
        for name in sorted(names)
    }


def floors(imports: dict[str, set[str]]) -> list[list[str]]:
    """The rooms of each floor, from the bottom: a room is one above the highest that it imports."""
    height: dict[str, int] = {}

    def above(name: str) -> int:
        if name not in height:
            height[name] = 1 + max(map(above, imports[name]), default=-1)
        return height[name]

    count = 1 + max(map(above, imports))
    return [sorted(name for name in imports if height[name] == floor) for floor in range(count)]


def direct(imports: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The arrows that no longer way implies."""

    def reached(name: str) -> set[str]:
        return imports[name].union(*map(reached, imports[name]))

    return [
        (name, other)
        for name, below in imports.items()
        for other in sorted(below)
        if not any(other in reached(between) for between in below - {other})
    ]


def svg() -> str:
    """The picture as SVG text."""
    imports = rooms_and_imports()
    rows = floors(imports)
    total = len(rows) * FLOOR
    place = {}
    for floor, row in enumerate(rows):
        for name in row:
            place[name] = (ROOMS[name][1] * WIDTH / 5, total - floor * FLOOR - FLOOR / 2)
    arrows = sum(map(len, imports.values()))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {total}" role="img" '
        'font-family="ui-sans-serif, system-ui, sans-serif">',
        f"<title>{len(imports)} rooms on {len(rows)} floors, {arrows} arrows between them, none of them upward</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#94a3b8"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{total}" fill="#ffffff"/>',
    ]
    for name, other in direct(imports):
        (x, y), (u, v) = place[name], place[other]
        start, end = y + HEIGHT / 2 + 4, v - HEIGHT / 2 - 3
        bend = (end - start) / 2
        parts.append(
            f'<path d="M{x:.0f} {start:.0f}C{x:.0f} {start + bend:.0f} {u:.0f} {end - bend:.0f} {u:.0f} {end:.0f}" '
            'fill="none" stroke="#94a3b8" stroke-width="1.2" marker-end="url(#tip)"/>'
        )
    for name, (x, y) in place.items():
        parts.append(
            f'<rect x="{x - BOX / 2:.0f}" y="{y - HEIGHT / 2 - 4:.0f}" width="{BOX}" height="{HEIGHT + 8}" rx="8" '
            'fill="#eef2ff" stroke="#6366f1"/>'
            f'<text x="{x:.0f}" y="{y - 2:.0f}" font-size="13" font-weight="600" fill="#1e1b4b" '
            f'text-anchor="middle">{name}</text>'
            f'<text x="{x:.0f}" y="{y + 13:.0f}" font-size="9.5" fill="#475569" text-anchor="middle">'
            f"{escape(ROOMS[name][0])}</text>"
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    TARGET.write_text(svg(), encoding="utf-8")
    print(TARGET.relative_to(TARGET.parents[2]))
