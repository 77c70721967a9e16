"""Small real images for the tests: cuts of the bundled circuit boards, good and defective."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import metaformer
from metaformer.detection.detector import Detector
from metaformer.detection.feature.preset import FeaturePreset
from metaformer.detection.metaformer import Metaformer
from metaformer.io.images import read_image

BOARDS = Path(metaformer.__file__).parent / "data" / "demo_images" / "circuit_board"

DEFECT_CENTRES = {
    "00041005": (376, 529),
    "00041025": (216, 140),
    "77000005": (516, 286),
    "77000015": (147, 443),
}
"""Board -> (x, y) where its tested image differs most from its template."""

SIDE = 96
RESOLUTION = 96
"""Working size: a cut of a board then costs a few milliseconds."""


@cache
def whole(kind: str, board: str) -> NDArray[np.uint8]:
    pixels = read_image(BOARDS / kind / f"{board}.jpg")
    pixels.flags.writeable = False
    return pixels


def cut(kind: str, board: str, seed: int, height: int, width: int) -> NDArray[np.uint8]:
    """A cut around the board's defect (or where it would be), shifted and dimmed at random."""
    rng = np.random.default_rng(seed)
    x, y = DEFECT_CENTRES[board] + rng.integers(-2, 3, 2)
    top, left = y - height // 2, x - width // 2
    pixels = whole(kind, board)[top : top + height, left : left + width] * rng.uniform(0.9, 1)
    return np.clip(pixels + rng.normal(0, 3, pixels.shape), 0, 255).astype(np.uint8)


def good(
    seed: int, board: str = "00041025", height: int = SIDE, width: int = SIDE
) -> NDArray[np.uint8]:
    """One good specimen, (height, width, 3)."""
    return cut("template", board, seed, height, width)


def defective(
    seed: int, board: str = "00041025", height: int = SIDE, width: int = SIDE
) -> NDArray[np.uint8]:
    """The same place with its real defect within a few pixels of the centre."""
    return cut("test", board, seed, height, width)


@cache
def universal() -> Metaformer:
    return Metaformer.from_pretrained(resolution=RESOLUTION)


def roomy() -> Metaformer:
    """``universal``, comparing with all patches of a few images."""
    model = universal().model
    assert isinstance(model, FeaturePreset)
    return Metaformer(model.with_config(coreset_size=2_048, cosine_rows=2_048), "feature")


@cache
def detector(count: int = 3) -> Detector:
    """Adapted to ``count`` good specimens."""
    return universal().adapt([good(seed) for seed in range(count)])


def write_png(path: Path, pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_good(folder: Path, count: int, seed: int = 0) -> Path:
    """``count`` good specimens: 000.png, 001.png..."""
    for i in range(count):
        write_png(folder / f"{i:03d}.png", good(seed + i))
    return folder


def write_mixed(folder: Path, count: int, seed: int = 100) -> Path:
    """Good specimens, every second one defective."""
    for i in range(count):
        make = defective if i % 2 else good
        write_png(folder / f"{i:03d}.png", make(seed + i))
    return folder
