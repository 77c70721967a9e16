"""Shapes of synthetic defects: where in the image, as a soft matte inside a box.

Every function takes (rng, area, centre, frame), the area in pixels, and returns a ``Shape`` that
lies inside the frame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Matte = NDArray[np.float32]
"""(h, w) in [0, 1]."""
Point = tuple[float, float]
"""(x, y) in pixels of the image."""
Frame = tuple[int, int]
"""(height, width) of the image."""
Points = NDArray[np.float64]
"""(n, 2) as (x, y) in pixels of the image."""

_SUBPIXEL_BITS = 4
"""OpenCV draws at sixteenths of a pixel."""


@dataclass(frozen=True)
class Shape:
    """``matte`` covers the box of the image that starts at (``top``, ``left``)."""

    top: int
    left: int
    matte: Matte

    @property
    def box(self) -> tuple[slice, slice]:
        height, width = self.matte.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


Outline = Callable[[Generator, float, Point, Frame], Shape]


def blob(rng: Generator, area: float, centre: Point, frame: Frame) -> Shape:
    """An ellipse whose radius wavers; its edge is sharp or soft."""
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)  # (48,)
    waves = np.arange(2, 6)[:, None]
    size = rng.normal(0, 0.28, (4, 1)) / waves
    radius = 1 + (size * np.cos(waves * angle + rng.uniform(0, 2 * np.pi, (4, 1)))).sum(0)
    radius = np.maximum(radius, 0.25)
    radius /= np.sqrt((radius**2).mean())
    stretch = np.exp(rng.normal(0, 0.3))
    points = np.stack([radius * np.cos(angle) * stretch, radius * np.sin(angle) / stretch], axis=1)
    reach = np.sqrt(area / np.pi)
    soft = reach * rng.uniform(0.1, 0.35) if rng.random() < 0.4 else rng.uniform(0, 0.8)
    return _filled(_turned(points * reach, rng) + centre, frame, soft)


def rectangle(rng: Generator, area: float, centre: Point, frame: Frame) -> Shape:
    """A rectangle up to three times as long as wide, upright or turned."""
    return _box(rng, area, centre, frame, longest=3.0)


def scar(rng: Generator, area: float, centre: Point, frame: Frame) -> Shape:
    """A rectangle 4 to 16 times as long as wide, turned."""
    return _box(rng, area, centre, frame, longest=16.0, shortest=4.0, upright=0.1)


def cloud(rng: Generator, area: float, centre: Point, frame: Frame) -> Shape:
    """Islands of smooth noise that thin out away from the centre."""
    reach = np.sqrt(area / np.pi) * 1.8  # about a third of the disc is left after the threshold
    top, left, height, width = _clip_box(
        (centre[0] - reach, centre[1] - reach), (centre[0] + reach, centre[1] + reach), frame
    )
    y = (np.arange(top, top + height, dtype=np.float32) - centre[1]) / reach
    x = (np.arange(left, left + width, dtype=np.float32) - centre[0]) / reach
    falloff = np.maximum(1 - (y * y)[:, None] - (x * x)[None], 0)  # (h, w)
    noise = smooth_noise(rng, (height, width), max(2.0, reach * rng.uniform(0.15, 0.6)))
    field = noise * falloff
    share = min(0.9, area / field.size)
    level = float(np.quantile(field[:: 1 + height // 64, :: 1 + width // 64], 1 - share))
    softness = rng.uniform(0.02, 0.15)
    return Shape(top, left, np.clip((field - level) / softness + 0.5, 0, 1).astype(np.float32))


def spots(rng: Generator, area: float, centre: Point, frame: Frame) -> Shape:
    """A cluster of 2 to 24 small discs."""
    count = min(int(rng.integers(2, 25)), max(2, int(area // 5)))
    share = rng.dirichlet(np.full(count, 2.0))
    radius = np.maximum(np.sqrt(share * area / np.pi), 0.8)  # (count,)
    spread = np.sqrt(area) * rng.uniform(0.6, 2.0)
    places = np.asarray(centre) + rng.normal(0, spread / 2, (count, 2))
    places = np.clip(places, 0, (frame[1] - 1, frame[0] - 1))
    margin = radius.max() + 2
    low, high = places.min(0) - margin, places.max(0) + margin
    top, left, height, width = _clip_box(low, high, frame)
    canvas = np.zeros((height, width), np.uint8)
    fixed = np.round((places - (left, top)) * 2**_SUBPIXEL_BITS).astype(int)
    for (x, y), r in zip(fixed.tolist(), radius.tolist(), strict=True):
        size = round(r * 2**_SUBPIXEL_BITS)
        cv2.circle(canvas, (x, y), size, (255,), -1, cv2.LINE_AA, _SUBPIXEL_BITS)
    return Shape(top, left, _softened(canvas, rng.uniform(0, 1.0)))


def scratch(rng: Generator, area: float, centre: Point, frame: Frame) -> Shape:
    """One to four thin lines side by side, nearly straight or curved."""
    width = _stroke_width(rng, frame)
    count = int(rng.integers(2, 5)) if rng.random() < 0.25 else 1
    length = _stroke_length(area / count, width, frame)
    heading = rng.uniform(0, 2 * np.pi)
    wobble = rng.uniform(0, 0.25)
    lines = []
    for _ in range(count):
        offset = rng.normal(0, 4 * width, 2) if count > 1 else np.zeros(2)
        line = _walk(rng, length, heading + rng.normal(0, 0.05), wobble)
        lines.append((line - line.mean(0) + centre + offset, width))
    return _drawn(rng, lines, frame)


def crack(rng: Generator, area: float, centre: Point, frame: Frame) -> Shape:
    """A jagged line with thinner branches."""
    width = _stroke_width(rng, frame)
    length = _stroke_length(area * 0.6, width, frame)
    heading = rng.uniform(0, 2 * np.pi)
    wobble = rng.uniform(0.3, 0.7)
    trunk = _walk(rng, length, heading, wobble)
    trunk += centre - trunk.mean(0)
    lines = [(trunk, width)]
    for _ in range(int(rng.integers(1, 6))):
        start = trunk[rng.integers(len(trunk))]
        turn = rng.choice([-1, 1]) * rng.uniform(0.4, 1.3)
        branch = _walk(rng, length * rng.uniform(0.15, 0.5), heading + turn, wobble)
        lines.append((branch + start, max(1, width - 1)))
    return _drawn(rng, lines, frame)


def stripe(rng: Generator, area: float, centre: Point, frame: Frame) -> Shape:
    """A band along rows or columns, across the whole image or a good part of it."""
    along_rows = rng.random() < 0.5
    side = frame[1] if along_rows else frame[0]
    length = side if rng.random() < 0.6 else side * rng.uniform(0.3, 0.9)
    # A thin band cannot be as small as a spot: one row is the least.
    thickness = max(1.0, min(area / length, 0.1 * side))
    half = (length / 2, thickness / 2) if along_rows else (thickness / 2, length / 2)
    middle = list(centre)
    if length == side:
        middle[0 if along_rows else 1] = side / 2
    top, left, height, width = _clip_box(
        (middle[0] - half[0], middle[1] - half[1]),
        (middle[0] + half[0] - 1, middle[1] + half[1] - 1),
        frame,
    )
    return Shape(top, left, np.ones((height, width), np.float32))


def glow(rng: Generator, area: float, centre: Point, frame: Frame) -> Shape:
    """A wide bump without an edge; ``area`` is where it is above a fifth of its height."""
    reach = np.sqrt(area / np.pi) / 1.5
    stretch = np.exp(rng.normal(0, 0.25))
    wide, high = reach * stretch, reach / stretch
    top, left, height, width = _clip_box(
        (centre[0] - 2.5 * wide, centre[1] - 2.5 * high),
        (centre[0] + 2.5 * wide, centre[1] + 2.5 * high),
        frame,
    )
    y = (np.arange(top, top + height, dtype=np.float32) - centre[1]) / high
    x = (np.arange(left, left + width, dtype=np.float32) - centre[0]) / wide
    matte = np.exp2(-(y * y))[:, None] * np.exp2(-(x * x))[None]
    return Shape(top, left, matte.astype(np.float32))


def smooth_noise(rng: Generator, shape: tuple[int, int], cell: float) -> Matte:
    """Two octaves of smooth random values in [0, 1], like Perlin's; ``cell`` pixels apart."""
    height, width = shape
    field = np.zeros(shape, np.float32)
    for step, weight in ((cell, 1.0), (cell / 2, 0.5)):
        knots = (int(height / step) + 2, int(width / step) + 2)
        values = rng.random(knots, dtype=np.float32) * np.float32(weight)
        field += cv2.resize(values, (width, height), interpolation=cv2.INTER_CUBIC)
    low, high = float(field.min()), float(field.max())
    field = (field - low) / max(high - low, 1e-6)
    return field


def _box(
    rng: Generator,
    area: float,
    centre: Point,
    frame: Frame,
    *,
    longest: float,
    shortest: float = 1.0,
    upright: float = 0.5,
) -> Shape:
    ratio = np.sqrt(rng.uniform(shortest, longest))
    side = np.sqrt(area)
    # No thinner than a pixel and a half, or nothing of a tiny one is left after smoothing.
    half = np.array([side * ratio, max(side / ratio, 1.5)]) / 2
    points = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half
    if rng.random() >= upright:
        points = _turned(points, rng)
    elif rng.random() < 0.5:
        points = points[:, ::-1]
    soft = rng.uniform(0.5, 2.5) if rng.random() < 0.3 else 0.0
    return _filled(points + centre, frame, soft)


def _turned(points: Points, rng: Generator) -> Points:
    angle = rng.uniform(0, 2 * np.pi)
    cosine, sine = np.cos(angle), np.sin(angle)
    return points @ np.array([[cosine, sine], [-sine, cosine]])


def _filled(points: Points, frame: Frame, soft: float) -> Shape:
    """The polygon ``points`` with an edge blurred by ``soft`` pixels."""
    margin = 2.5 * soft + 1
    top, left, height, width = _clip_box(points.min(0) - margin, points.max(0) + margin, frame)
    canvas = np.zeros((height, width), np.uint8)
    fixed = np.round((points - (left, top)) * 2**_SUBPIXEL_BITS).astype(np.int32)
    cv2.fillPoly(canvas, [fixed], (255,), cv2.LINE_AA, _SUBPIXEL_BITS)
    return Shape(top, left, _softened(canvas, soft))


def _stroke_width(rng: Generator, frame: Frame) -> int:
    """1 to 4 pixels at 256, in proportion at other sizes."""
    return max(1, round(int(rng.integers(1, 5)) * min(frame) / 256))


def _stroke_length(area: float, width: int, frame: Frame) -> float:
    return float(np.clip(area / width, 6.0, 0.9 * min(frame)))


def _walk(rng: Generator, length: float, heading: float, wobble: float) -> Points:
    """A path of ``length`` pixels whose heading drifts by ``wobble`` radians a step."""
    steps = int(np.clip(length / 4, 3, 40))
    # The drift is pulled back to the heading, or long paths would curl up.
    drift = rng.normal(0, wobble, steps)
    angle = heading + 0.5 * np.cumsum(drift) / np.sqrt(np.arange(1, steps + 1)) + 0.7 * drift
    moves = np.stack([np.cos(angle), np.sin(angle)], axis=1) * (length / steps)
    return np.concatenate([np.zeros((1, 2)), np.cumsum(moves, axis=0)])


def _drawn(rng: Generator, lines: list[tuple[Points, int]], frame: Frame) -> Shape:
    """Anti-aliased lines of given widths, fading in places."""
    everything = np.concatenate([points for points, _ in lines])
    margin = max(width for _, width in lines) + 2
    top, left, height, width = _clip_box(
        everything.min(0) - margin, everything.max(0) + margin, frame
    )
    canvas = np.zeros((height, width), np.uint8)
    for points, thickness in lines:
        fixed = np.round((points - (left, top)) * 2**_SUBPIXEL_BITS).astype(np.int32)
        cv2.polylines(canvas, [fixed], False, (255,), thickness, cv2.LINE_AA, shift=_SUBPIXEL_BITS)
    matte = _softened(canvas, 0.0)
    if rng.random() < 0.5:
        matte *= 0.3 + 0.7 * smooth_noise(rng, (height, width), max(4.0, max(height, width) / 5))
    return Shape(top, left, matte)


def _softened(canvas: NDArray[np.uint8], sigma: float) -> Matte:
    matte = canvas.astype(np.float32) * np.float32(1 / 255)
    if sigma > 0.3:
        matte = cv2.GaussianBlur(matte, (0, 0), sigma).astype(np.float32)
    return matte


def _clip_box(low: Points | Point, high: Points | Point, frame: Frame) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the pixels from ``low`` to ``high``; at least one pixel."""
    left, top = (
        int(np.clip(np.floor(low[i]), 0, side - 1)) for i, side in ((0, frame[1]), (1, frame[0]))
    )
    right, bottom = (
        int(np.clip(np.ceil(high[i]), start, side - 1))
        for i, side, start in ((0, frame[1], left), (1, frame[0], top))
    )
    return top, left, bottom - top + 1, right - left + 1
