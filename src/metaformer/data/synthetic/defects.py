"""Synthetic defects: an image in, the image with 1 to 3 defects and their mask out.

A defect is a shape (``defect_shapes``: where), a filling (``defect_fillings``: with what) and an
opacity. The mask tells where pixels truly changed, not where the shape was meant to be: a paste
that equals what it covers is no defect and is drawn again.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from metaformer.data.synthetic import defect_fillings as fillings
from metaformer.data.synthetic import defect_shapes as shapes
from metaformer.data.synthetic.defect_fillings import Filling, Scene
from metaformer.data.synthetic.defect_shapes import Outline, Shape

KINDS: dict[str, tuple[Filling, tuple[Outline, ...]]] = {
    "cut_paste": (fillings.paste, (shapes.rectangle, shapes.scar, shapes.blob)),
    "foreign_texture": (fillings.foreign, (shapes.cloud, shapes.blob)),
    "scratch": (fillings.line_colour, (shapes.scratch,)),
    "crack": (fillings.line_colour, (shapes.crack,)),
    "stain": (fillings.stain, (shapes.blob, shapes.spots, shapes.cloud)),
    "blur": (fillings.blur, (shapes.blob, shapes.rectangle, shapes.cloud)),
    "tone": (fillings.tone, (shapes.blob, shapes.rectangle, shapes.cloud)),
    "warp": (fillings.warp, (shapes.blob, shapes.glow)),
    "missing": (fillings.missing, (shapes.blob, shapes.rectangle, shapes.scar)),
    "noise": (fillings.noise, (shapes.blob, shapes.rectangle, shapes.cloud)),
    "stripe": (fillings.slipped, (shapes.stripe,)),
    "illumination": (fillings.light, (shapes.glow,)),
}
"""What each kind is filled with, and the shapes it comes in. Cut-paste after CutPaste (Li et al.
2021), foreign texture after DRAEM (Zavrtanik et al. 2021); the others are ours."""

VISIBLE = 4
"""A pixel belongs to the mask when a channel changed by more than this many grey levels of 255.
Changes up to it are undone, so that nothing outside the mask differs at all; the step this leaves
is below camera noise."""
NOTICEABLE = 10
"""A defect is kept when its changed pixels changed by this many grey levels on average..."""
NOTICEABLE_IN_PATTERN = 0.15
"""...plus this share of the standard deviation of what was there: a rough pattern hides more."""
MIN_PIXELS = 4
"""A defect is kept when at least this many pixels changed visibly."""
_ATTEMPTS = 6
"""Draws for one defect before the deterministic patch takes its place."""


@dataclass(frozen=True)
class DefectConfig:
    """Which defects are drawn. All ranges are ours."""

    kinds: tuple[str, ...] = tuple(KINDS)
    """Of ``KINDS``, drawn with equal chance; name one twice to have it twice as often."""
    count: tuple[int, int] = (1, 3)
    """Defects in an image, least and most; fewer are likelier."""
    area: tuple[float, float] = (0.0005, 0.15)
    """Area of a defect as a share of the image, log-uniform. Lines and bands stay below."""
    opacity: tuple[float, float] = (0.25, 1.0)
    """Weight of the filling in the blend, uniform."""
    on_foreground: float = 0.85
    """Chance that a defect is centred on the foreground, where one is given."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.kinds) - set(KINDS))
        if unknown or not self.kinds:
            raise ValueError(
                f"kinds: found {unknown or 'none'}; accepted are one or more of {list(KINDS)}."
            )
        _check_range("count", self.count, 1, 100)
        _check_range("area", self.area, 1e-6, 0.5)
        _check_range("opacity", self.opacity, 0.01, 1.0)
        _check_range("on_foreground", (0.0, self.on_foreground), 0.0, 1.0)


def draw_defect(
    image: NDArray[np.uint8],
    rng: Generator,
    *,
    donor: NDArray[np.uint8] | None = None,
    foreground: NDArray[np.bool_] | None = None,
    config: DefectConfig | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Draw defects on a copy of ``image``.

    An image without colour (R = G = B everywhere) stays without colour.

    Args:
        image: uint8 (H, W, 3) RGB.
        rng: the only source of chance; its state moves on.
        donor: uint8 (H', W', 3) RGB photo to take foreign matter from; without one the image's own
            matter is recoloured.
        foreground: bool (H, W), where the object is; most defects are centred there.

    Returns:
        The new image, and its mask, bool (H, W): where a channel differs by more than ``VISIBLE``,
        closed over gaps of two pixels at 256. The mask is never empty. Outside the mask the image
        is bit-identical to the input.

    Raises:
        ValueError: a shape or dtype is not as above.
    """
    config = config or DefectConfig()
    _check_inputs(image, donor, foreground)
    least, most = config.count
    weights = 0.5 ** np.arange(most - least + 1)
    count = least + int(rng.choice(len(weights), p=weights / weights.sum()))
    grey = _is_grey(image)
    inside = None if foreground is None else np.flatnonzero(foreground)

    drawn = image.copy()
    touched = np.zeros(image.shape[:2], np.uint8)
    for _ in range(count):
        _draw_one(drawn, touched, rng, Scene(drawn, donor), inside, grey, config)
    settled, mask = _settle(image, drawn, touched)
    if np.count_nonzero(mask) < MIN_PIXELS:  # all failed, or one undid another
        drawn = image.copy()
        _mark(drawn, touched, inside)
        settled, mask = _settle(image, drawn, touched)
    return settled, mask


def _draw_one(
    drawn: NDArray[np.uint8],
    touched: NDArray[np.uint8],
    rng: Generator,
    scene: Scene,
    inside: NDArray[np.int64] | None,
    grey: bool,
    config: DefectConfig,
) -> None:
    """Add one noticeable defect to ``drawn`` in place; add nothing when every attempt fails."""
    height, width = drawn.shape[:2]
    low, high = np.log(config.area)
    for _ in range(_ATTEMPTS):
        filling, outlines = KINDS[config.kinds[rng.integers(len(config.kinds))]]
        outline = outlines[rng.integers(len(outlines))]
        area = max(2.0 * MIN_PIXELS, np.exp(rng.uniform(low, high)) * height * width)
        centre = _centre(rng, (height, width), inside, config.on_foreground)
        shape = outline(rng, area, centre, (height, width))

        before = drawn[shape.box]  # (h, w, 3)
        filled = filling(rng, scene, shape)
        if grey:
            filled = np.broadcast_to(filled.mean(2, keepdims=True), before.shape)
        weight = _weight(rng, filling, shape, config)
        old = before.astype(np.float32)
        new = old + weight[..., None] * (filled - old)
        after = np.clip(new + 0.5, 0, 255).astype(np.uint8)

        change = _change(after, before)
        seen = change > VISIBLE
        pixels = np.count_nonzero(seen)
        deviation = float(cv2.meanStdDev(before)[1].max())
        least = NOTICEABLE + NOTICEABLE_IN_PATTERN * deviation
        if pixels >= MIN_PIXELS and int(change.sum(where=seen)) >= least * pixels:
            drawn[shape.box] = after
            touched[shape.box] |= (weight > 0).astype(np.uint8)
            return


def _weight(
    rng: Generator, filling: Filling, shape: Shape, config: DefectConfig
) -> NDArray[np.float32]:
    """Weight of the filling at each pixel of the box, float32 (h, w) in [0, 1]."""
    if filling is fillings.warp:
        # Moved pixels already join at the edge; blending them with the unmoved makes ghosts.
        return (shape.matte > 0.02).astype(np.float32)
    if filling is fillings.blur:
        return shape.matte  # a half-opaque blur is a weaker blur, and those are drawn anyway
    return shape.matte * np.float32(rng.uniform(*config.opacity))


def _centre(
    rng: Generator, frame: tuple[int, int], inside: NDArray[np.int64] | None, on_foreground: float
) -> tuple[float, float]:
    """(x, y) of the middle of a defect."""
    height, width = frame
    if inside is not None and len(inside) and rng.random() < on_foreground:
        y, x = divmod(int(inside[rng.integers(len(inside))]), width)
        return float(x), float(y)
    return rng.uniform(0, width), rng.uniform(0, height)


def _settle(
    image: NDArray[np.uint8], drawn: NDArray[np.uint8], touched: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Mask of the visible changes, and ``drawn`` with every other pixel set back to ``image``."""
    seen = (_change(image, drawn) > VISIBLE).astype(np.uint8)
    reach = max(1, round(2 * min(image.shape[:2]) / 256))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    closed = cv2.bitwise_and(cv2.morphologyEx(seen, cv2.MORPH_CLOSE, kernel), touched)
    mask = cv2.bitwise_or(closed, seen)
    settled = cv2.copyTo(drawn, mask, image.copy()).astype(np.uint8, copy=False)
    return settled, mask.astype(bool)


def _mark(
    drawn: NDArray[np.uint8], touched: NDArray[np.uint8], inside: NDArray[np.int64] | None
) -> None:
    """The fallback: a square, darkened where bright and brightened where dark, in place."""
    height, width = drawn.shape[:2]
    half = max(2, min(height, width) // 32)
    if inside is not None and len(inside):
        y, x = divmod(int(inside[len(inside) // 2]), width)
    else:
        y, x = height // 2, width // 2
    box = slice(max(0, y - half), y + half), slice(max(0, x - half), x + half)
    drawn[box] = np.where(drawn[box] < 128, drawn[box] + 96, drawn[box] - 96)
    touched[box] = 1


def _change(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Largest absolute difference of the channels, (h, w)."""
    red, green, blue = cv2.split(cv2.absdiff(one, other))
    largest: NDArray[np.uint8] = np.maximum(np.maximum(red, green), blue).astype(
        np.uint8, copy=False
    )
    return largest


def _is_grey(image: NDArray[np.uint8]) -> bool:
    sample = image[::16, ::16]  # settles it for nearly every colour photo
    if not (sample[..., 0] == sample[..., 1]).all():
        return False
    red, green, blue = cv2.split(image)
    return np.array_equal(red, green) and np.array_equal(green, blue)


def _check_inputs(
    image: NDArray[np.uint8], donor: NDArray[np.uint8] | None, foreground: NDArray[np.bool_] | None
) -> None:
    for name, photo in (("image", image), ("donor", donor)):
        if photo is None:
            continue
        if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3:
            raise ValueError(
                f"{name}: found {photo.dtype} of shape {photo.shape}; accepted is uint8 (H, W, 3) "
                "RGB. Read it with metaformer.io.images.read_image."
            )
        if min(photo.shape[:2]) < 8:
            raise ValueError(
                f"{name}: found {photo.shape[1]} x {photo.shape[0]} pixels (width x height); "
                "accepted is at least 8 on each side. Use a larger image."
            )
    if foreground is not None and (
        foreground.dtype != np.bool_ or foreground.shape != image.shape[:2]
    ):
        raise ValueError(
            f"foreground: found {foreground.dtype} of shape {foreground.shape}; accepted is bool "
            f"of the image's {image.shape[:2]}."
        )


def _check_range(name: str, values: tuple[float, float], least: float, most: float) -> None:
    low, high = values
    if not least <= low <= high <= most:
        raise ValueError(
            f"{name}: found {values}; accepted are two numbers, the smaller first, from {least} "
            f"to {most}."
        )
