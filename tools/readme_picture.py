"""Draw docs/images/report.png, the picture of the README: ``python -m tools.readme_picture``.

The demo is run, and Chromium photographs its report.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

from metaformer.inference.demo import run_demo

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "report.png"
SIZE = (1280, 1230)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run")


def chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("google-chrome")


def draw(picture: Path) -> None:
    """Raises: FileNotFoundError: there is no Chromium."""
    program = chromium()
    if program is None:
        raise FileNotFoundError("no chromium or google-chrome on the PATH: install one of them.")
    with tempfile.TemporaryDirectory() as folder:
        report = run_demo(Path(folder) / "demo").report.resolve()
        subprocess.run(
            [
                *(program, *FLAGS, f"--user-data-dir={folder}/profile"),
                *(f"--window-size={SIZE[0]},{SIZE[1]}", "--virtual-time-budget=5000"),
                *(f"--screenshot={picture.resolve()}", report.as_uri()),
            ],
            check=True,
            capture_output=True,
            timeout=120,
        )


if __name__ == "__main__":
    argparse.ArgumentParser(description="Draw the picture of the README.").parse_args()
    draw(PICTURE)
