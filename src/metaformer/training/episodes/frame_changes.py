"""Anomalies that are changes: objects taken away or put in, frames that are blank or half lost."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator

from metaformer.data.synthetic.defect_shapes import Shape, blob, cloud, rectangle
from metaformer.training.episodes.object_sampler import outline
from metaformer.training.episodes.pose import Mask
from metaformer.training.episodes.product_samplers import Image

LEAST_CHANGE = 10
"""Mean change of a region, in grey levels, below which it is drawn again..."""
LEAST_IN_PATTERN = 0.25
"""...plus this share of the deviation of what was there."""
_ATTEMPTS = 4


def object_change(
    rng: Generator,
    image: Image,
    donor: Image,
    foreground: Mask | None,
    area: tuple[float, float],
) -> tuple[Image, Mask] | None:
    """``image`` with a region taken away or with something of ``donor`` put in, and the mask; None
    where nothing noticeable came out.

    Args:
        area: least and most of the region, as a share of the image; log-uniform.
    """
    size = image.shape[0]
    for _ in range(_ATTEMPTS):
        pixels = float(np.exp(rng.uniform(*np.log(area)))) * size * size
        inside = None if foreground is None else np.flatnonzero(foreground)
        if inside is not None and len(inside) and rng.random() < 0.8:
            y, x = divmod(int(inside[rng.integers(len(inside))]), size)
            centre = (float(x), float(y))
        else:
            centre = (float(rng.uniform(0, size)), float(rng.uniform(0, size)))
        if rng.random() < 0.45:
            changed, mask = removed(rng, image, pixels, centre)
        else:
            changed, mask = inserted(rng, image, donor, pixels, centre)
        if not mask.any():
            continue
        difference = np.abs(changed[mask].astype(np.int16) - image[mask]).max(1).mean()
        if difference >= LEAST_CHANGE + LEAST_IN_PATTERN * float(image[mask].std(0).max()):
            return changed, mask
    return None


def removed(
    rng: Generator, image: Image, pixels: float, centre: tuple[float, float]
) -> tuple[Image, Mask]:
    """Remove a region: inpaint it, or cover it with a patch from elsewhere in the image."""
    size = image.shape[0]
    shape = (blob, rectangle)[int(rng.integers(2))](rng, pixels, centre, (size, size))
    mask = np.zeros((size, size), bool)
    mask[shape.box] = shape.matte >= 0.5
    if rng.random() < 0.5:
        margin = max(4, size // 24)
        box = tuple(
            slice(max(0, side.start - margin), min(size, side.stop + margin)) for side in shape.box
        )
        part, hole = image[box], mask[box].astype(np.uint8)
        times = max(1.0, max(part.shape[:2]) / 48)  # what is filled in is smooth anyway
        small = tuple(max(8, round(side / times)) for side in part.shape[1::-1])
        little = cv2.resize(part, small, interpolation=cv2.INTER_AREA)
        wide = cv2.dilate(cv2.resize(hole, small, interpolation=cv2.INTER_NEAREST), np.ones((3, 3)))
        if wide.all():
            return image, np.zeros_like(mask)
        filled = cv2.inpaint(little, wide.astype(np.uint8), 3, cv2.INPAINT_TELEA)
        grown = cv2.resize(filled, part.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        grain = rng.normal(0, rng.uniform(0, 4), grown.shape)
        source = np.zeros_like(image)
        source[box] = np.clip(grown + grain, 0, 255).astype(np.uint8)
    else:
        shift = rng.integers(size // 6, size - size // 6, 2)
        source = np.roll(image, tuple(int(s) for s in shift), axis=(0, 1))
    return blended(image, source, shape), mask


def inserted(
    rng: Generator, image: Image, donor: Image, pixels: float, centre: tuple[float, float]
) -> tuple[Image, Mask]:
    """A piece of another photo with the outline of an object, or as a patch."""
    size = image.shape[0]
    if rng.random() < 0.6:
        side = int(np.clip(np.sqrt(pixels) * 1.6, 6, size))
        matte = cv2.resize(outline(rng, max(side, 24)), (side, side), interpolation=cv2.INTER_AREA)
        left, top = int(centre[0]) - side // 2, int(centre[1]) - side // 2
        x0, y0 = min(max(left, 0), size - side), min(max(top, 0), size - side)
        shape = Shape(y0, x0, matte.astype(np.float32))
    else:
        shape = (blob, rectangle, cloud)[int(rng.integers(3))](rng, pixels, centre, (size, size))
    height, width = shape.matte.shape
    # the donor whole, or a piece of it, brought to the size of the shape
    share = np.exp(rng.uniform(np.log(0.15), 0))
    rows, columns = (max(4, int(share * s)) for s in donor.shape[:2])
    y, x = (
        int(rng.integers(donor.shape[0] - rows + 1)),
        int(rng.integers(donor.shape[1] - columns + 1)),
    )
    piece = cv2.resize(
        donor[y : y + rows, x : x + columns], (width, height), interpolation=cv2.INTER_AREA
    )
    new = piece.astype(np.float32)
    if rng.random() < 0.3 and new.std() > 8:
        new += image[shape.box].mean((0, 1)) - new.mean((0, 1))
    source = np.zeros_like(image)
    source[shape.box] = np.clip(new, 0, 255).astype(np.uint8)
    mask = np.zeros((size, size), bool)
    mask[shape.box] = shape.matte >= 0.5
    return blended(image, source, shape), mask


def blended(image: Image, source: Image, shape: Shape) -> Image:
    """``source`` over ``image`` by the shape's matte."""
    changed = image.copy()
    old, new = image[shape.box].astype(np.float32), source[shape.box].astype(np.float32)
    mixed = old + shape.matte[..., None] * (new - old)
    changed[shape.box] = np.clip(mixed + 0.5, 0, 255).astype(np.uint8)
    return changed


def blank_frame(rng: Generator, image: Image) -> Image:
    """A frame without a product: black, white, grey, the image's mean colour, or noise."""
    choice = int(rng.integers(6))
    if choice == 5:
        return np.asarray(rng.integers(0, 256, image.shape), np.uint8)
    if choice == 4:  # strong grain on grey
        grain = rng.normal(128, rng.uniform(10, 60), (*image.shape[:2], 1))
        return np.repeat(np.clip(grain, 0, 255).astype(np.uint8), 3, axis=2)
    mean = image.mean((0, 1))
    colour = (np.zeros(3), np.full(3, 255.0), np.full(3, rng.uniform(40, 215)), mean)[choice]
    return np.broadcast_to(np.round(colour), image.shape).astype(np.uint8)


def half_lost(rng: Generator, image: Image) -> tuple[Image, Mask]:
    """A fifth to four fifths of a frame lost, from one side, as a broken transfer leaves it."""
    size = image.shape[0]
    share = rng.uniform(0.2, 0.8)
    cut = int(np.clip(round(share * size), 1, size - 1))
    lost = np.zeros((size, size), bool)
    lost[size - cut :] = True
    lost = np.rot90(lost, int(rng.integers(4))).copy()
    changed = image.copy()
    changed[lost] = blank_frame(rng, image)[lost]
    return changed, lost
