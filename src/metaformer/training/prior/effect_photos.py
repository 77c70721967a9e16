"""Photos for training the prior: natural ones (side A) and ones that show an effect (side B).

A keyed object gives an effect photo at once. Pasting keyed objects, or random shapes filled with
material, onto other photos gives both sides objects of every size and place. The mattes of side B
never reach the prior: training sees finished effect photos, and no matte of side A is used at all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from metaformer.networks.instance_prior import EFFECTS
from metaformer.training.prior.photo_bank import STORED_SIDE, Matte, Photo, PhotoBank, Side

Pixel = TypeVar("Pixel", np.uint8, np.float32)


@dataclass(frozen=True)
class PhotoMix:
    """Shares of the kinds of photos on a side; the rest are photos as taken."""

    pasted_object: float = 0.35
    """A keyed object pasted onto another photo."""
    pasted_shape: float = 0.25
    """A random shape filled with material, pasted onto another photo."""
    scene: float = 0.5
    """Of the backgrounds pasted onto, how many are photos with things of their own in them, which
    are then not the object."""
    material: float = 0.04
    """Side A only: a texture or heap that fills the photo, with no object to find."""
    effect_as_taken: float = 0.5
    """Side B only, where a folder of real effect photos is given: their share of the side."""


def draw_natural(side: Side, mix: PhotoMix, size: int, rng: Generator) -> Photo:
    """One photo of side A, uint8 (size, size, 3)."""
    kind = rng.random()
    if kind < mix.pasted_object + mix.pasted_shape:
        return draw_composed(side, mix, kind >= mix.pasted_object, size, rng)[0]
    if kind < mix.pasted_object + mix.pasted_shape + mix.material and side.backgrounds:
        return _finish(_background(side, replace(mix, scene=0.0), size, rng), rng)
    # Half on plain backdrops, as on side B: a busy background must not give side A away.
    if rng.random() < 0.5:
        photo = side.objects[rng.integers(len(side.objects))][0]
    else:
        photo = side.plain[rng.integers(len(side.plain))]
    return _finish(_warp(photo, _whole_photo(size, rng), size), rng)


def draw_for_effect(side: Side, mix: PhotoMix, size: int, rng: Generator) -> tuple[Photo, Matte]:
    """One photo of side B with the matte its effect is made with."""
    kind = rng.random()
    if kind < mix.pasted_object + mix.pasted_shape:
        return draw_composed(side, mix, kind >= mix.pasted_object, size, rng)
    photo, matte = side.objects[rng.integers(len(side.objects))]
    transform = _whole_photo(size, rng)
    return _finish(_warp(photo, transform, size), rng), _warp(matte, transform, size)


def draw_effect_batch(
    bank: PhotoBank, mix: PhotoMix, size: int, count: int, rng: Generator
) -> tuple[list[Photo], NDArray[np.float32], NDArray[np.int64]]:
    """``count`` photos of side B, their mattes (count, size, size) and effects (count,).

    A photo that shows its effect by itself has a matte of ones: there is nothing left to edit.
    """
    drawn = [draw_for_effect(bank.effect, mix, size, rng) for _ in range(count)]
    photos, mattes = [photo for photo, _ in drawn], np.stack([matte for _, matte in drawn])
    effects = rng.integers(len(EFFECTS), size=count)
    if bank.effect_as_taken:
        for i in np.nonzero(rng.random(count) < mix.effect_as_taken)[0]:
            photo, effect = bank.effect_as_taken[rng.integers(len(bank.effect_as_taken))]
            # No change of light here: it would give a black background a colour.
            photos[i] = _warp(photo, _whole_photo(size, rng), size)
            mattes[i], effects[i] = 1.0, EFFECTS.index(effect)
    return photos, mattes, effects


def draw_composed(
    side: Side, mix: PhotoMix, shape: bool, size: int, rng: Generator
) -> tuple[Photo, Matte]:
    """An object, or a shape filled with material, pasted onto a background."""
    background = _background(side, mix, size, rng)
    if shape:
        foreground, matte = _filled_shape(side, mix, size, rng)
    else:
        photo, keyed = side.objects[rng.integers(len(side.objects))]
        transform = _placement(keyed, size, rng)
        foreground, matte = (
            _warp(photo, transform, size),
            _warp(keyed, transform, size, black_outside=True),
        )
        if rng.random() < 0.35:
            foreground = _shift_hue(foreground, rng)
    gain = np.float32(rng.uniform(0.75, 1.25))  # the object's light is not the background's
    matte = matte.clip(0, 1)  # filters overshoot by a rounding error
    blend = background.astype(np.float32)
    blend += matte[..., None] * (np.minimum(foreground * gain, 255) - blend)
    return _finish(blend.astype(np.uint8), rng), matte


def _background(side: Side, mix: PhotoMix, size: int, rng: Generator) -> Photo:
    photos = side.scenes if side.scenes and rng.random() < mix.scene else side.backgrounds
    photo = photos[rng.integers(len(photos))]
    return _warp(photo, _whole_photo(size, rng, zoom=rng.uniform(1.0, 2.2)), size)


def _whole_photo(size: int, rng: Generator, zoom: float | None = None) -> NDArray[np.float64]:
    """Affine map of a stored photo onto (size, size): flip, small turn, small zoom and shift."""
    zoom = rng.uniform(0.95, 1.25) if zoom is None else zoom
    scale = zoom * size / STORED_SIDE
    slack = max(0.0, zoom - 1.0) * size / 2 + 3
    return _affine(
        centre=(STORED_SIDE / 2, STORED_SIDE / 2),
        scale=(scale * rng.choice([-1, 1]), scale),
        degrees=rng.normal(0, 6),
        target=(size / 2 + rng.uniform(-slack, slack), size / 2 + rng.uniform(-slack, slack)),
    )


def _placement(matte: Matte, size: int, rng: Generator) -> NDArray[np.float64]:
    """Affine map that puts the object of ``matte`` at a random size and place."""
    rows, columns = np.nonzero(matte.max(axis=1) > 0.5)[0], np.nonzero(matte.max(axis=0) > 0.5)[0]
    extent = max(np.ptp(rows), np.ptp(columns)) + 1
    length = _length(size, rng)
    scale = length / extent
    stretch = np.exp(rng.normal(0, 0.12))
    # Anywhere, but with most of the object inside the photo.
    reach = max(0.0, size / 2 - 0.35 * length)
    return _affine(
        centre=((columns[0] + columns[-1]) / 2, (rows[0] + rows[-1]) / 2),
        scale=(scale * stretch * rng.choice([-1, 1]), scale / stretch),
        degrees=rng.normal(0, 40),
        target=(size / 2 + rng.uniform(-reach, reach), size / 2 + rng.uniform(-reach, reach)),
    )


def _length(size: int, rng: Generator) -> float:
    """Longest side of a pasted object, log-uniform: small ones are as common as large ones."""
    return float(size * np.exp(rng.uniform(np.log(0.15), np.log(0.95))))


def _filled_shape(side: Side, mix: PhotoMix, size: int, rng: Generator) -> tuple[Photo, Matte]:
    """A smooth random outline, or a keyed object's, filled with shaded material."""
    if rng.random() < 0.4:
        keyed = side.objects[rng.integers(len(side.objects))][1]
        matte = _warp(keyed, _placement(keyed, size, rng), size, black_outside=True)
    else:
        matte = _random_outline(size, rng)
    material = _background(side, mix, size, rng).astype(np.float32)
    if rng.random() < 0.5:  # shading across the shape, as on a round body
        y, x = np.mgrid[0:size, 0:size] / size - 0.5
        angle = rng.uniform(0, 2 * np.pi)
        ramp = 1 + rng.uniform(0.3, 1.2) * (np.cos(angle) * x + np.sin(angle) * y)
        material = material * ramp[..., None]
    if rng.random() < 0.5:
        tint = rng.uniform(30, 225, 3)
        strength = rng.uniform(0.3, 0.9)
        material = (1 - strength) * material + strength * tint * (
            material.mean(-1, keepdims=True) / 128
        )
    filled: Photo = np.clip(material, 0, 255).astype(np.uint8)
    return filled, matte


def _random_outline(size: int, rng: Generator) -> Matte:
    """Matte of a random body: one wavering ellipse, or one with limbs grown onto it."""
    parts = [_wavering_ellipse(rng, aspect_spread=0.35)]
    if rng.random() < 0.5:
        for _ in range(rng.integers(1, 7)):
            limb = _wavering_ellipse(rng, aspect_spread=1.0) * rng.uniform(0.25, 0.8)
            trunk = parts[rng.integers(len(parts))]
            parts.append(limb + trunk[rng.integers(len(trunk))])  # rooted on an outline so far
    points = np.concatenate(parts)
    length = _length(size, rng)
    low, high = points.min(axis=0), points.max(axis=0)
    reach = max(0.0, size / 2 - 0.35 * length)
    place = size / 2 + rng.uniform(-reach, reach, 2)
    canvas = np.zeros((4 * size, 4 * size), np.uint8)
    for part in parts:
        outline = (part - (low + high) / 2) * length / (high - low).max() + place
        cv2.fillPoly(canvas, [np.round(4 * outline).astype(np.int32)], 255)
    matte = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    return cv2.GaussianBlur(matte, (0, 0), 0.6).astype(np.float32)


def _wavering_ellipse(rng: Generator, aspect_spread: float) -> NDArray[np.float64]:
    """Outline (90, 2) about the origin: an ellipse whose radius wavers by random harmonics."""
    t = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    radius = np.ones_like(t)
    for k in range(2, 7):
        radius += rng.normal(0, 0.28 / k) * np.cos(k * t + rng.uniform(0, 2 * np.pi))
    aspect = np.exp(rng.normal(0, aspect_spread))
    points = np.stack([radius * np.cos(t) * aspect, radius * np.sin(t) / aspect], axis=1)
    turn = rng.uniform(0, 2 * np.pi)
    return points @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])


def _finish(photo: Photo, rng: Generator) -> Photo:
    """Final processing of every photo of both sides, so that it tells nothing of the side."""
    gain = rng.uniform(0.85, 1.15, 3) * rng.uniform(0.8, 1.15)
    x = photo.astype(np.float32) * gain.astype(np.float32)
    if rng.random() < 0.3:  # hides the edge of a paste as a lens would
        x = cv2.GaussianBlur(x, (0, 0), rng.uniform(0.4, 0.9)).astype(x.dtype)
    if rng.random() < 0.3:
        x += np.float32(rng.uniform(1, 6)) * rng.standard_normal(x.shape, np.float32)
    return np.asarray(np.clip(x, 0, 255), np.uint8)


def _shift_hue(photo: Photo, rng: Generator) -> Photo:
    hsv = cv2.cvtColor(photo, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0].astype(np.int32) + rng.integers(180)) % 180
    shifted: Photo = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB).astype(np.uint8)
    return shifted


def _affine(
    centre: tuple[float, float],
    scale: tuple[float, float],
    degrees: float,
    target: tuple[float, float],
) -> NDArray[np.float64]:
    """2x3 matrix: scale (a negative x mirrors), turn about ``centre``, move to ``target``."""
    turn = np.deg2rad(degrees)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    linear = rotation @ np.diag(scale)
    shift = np.asarray(target) - linear @ np.asarray(centre)
    return np.concatenate([linear, shift[:, None]], axis=1)


def _warp(
    image: NDArray[Pixel], transform: NDArray[np.float64], size: int, black_outside: bool = False
) -> NDArray[Pixel]:
    """``image`` through ``transform``; beyond its border mirrored, or black."""
    border = cv2.BORDER_CONSTANT if black_outside else cv2.BORDER_REFLECT_101
    shrink = abs(float(np.linalg.det(transform[:, :2]))) ** 0.5
    if shrink < 0.6:  # average first, so that a small object does not alias
        image = cv2.GaussianBlur(image, (0, 0), 0.4 / shrink).astype(image.dtype)
    warped = cv2.warpAffine(
        image, transform, (size, size), flags=cv2.INTER_LINEAR, borderMode=border
    )
    return warped.astype(image.dtype, copy=False)
