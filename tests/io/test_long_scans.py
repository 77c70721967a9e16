"""Scans of webs and wires are longer than JPEG has room for."""

from __future__ import annotations

import numpy as np
from PIL import Image

from metaformer.inference.batch import score_images
from metaformer.io.encoding import JPEG_SIDE, encode_photo
from metaformer.io.images import read_image
from tests.helpers import boards


def test_a_long_scan_is_scored_with_map_and_report(tmp_path):
    scan = np.tile(boards.good(0)[:16], (1, 800, 1))
    path = boards.write_png(tmp_path / "in" / "scan.png", scan)
    result = score_images(boards.detector(), [path], tmp_path / "out")
    assert result.scored == 1 and not result.failures
    with Image.open(tmp_path / "out" / "maps" / "scan.png.png") as heat:
        assert heat.size == (scan.shape[1], scan.shape[0])
    assert (tmp_path / "out" / "report.html").exists()


def test_a_photo_longer_than_jpeg_has_room_for_is_made_smaller():
    photo = np.full((20, JPEG_SIDE + 5000, 3), 90, np.uint8)
    decoded = read_image(encode_photo(photo, 90))
    assert decoded.shape == (18, JPEG_SIDE, 3) and abs(int(decoded.mean()) - 90) <= 2
