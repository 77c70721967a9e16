"""Fillings of synthetic defects: new pixel values for the box of a shape.

Every function takes (rng, scene, shape) and returns float32 (h, w, 3) in about [0, 255] for the box
of the shape; ``defects`` blends it in by the matte. Amplitudes are in grey levels of 255 and ours:
chosen from the limit of visibility upwards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from metaformer.data.synthetic.defect_shapes import Shape, smooth_noise

Pixels = NDArray[np.float32]
"""(h, w, 3), grey levels of 255."""


@dataclass(frozen=True)
class Scene:
    """The image, uint8 (H, W, 3), and another photo as a source of foreign material."""

    image: NDArray[np.uint8]
    donor: NDArray[np.uint8] | None


Filling = Callable[[Generator, Scene, Shape], Pixels]


def paste(rng: Generator, scene: Scene, shape: Shape) -> Pixels:
    """Another place of the same image, turned, mirrored, scaled, mostly with another tone."""
    taken = _window(rng, scene.image, shape)
    return _toned(rng, taken) if rng.random() < 0.7 else taken


def foreign(rng: Generator, scene: Scene, shape: Shape) -> Pixels:
    """A piece of the donor; half the time with its mean colour moved to that of the place."""
    if scene.donor is None:
        # Swapped channels make the image's own matter foreign; a strong tone does for grey ones.
        return _toned(rng, _window(rng, scene.image, shape)[..., ::-1], strength=2.0)
    taken = _window(rng, scene.donor, shape)
    if rng.random() < 0.5:
        towards = _roi(scene, shape).mean((0, 1)) - taken.mean((0, 1))
        taken += towards * np.float32(rng.uniform(0.6, 1.0))
    return taken


def line_colour(rng: Generator, scene: Scene, shape: Shape) -> Pixels:
    """Darker or brighter than the place; sometimes with a lit flank, as a groove has."""
    roi = _roi(scene, shape)
    amount = _amplitude(rng, 15, 130)
    tint = 1 + rng.normal(0, 0.15, 3).astype(np.float32)
    if rng.random() < 0.5:  # keeps the pattern below
        changed = roi + amount * tint
    else:
        changed = np.broadcast_to(roi.mean((0, 1)) + amount * tint, roi.shape).copy()
    if rng.random() < 0.3:
        lit = np.roll(shape.matte, (1, 1), axis=(0, 1)) * (1 - shape.matte)
        changed -= (amount * np.float32(0.8)) * lit[..., None]
    return changed


def stain(rng: Generator, scene: Scene, shape: Shape) -> Pixels:
    """Tinted as by a liquid (multiplied), or covered by paint of one colour."""
    roi = _roi(scene, shape)
    if rng.random() < 0.6:
        depth = rng.uniform(0.15, 0.8)
        factor = 1 - depth * rng.uniform(0.4, 1.0, 3)
        if rng.random() < 0.3:
            factor = 2 - factor
        return roi * factor.astype(np.float32)
    colour = rng.uniform(0, 255, 3).astype(np.float32)
    return np.broadcast_to(colour, roi.shape).copy()


def blur(rng: Generator, scene: Scene, shape: Shape) -> Pixels:
    """Out of focus, or smeared along one direction."""
    roi = _roi(scene, shape)
    sigma = float(np.exp(rng.uniform(np.log(1.2), np.log(6.0)))) * min(scene.image.shape[:2]) / 256
    sigma = max(sigma, 0.8)
    if rng.random() < 0.6:
        return cv2.GaussianBlur(roi, (0, 0), sigma).astype(np.float32)
    length = 2 * round(1.5 * sigma) + 3
    kernel = np.zeros((length, length), np.float32)
    angle = rng.uniform(0, np.pi)
    reach = np.array([np.cos(angle), np.sin(angle)]) * (length // 2)
    start, end = np.round(length // 2 - reach), np.round(length // 2 + reach)
    cv2.line(kernel, start.astype(int).tolist(), end.astype(int).tolist(), (1.0,))
    return cv2.filter2D(roi, -1, kernel / kernel.sum()).astype(np.float32)


def tone(rng: Generator, scene: Scene, shape: Shape) -> Pixels:
    """Another brightness, contrast or colour."""
    roi = _roi(scene, shape)
    choice = rng.random()
    if choice < 0.4:
        return roi + _amplitude(rng, 12, 90)
    if choice < 0.65:
        mean = roi.mean((0, 1))
        factor = rng.uniform(0.1, 0.6) if rng.random() < 0.5 else rng.uniform(1.5, 2.5)
        return mean + (roi - mean) * np.float32(factor)
    if choice < 0.9:
        direction = rng.normal(0, 1, 3)
        direction /= np.abs(direction).max() + 1e-6
        return roi + (direction * np.abs(_amplitude(rng, 15, 90))).astype(np.float32)
    grey = roi.mean(2, keepdims=True)
    return np.repeat(grey, 3, axis=2)


def warp(rng: Generator, scene: Scene, shape: Shape) -> Pixels:
    """Swirled, pulled together, pushed apart or shaken; nothing moves at the edge of the shape."""
    rows, columns = shape.box
    height, width = shape.matte.shape
    y, x = np.mgrid[rows, columns].astype(np.float32)
    reach = max(height, width) / 2
    choice = rng.random()
    strength = shape.matte * shape.matte
    if choice < 0.65:
        dy, dx = y - y.mean(), x - x.mean()
        if choice < 0.35:
            turn = strength * np.float32(rng.choice([-1, 1]) * rng.uniform(0.6, 2.5))
            cosine, sine = np.cos(turn) - 1, np.sin(turn)
            shift_x, shift_y = dx * cosine - dy * sine, dx * sine + dy * cosine
        else:
            pull = strength * np.float32(rng.choice([-1, 1]) * rng.uniform(0.3, 0.7))
            shift_x, shift_y = dx * pull, dy * pull
    else:
        cell = max(3.0, reach * rng.uniform(0.2, 0.6))
        size = np.float32(2 * cell * rng.uniform(0.5, 1.0))
        shift_x = (smooth_noise(rng, (height, width), cell) - 0.5) * size * strength
        shift_y = (smooth_noise(rng, (height, width), cell) - 0.5) * size * strength
    moved = cv2.remap(
        scene.image, x + shift_x, y + shift_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    return moved.astype(np.float32)


def missing(rng: Generator, scene: Scene, shape: Shape) -> Pixels:
    """The part removed: its surroundings inpainted, or the border's colour."""
    roi = _roi(scene, shape)
    if rng.random() < 0.4:
        border = _border_colour(scene.image)
        return np.broadcast_to(border, roi.shape).copy()
    # Averages of what lies outside the shape, from far enough to reach its middle. Done small:
    # the result is smooth anyway.
    height, width = shape.matte.shape
    small = (max(1, min(width, 24)), max(1, min(height, 24)))
    outside = cv2.resize(1 - shape.matte, small, interpolation=cv2.INTER_AREA) + np.float32(1e-4)
    colour = cv2.resize(roi, small, interpolation=cv2.INTER_AREA) * outside[..., None]
    sigma = max(small) / 5
    weight = cv2.GaussianBlur(outside, (0, 0), sigma)
    grown = cv2.GaussianBlur(colour, (0, 0), sigma) / weight[..., None]
    return cv2.resize(
        grown.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR
    ).astype(np.float32)


def noise(rng: Generator, scene: Scene, shape: Shape) -> Pixels:
    """Grain, salt and pepper, or coarse picture elements."""
    roi = _roi(scene, shape)
    height, width = shape.matte.shape
    choice = rng.random()
    if choice < 0.5:
        channels = 1 if rng.random() < 0.5 else 3
        grain = rng.standard_normal((height, width, channels), np.float32)
        return roi + grain * np.abs(_amplitude(rng, 12, 80))
    if choice < 0.75:
        thrown = rng.random((height, width, 1), np.float32)
        share = np.float32(rng.uniform(0.05, 0.4))
        salted = np.where(thrown < share / 2, np.float32(5), roi)
        return np.where(thrown > 1 - share / 2, np.float32(250), salted)
    cell = rng.uniform(3, 10)
    small = (max(1, round(width / cell)), max(1, round(height / cell)))
    coarse = cv2.resize(roi, small, interpolation=cv2.INTER_AREA)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST).astype(np.float32)


def slipped(rng: Generator, scene: Scene, shape: Shape) -> Pixels:
    """A band lost, doubled, moved along itself, or of another brightness: line faults."""
    rows, columns = shape.box
    height, width = shape.matte.shape
    along_rows = width >= height
    image = scene.image if along_rows else scene.image.transpose(1, 0, 2)
    band, span = (rows, columns) if along_rows else (columns, rows)
    thickness = band.stop - band.start
    choice = rng.random()
    if choice < 0.3:  # the line before it, repeated
        source = np.full(thickness, max(band.start - 1, 0))
        taken = image[source, span]
    elif choice < 0.6:  # the band before it, doubled
        source = np.arange(band.start, band.stop) - thickness
        taken = image[np.where(source < 0, source + 2 * thickness, source) % image.shape[0], span]
    elif choice < 0.8:
        shift = int(rng.integers(2, max(3, image.shape[1] // 6)))
        taken = np.roll(image[band], shift, axis=1)[:, span]
    else:
        taken = np.clip(image[band, span] + _amplitude(rng, 12, 120), 0, 255)
    filled = taken.astype(np.float32)
    return filled if along_rows else filled.transpose(1, 0, 2)


def light(rng: Generator, scene: Scene, shape: Shape) -> Pixels:
    """A little more or less light."""
    return _roi(scene, shape) + _amplitude(rng, 20, 70)


def _roi(scene: Scene, shape: Shape) -> Pixels:
    return scene.image[shape.box].astype(np.float32)


def _amplitude(rng: Generator, low: float, high: float) -> np.float32:
    """Log-uniform in [low, high], either sign: faint ones are as frequent as strong ones."""
    return np.float32(rng.choice([-1, 1]) * np.exp(rng.uniform(np.log(low), np.log(high))))


def _window(rng: Generator, photo: NDArray[np.uint8], shape: Shape) -> Pixels:
    """A box of the size of ``shape`` from a random place of ``photo``, turned and mirrored."""
    height, width = shape.matte.shape
    angle = rng.uniform(0, 2 * np.pi) if rng.random() < 0.6 else rng.integers(4) * np.pi / 2
    scale = np.exp(rng.uniform(-0.25, 0.25))
    cosine, sine = np.cos(angle) * scale, np.sin(angle) * scale
    mirror = rng.choice([-1, 1])
    linear = np.array([[cosine * mirror, -sine], [sine * mirror, cosine]])
    target = rng.uniform(0.15, 0.85, 2) * (photo.shape[1], photo.shape[0])
    offset = target - linear @ np.array([width / 2, height / 2])
    taken = cv2.warpAffine(
        photo,
        np.concatenate([linear, offset[:, None]], axis=1),
        (width, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    return taken.astype(np.float32)


def _toned(rng: Generator, pixels: Pixels, strength: float = 1.0) -> Pixels:
    gain = np.exp(rng.normal(0, 0.2 * strength) + rng.normal(0, 0.08 * strength, 3))
    offset = rng.normal(0, 15 * strength)
    return pixels * gain.astype(np.float32) + np.float32(offset)


def _border_colour(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    edges = (image[0], image[-1], image[:, 0], image[:, -1])
    colour: NDArray[np.float32] = np.median(np.concatenate(edges), axis=0).astype(np.float32)
    return colour
