"""A look at a page in a browser: what went wrong in it, what runs over its edge, what assistive technology misses."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

WIDTHS = {1280: 800, 390: 844}  # the heights of a laptop's window and of a phone's
SCHEMES = ("light", "dark")
ALL_IDLE = 60_000  # ms that a slow machine may take
SERIOUS = ("serious", "critical")
# Read at once by tab: what a keyboard is for. A hidden one is reached when it is shown.
CONTROLS = "a[href], button, select, input, summary, [tabindex='0']"


@contextmanager
def opened(browser, file: Path, width: int, scheme: str) -> Iterator[tuple]:
    """(page, what went wrong): errors of the console and of scripts, dialogs, whatever is asked of another host."""
    wrong: list[str] = []
    context = browser.new_context(viewport={"width": width, "height": WIDTHS[width]}, color_scheme=scheme)
    page = watched(context, wrong)
    page.goto(file.as_uri())
    try:
        yield page, wrong
    finally:
        context.close()


def watched(context, wrong: list[str]):
    """A new page that adds to `wrong` what goes wrong in it, is asked of another host, or pops up."""
    page = context.new_page()
    page.set_default_timeout(ALL_IDLE)
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: wrong.append(request.url) if not local(request.url) else None)
    return page


def local(url: str) -> bool:
    """Whether a request stays on the machine, and is not for the picture that a name with markup in it asks for."""
    return url.startswith(("file:", "data:", "blob:")) and not url.endswith("/x")


def scroll_through(page) -> None:
    """Have every figure drawn, then go back to the top."""
    for i in range(page.locator(".plot").count()):
        page.locator(".plot").nth(i).scroll_into_view_if_needed()
        page.wait_for_function("i => document.querySelectorAll('.plot')[i].querySelector('svg, canvas')", arg=i)
    page.evaluate("scrollTo(0, 0)")


def too_wide(page) -> list[str]:
    """The elements that make the page scroll sideways; nothing where it does not."""
    return page.evaluate(
        """() => {
          const room = document.documentElement.clientWidth;
          if (document.documentElement.scrollWidth <= room) return [];
          return [...document.querySelectorAll("body *")]
            .filter((x) => x.getBoundingClientRect().right > room + 1)
            .map((x) => `${x.localName}#${x.id}.${x.getAttribute("class")} ends at ${x.getBoundingClientRect().right}`)
            .slice(0, 5)
            .concat(`the page is ${document.documentElement.scrollWidth} wide of ${room}`);
        }"""
    )


def unreached(page) -> list[str]:
    """The controls that Tab alone does not reach."""
    page.evaluate(
        """(controls) => {
          document.activeElement?.blur();
          scrollTo(0, 0);
          window.seen = new Set();
          document.addEventListener("focusin", (event) => seen.add(event.target));
          window.reachable = (x) => !x.disabled && x.tabIndex >= 0 && x.checkVisibility({ visibilityProperty: true });
          window.wanted = [...document.querySelectorAll(controls)].filter(reachable);
        }""",
        CONTROLS,
    )
    # A group of radio buttons is one stop; within it the arrows move. A button that comes and goes may have gone.
    missing = """() => wanted.filter((x) => !seen.has(x) && reachable(x) && !(x.type === "radio" &&
        [...seen].some((other) => other.type === "radio" && other.name === x.name)))
        .map((x) => x.outerHTML.slice(0, 120))"""
    found = page.evaluate("wanted.length")
    for i in range(2 * found + 20):
        page.keyboard.press("Tab")
        if i >= found and i % 20 == 0 and not page.evaluate(missing):
            break
    return page.evaluate(missing)


def axe_source() -> str:
    """The script of axe-core, which comes with a package of the dev extra."""
    found = find_spec("axe_playwright_python")
    if found is None or not found.submodule_search_locations:
        pytest.skip("axe-core is not installed (axe-playwright-python)")
    return Path(found.submodule_search_locations[0], "axe.min.js").read_text(encoding="utf-8")


def violations(page) -> list[str]:
    """What axe-core calls serious or critical, a line each: the rule, and the first places."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(axe_source())
    # Formulas are many small elements without text of their own. Preloading would ask the file system, in vain.
    found = page.evaluate("axe.run({exclude: ['math']}, {resultTypes: ['violations'], preload: false})")["violations"]
    lines = []
    for violation in found:
        if violation["impact"] in SERIOUS:
            places = [f"{node['target']} {node['html'][:100]}" for node in violation["nodes"][:3]]
            lines.append(f"{violation['id']} ({len(violation['nodes'])} times): {violation['help']}: {places}")
    return lines
