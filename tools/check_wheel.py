"""What a user gets who installs the wheel alone: each public name and each command works, or says what to install.

    python tools/check_wheel.py dist/neuralcollapse-0.2.0-py3-none-any.whl

It makes an environment of its own, with the versions of constraints.txt (a minute or so, mostly for torch).
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = (
    ("--version",),
    ("measure", "features.npz", "--per-class", "--more", "--errors"),
    ("measure", "features.npz", "--scree", "scree.png"),
    ("train", "--epochs", "1", "--out", "trained"),
    ("landscape", "--classes", "3"),
    ("report", "run"),
    ("reproduce",),
    ("ood", "features.npz", "--inside", "features.npz", "--outside", "features.npz"),
)
# Prints a line for each public name: `name`, or `name: what is said`.
NAMES = """
import neuralcollapse as nc
for name in nc.__all__:
    try:
        getattr(nc, name)
        print(name)
    except ImportError as error:
        print(f"{name}: {error}")
"""
FEATURES = """
import numpy as np
random, labels = np.random.default_rng(0), np.arange(60) % 3
features = random.normal(size=(60, 8)) + 5 * np.eye(3, 8)[labels]
np.savez("features.npz", features=features, labels=labels, weight=np.eye(3, 8), bias=np.zeros(3))
"""
HINT = re.compile(r"needs more packages \(.*\): pip install ('neuralcollapse\[\w+\]'|\w+)$")


def main() -> None:
    """Check one wheel; the exit code is 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    wheel = parser.parse_args().wheel.resolve()
    faults = contents(wheel)
    with tempfile.TemporaryDirectory() as folder:
        faults += tried(wheel, Path(folder))
    print(*faults, f"{wheel.name}: {wheel.stat().st_size / 1e3:,.0f} kB, {len(faults)} faults", sep="\n")
    sys.exit(bool(faults))


def contents(wheel: Path) -> list[str]:
    """A line for each file that is not the package's own."""
    names = zipfile.ZipFile(wheel).namelist()
    own = re.compile(r"neuralcollapse/.*\.(py|pyi|typed|yaml|jinja|js|css)$|neuralcollapse-[\d.]+\.dist-info/")
    return [f"not of the package: {name}" for name in names if not own.match(name)]


def tried(wheel: Path, folder: Path) -> list[str]:
    """A line for each name or command that neither works nor says in one line what to install."""
    venv.create(folder / "venv", with_pip=True)
    python = str(folder / "venv/bin/python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-c", str(ROOT / "constraints.txt"), str(wheel)], check=True)
    subprocess.run([python, "-c", FEATURES], check=True, cwd=folder)
    shutil.copytree(ROOT / "docs/results/fashion-mnist", folder / "run")
    said = subprocess.run([python, "-c", NAMES], check=True, cwd=folder, capture_output=True, text=True).stdout
    lines = said.splitlines()
    faults = [line for line in lines if ":" in line and not HINT.search(line)]
    print(f"{len(lines)} public names, {sum(':' in line for line in lines)} of them with a hint")
    for words in COMMANDS:
        run = subprocess.run(
            [str(folder / "venv/bin/neuralcollapse"), *words], cwd=folder, capture_output=True, text=True, timeout=300
        )
        error = run.stderr.strip().splitlines()
        hint = run.returncode == 2 and len(error) == 1 and HINT.search(error[0])
        print(f"neuralcollapse {' '.join(words)}: {'a hint' if hint else f'exit code {run.returncode}'}")
        if run.returncode and not hint:
            faults.append(f"neuralcollapse {' '.join(words)}: exit code {run.returncode}, {run.stderr.strip()[-300:]}")
    return faults


if __name__ == "__main__":
    main()
