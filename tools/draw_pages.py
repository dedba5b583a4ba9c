"""Make the pictures of docs/: python tools/draw_pages.py [--only NAME ...].

The pages of a run, of a comparison, of an experiment, of a landscape and of outliers, as a browser shows them, and the
figures of the gallery as `--format png` writes them. The run is the one of `make demo`; the comparison and the
experiment are of the runs that docs/results keeps; the outliers are MNIST's digits, for a network that has seen 5,000
images of Fashion-MNIST. It takes some minutes, and needs chromium, the dev extra and the two data sets, in
$NEURALCOLLAPSE_DATA or from the Hugging Face hub.
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from neuralcollapse.cli import main as neuralcollapse

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs/results/optimizers"
GALLERY = ROOT / "docs/assets/gallery"
# Name of a picture: where it goes, width of the window, where the picture ends at most, scheme.
PAGES = {
    "run": (ROOT / "docs/page.webp", 1280, 1800, "light"),
    "phone": (GALLERY / "page-phone.webp", 390, 1100, "dark"),
    "comparison": (GALLERY / "page-comparison.webp", 1280, 1500, "light"),
    "experiment": (GALLERY / "page-experiment.webp", 1280, 1850, "light"),
    "landscape": (GALLERY / "page-landscape.webp", 1280, 1600, "light"),
    "outliers": (GALLERY / "page-outliers.webp", 1280, 1500, "light"),
}
FIGURES = {
    "run": ("variability", "simplex", "head", "cosines", "scree"),
    "comparison": ("collapse",),
    "landscape": ("energy", "gaps", "spectrum"),
}
NAMES = {"collapse": "seeds"}  # what the gallery calls a figure
SCALE = 0.8  # of a wide page, so that all pictures together stay below 600 kB
QUALITY = 50  # of WebP: letters stay sharp
WIDTH, COLORS = 740, 24  # of a figure
# The end of the last card that is whole above the limit, so that no picture ends within one.
END = """limit => Math.max(...[...document.querySelectorAll("figure, main > section, .cards, .tables > *")]
    .map(card => card.getBoundingClientRect().bottom).filter(end => end <= limit)) + 14"""


def command(*words: object) -> None:
    """Run `neuralcollapse` with these words; it ends the program where that fails."""
    print("neuralcollapse", *words)
    if neuralcollapse([str(word) for word in words]):
        raise SystemExit(1)


def pages(folder: Path, wanted: set[str]) -> dict[str, Path]:
    """The pages that are wanted, and beside them the figures of the gallery."""
    run, page, seeds = folder / "run", {name: folder / f"{name}.html" for name in PAGES}, sorted(RESULTS.glob("sgd-*"))
    page["phone"] = page["run"]
    landscape = ("landscape", "--classes", 4)

    def trained() -> None:
        if not run.exists():
            command("train", "--out", run, "--certify-head")

    def report(name: str, *runs: Path) -> None:
        command("report", *runs, "--out", page[name], "--force")

    def of_run() -> None:
        trained()
        report("run", run)
        command("report", run, "--format", "png", "--out", folder / "run-figures", "--force")

    def of_comparison() -> None:
        report("comparison", *sorted(RESULTS.glob("*-seed*")))
        command("report", *seeds, "--format", "png", "--out", folder / "comparison-figures", "--force")

    def of_landscape() -> None:
        command(*landscape, "--out", page["landscape"], "--force")
        command(*landscape, "--format", "png", "--out", folder / "landscape-figures", "--force")

    def of_outliers() -> None:
        if not (dressed := folder / "clothes").exists():
            data = ("--data", "fashion-mnist", "--samples-per-class", 500)
            command("train", *data, "--epochs", 60, "--out", dressed)
        command("ood", dressed, "--outside", "mnist", "--out", page["outliers"], "--force")

    makers: dict[str, Callable[[], None]] = {
        "run": of_run,
        "phone": of_run,
        "comparison": of_comparison,
        "experiment": lambda: report("experiment", RESULTS),
        "landscape": of_landscape,
        "outliers": of_outliers,
    }
    for make in dict.fromkeys(makers[name] for name in PAGES if name in wanted):
        make()
    return {name: page[name] for name in PAGES if name in wanted}


def draw(files: dict[str, Path]) -> None:
    """The pages as pictures."""
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        for name, file in files.items():
            target, width, limit, scheme = PAGES[name]
            scale = SCALE if width > 1000 else 1
            size = {"width": width, "height": limit}
            page = browser.new_page(viewport=size, color_scheme=scheme, device_scale_factor=scale)
            page.goto(file.as_uri())
            page.wait_for_timeout(500)
            clip = {"x": 0, "y": 0, "width": width, "height": page.evaluate(END, limit)}
            Image.open(io.BytesIO(page.screenshot(clip=clip))).save(target, quality=QUALITY, method=6)
            print(f"{target.relative_to(ROOT)}: {target.stat().st_size / 1000:.0f} kB")
            page.close()
        browser.close()


def smaller(figure: Image.Image) -> Image.Image:
    """A figure for the site, of few colours."""
    height = round(figure.height * WIDTH / max(figure.width, 900))
    width = round(figure.width * height / figure.height)
    return (
        figure.convert("RGB")
        .resize((width, height), Image.Resampling.LANCZOS)
        .quantize(COLORS, dither=Image.Dither.NONE)
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PAGES, default=list(PAGES), help="some of the pages")
    parser.add_argument("--keep", type=Path, help="a folder for the run and the pages, which is used again")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        draw(pages(folder.resolve(), set(options.only)))
        for page, names in FIGURES.items():
            for name in names:
                drawn = folder / f"{page}-figures/{name}.png"
                if drawn.exists():
                    smaller(Image.open(drawn)).save(GALLERY / f"{NAMES.get(name, name)}.png", optimize=True)


if __name__ == "__main__":
    main()
