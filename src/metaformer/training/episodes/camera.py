"""A camera model for good and bad parts alike: light, colour, sharpness, noise.

A rig is drawn once for an episode: how much its shots differ. A shot is drawn for each image.
Good parts photographed twice must differ, or a model learns to call every difference a defect.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray


@dataclass(frozen=True)
class Rig:
    """Variation between shots; standard deviations of relative changes unless stated otherwise."""

    gain: float
    cast: float
    """Of single channels."""
    gamma: float
    ramp: float
    """Change of light from the middle to the edge of the image."""
    noise: float
    """Grey levels."""
    blur: float
    """Pixels; the sigma every shot has, give or take a fifth."""
    exposure: float
    """The same gain for all shots."""


@dataclass(frozen=True)
class Shot:
    """One exposure. Developing two images with one shot changes both in the same way."""

    table: NDArray[np.uint8]
    """(1, 256, 3): new value of every old one, for each channel."""
    ramp: tuple[float, float]
    noise: float
    grain: tuple[int, int]
    """Where in the table of noise this shot's noise starts."""
    blur: float


def draw_rig(rng: Generator, size: int) -> Rig:
    """From a cabinet with fixed light to a hand-held camera; ``size`` is the side in pixels."""
    loose = rng.random() ** 1.5
    return Rig(
        gain=0.015 + 0.10 * loose,
        cast=0.004 + 0.03 * loose,
        gamma=0.01 + 0.08 * loose,
        ramp=0.01 + 0.09 * loose,
        noise=float(np.exp(rng.uniform(np.log(0.4), np.log(5.0)))),
        blur=rng.uniform(0.4, 1.2) * size / 256 if rng.random() < 0.4 else 0.0,
        exposure=float(np.clip(rng.normal(1.0, 0.12), 0.7, 1.3)),
    )


def draw_shot(rng: Generator, rig: Rig, *, grey: bool) -> Shot:
    """One exposure of ``rig``; of a ``grey`` camera all channels stay equal."""
    cast = np.ones(3) if grey else 1 + np.clip(rng.normal(0, rig.cast, 3), -0.12, 0.12)
    gain = rig.exposure * np.exp(np.clip(rng.normal(0, rig.gain), -0.3, 0.3)) * cast  # (3,)
    gamma = np.exp(np.clip(rng.normal(0, rig.gamma), -0.25, 0.25))
    values = np.linspace(0, 1, 256)[:, None] ** gamma * gain * 255  # (256, 3)
    ramp = np.clip(rng.normal(0, rig.ramp, 2), -0.25, 0.25)
    return Shot(
        table=np.clip(values + 0.5, 0, 255).astype(np.uint8)[None],
        ramp=(float(ramp[0]), float(ramp[1])),
        noise=rig.noise * rng.uniform(0.8, 1.25),
        grain=(int(rng.integers(_GRAIN_SLACK)), int(rng.integers(_GRAIN_SLACK))),
        blur=rig.blur * rng.uniform(0.8, 1.25),
    )


def develop(image: NDArray[np.uint8], shot: Shot, *, grey: bool) -> NDArray[np.uint8]:
    """The image as ``shot`` sees it, uint8 (S, S, 3); noise of a ``grey`` camera has no colour."""
    size = image.shape[0]
    seen = cv2.LUT(image, shot.table).astype(np.uint8, copy=False)
    if shot.blur > 0.25:
        seen = cv2.GaussianBlur(seen, (0, 0), shot.blur).astype(np.uint8, copy=False)
    across = np.linspace(-1, 1, size, dtype=np.float32)
    light = 1 + np.float32(shot.ramp[0]) * across[:, None] + np.float32(shot.ramp[1]) * across
    y, x = shot.grain
    grain = _grain(size)[y : y + size, x : x + size]  # (S, S, 3)
    if grey:
        grain = grain[..., :1]
    noisy = seen * light[..., None] + grain * np.float32(shot.noise) + np.float32(0.5)
    return np.clip(noisy, 0, 255).astype(np.uint8)


_GRAIN_SLACK = 61
"""The table of noise is larger than an image by this much, so that shots start elsewhere."""


@lru_cache(maxsize=4)
def _grain(size: int) -> NDArray[np.float32]:
    """Standard normal noise, drawn once: drawing it anew costs more than all the rest."""
    side = size + _GRAIN_SLACK
    return np.random.default_rng(0).standard_normal((side, side, 3), np.float32)
