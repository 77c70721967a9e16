"""The README is short, its table is the generator's, and its picture is the present demo's."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from benchmarks import readme_tables
from tests.helpers.doc_blocks import ROOT
from tools import readme_picture

README = (ROOT / "README.md").read_text(encoding="utf-8")
MOST_DIFFERENCE = 4.0
"""Mean difference of the pictures, of 255, at a quarter of their size: fonts may differ."""


def test_it_is_a_landing_page():
    assert len(README.split()) <= 600


def test_its_table_comes_from_the_results():
    """Run ``python -m benchmarks.readme_tables`` if it does not."""
    assert readme_tables.put(README, "results", readme_tables.headline()) == README


def test_the_table_leads_with_defects_caught():
    heads, _, *rows = readme_tables.headline().splitlines()
    assert heads.startswith("|set|caught, 1 image|")
    ours, control = readme_tables.METHODS
    found = readme_tables.few_shot()
    cell = rows[0].split("|")[2]
    name = rows[0].split("|")[1]
    values = [found[name, "1", method]["mean"]["recall_at_5"] for method in (ours, control)]
    assert cell == "/".join(f"{100 * value:.0f}" for value in values)
    assert len(rows) == len({data for data, _, _ in found}) + 1


@pytest.mark.slow
@pytest.mark.skipif(readme_picture.chromium() is None, reason="no Chromium on this machine")
def test_the_picture_is_of_the_present_demo(tmp_path):
    """Run ``python -m tools.readme_picture`` if it is not."""
    readme_picture.draw(tmp_path / "report.png")
    drawn, kept = (
        cv2.resize(cv2.imread(str(path)), (320, 308), interpolation=cv2.INTER_AREA).astype(float)
        for path in (tmp_path / "report.png", readme_picture.PICTURE)
    )
    assert np.abs(drawn - kept).mean() < MOST_DIFFERENCE
