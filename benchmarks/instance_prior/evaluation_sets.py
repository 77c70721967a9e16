"""Photos with known mattes that P was not trained on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from metaformer.io.images import list_images, read_image
from metaformer.training.prior.effect_photos import PhotoMix, draw_composed, draw_for_effect
from metaformer.training.prior.photo_bank import load_bank

Pair = tuple[NDArray[np.uint8], NDArray[np.bool_]]
"""Photo (H, W, 3) RGB and the object's mask (H, W)."""

RELATIVE_SIZES = (0.25, 0.4, 0.6, 0.8)
"""Longest side of a pasted cutout as a share of the photo's shorter side, in turn."""

GARMENT_SIDE = 128
"""Side of the held-out garment photos, which are kept in memory at 224 pixels."""


def cutouts_on_photos(cutouts: Path, photos: Path, *, per_cutout: int = 2) -> Iterator[Pair]:
    """Each RGBA cutout pasted ``per_cutout`` times onto photos, at four sizes, anywhere.

    The cutout stays wholly inside the photo. Everything follows from seed 0.
    """
    rng = np.random.default_rng(0)
    backgrounds = list_images(photos)
    for i, path in enumerate(per_cutout * list_images(cutouts)):
        photo = read_image(backgrounds[rng.integers(len(backgrounds))])
        height, width = photo.shape[:2]
        rgba = cv2.cvtColor(_read_rgba(path), cv2.COLOR_BGRA2RGBA)
        rows, columns = np.nonzero(rgba[..., 3].max(axis=1))[0], np.nonzero(rgba[..., 3].max(0))[0]
        rgba = rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]  # the object's box
        length = RELATIVE_SIZES[i % len(RELATIVE_SIZES)] * min(height, width)
        scale = length / max(rgba.shape[:2])
        size = (max(1, round(rgba.shape[1] * scale)), max(1, round(rgba.shape[0] * scale)))
        mode = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        # Colour times alpha is what may be averaged; colour alone would bleed in the cut's edge.
        opacity = rgba[..., 3:].astype(np.float32) / 255
        colour = cv2.resize(rgba[..., :3] * opacity, size, interpolation=mode)
        alpha = cv2.resize(opacity[..., 0], size, interpolation=mode)
        y, x = (int(rng.integers(limit + 1)) for limit in (height - size[1], width - size[0]))
        window = (slice(y, y + size[1]), slice(x, x + size[0]))
        composed = photo.astype(np.float32)
        composed[window] = colour + (1 - alpha[..., None]) * composed[window]
        mask = np.zeros((height, width), bool)
        mask[window] = alpha > 0.5
        yield np.round(composed).clip(0, 255).astype(np.uint8), mask


def _read_rgba(path: Path) -> NDArray[np.uint8]:
    rgba = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if rgba is None or rgba.dtype != np.uint8 or rgba.ndim != 3 or rgba.shape[2] != 4:
        raise ValueError(f"{path}: needed an 8-bit image with an alpha channel.")
    return np.asarray(rgba, np.uint8)


def held_out_garments(photos: Path, *, seed: int) -> dict[str, list[Pair]]:
    """Keyed garments that training held out: as taken, and pasted onto held-out photos.

    Their masks come from chroma key, not from people. ``seed`` is that of the training run,
    which decides what was held out.
    """
    bank = load_bank(
        [photos / "clothing"], [photos / "grocery", photos / "texture"], seed=seed
    ).held_out
    rng = np.random.default_rng(7)
    as_taken = PhotoMix(pasted_object=0.0, pasted_shape=0.0)
    drawn = {
        "garments as taken": [
            draw_for_effect(bank, as_taken, GARMENT_SIDE, rng) for _ in range(150)
        ],
        "garments pasted": [
            draw_composed(bank, PhotoMix(), False, GARMENT_SIDE, rng) for _ in range(300)
        ],
    }
    return {
        name: [(photo, matte > 0.5) for photo, matte in pairs if (matte > 0.5).any()]
        for name, pairs in drawn.items()
    }
