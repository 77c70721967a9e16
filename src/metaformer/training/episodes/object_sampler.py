"""Synthetic parts as on a conveyor: an outline filled with a photo, on a background, in a pose."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from metaformer.data.synthetic.defect_shapes import Matte, smooth_noise
from metaformer.io.images import resize_image
from metaformer.training.episodes.photo_pool import PhotoPool
from metaformer.training.episodes.product_samplers import (
    Product,
    Specimen,
    any_photo,
    pick,
    surface,
)


def part(pool: PhotoPool, rng: Generator, size: int) -> Product:
    """A part with a fixed outline; its face is the same print on all, or patches of a material.

    The background is a plain colour or a material, and never twice the same. Where the part lies
    is known, so that defects can be placed on it.
    """
    name, face = _face(pool, rng, size)
    background = draw_ground(pool, rng, size)
    matte = outline(rng, size)  # (S, S)
    shade = _shade(rng, matte)  # (S, S, 3)
    free = rng.random() < 0.25
    turn, shift = rng.uniform(0, 6), rng.uniform(0, 0.04)
    shadow = rng.uniform(0.2, 0.6) if rng.random() < 0.5 else 0.0
    shadow_step = rng.uniform(-0.04, 0.04, 2) * size

    def draw(rng: Generator, number: int, is_query: bool) -> Specimen:
        ground, _ = background.draw(rng, number, is_query)
        surface_seen, _ = face.draw(rng, number, is_query)
        body = cv2.multiply(surface_seen, shade, scale=1 / 255)
        pose = cv2.getRotationMatrix2D(
            ((size - 1) / 2, (size - 1) / 2),
            rng.uniform(0, 360) if free else rng.normal(0, turn),
            float(np.exp(rng.normal(0, 0.015))),
        ).astype(np.float64)
        pose[:, 2] += np.clip(rng.normal(0, shift, 2), -0.08, 0.08) * size
        body = cv2.warpAffine(body, pose, (size, size), borderMode=cv2.BORDER_REPLICATE)
        cover = cv2.warpAffine(matte, pose, (size, size)).astype(np.float32, copy=False)
        if shadow:
            below = pose.copy()
            below[:, 2] += shadow_step
            dark = cv2.warpAffine(matte, below, (size, size))
            dark = shadow * cv2.GaussianBlur(dark, (0, 0), size / 50)
            black = np.zeros_like(ground)
            ground = cv2.blendLinear(ground, black, 1 - dark, dark).astype(np.uint8, copy=False)
        image = cv2.blendLinear(body, ground, cover, 1 - cover).astype(np.uint8, copy=False)
        return image, cover > 0.5

    return Product(name, draw)


def outline(rng: Generator, size: int) -> Matte:
    """Matte of a part, (size, size): organic, a rounded box, or a wheel; with up to four holes."""
    angle = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    cosine, sine = np.cos(angle), np.sin(angle)
    choice = rng.random()
    if choice < 0.35:
        waves = np.arange(2, 6)[:, None]
        amount = rng.normal(0, 0.25, (4, 1)) / waves
        radius = 1 + (amount * np.cos(waves * angle + rng.uniform(0, 2 * np.pi, (4, 1)))).sum(0)
        stretch = np.exp(rng.normal(0, 0.2))
    elif choice < 0.8:  # a superellipse: from an ellipse to a box with rounded corners
        power = rng.uniform(2, 10)
        radius = (np.abs(cosine) ** power + np.abs(sine) ** power) ** (-1 / power)
        stretch = np.exp(rng.normal(0, 0.35))
    else:
        teeth = rng.integers(3, 16)
        radius = 1 + rng.uniform(0.05, 0.25) * np.tanh(3 * np.cos(teeth * angle))
        stretch = 1.0
    points = np.stack([radius * cosine * stretch, radius * sine / stretch], axis=1)
    points *= size * rng.uniform(0.5, 0.85) / np.ptp(points, axis=0).max()

    canvas = np.zeros((size, size), np.uint8)
    middle = (size - 1) / 2
    fixed = np.round((points + middle) * 16).astype(np.int32)
    cv2.fillPoly(canvas, [fixed], (255,), cv2.LINE_AA, 4)
    holes = int(rng.integers(1, 5)) if rng.random() < 0.5 else 0
    least = float(np.hypot(points[:, 0], points[:, 1]).min())
    away = 0.0 if holes == 1 else least * rng.uniform(0.45, 0.65)
    bore = least * rng.uniform(0.08, 0.25)
    start = rng.uniform(0, 2 * np.pi)
    for turn in start + 2 * np.pi * np.arange(holes) / max(holes, 1):
        centre = np.round((middle + away * np.array([np.cos(turn), np.sin(turn)])) * 16)
        cv2.circle(canvas, centre.astype(int).tolist(), int(bore * 16), (0,), -1, cv2.LINE_AA, 4)
    return canvas.astype(np.float32) * np.float32(1 / 255)


def _face(pool: PhotoPool, rng: Generator, size: int) -> tuple[str, Product]:
    if pool.of_domain["material"] and rng.random() < 0.4:
        anchor = pick(rng, pool.of_domain["material"])
        return pool.photos[anchor].name, surface(pool, rng, size, anchor)
    # The print covers the part and little else, so that what shows of the photo is its middle.
    name, print_, _ = any_photo(pool, rng, round(size * 1.2))
    start = (print_.shape[0] - size) // 2
    face = np.ascontiguousarray(print_[start : start + size, start : start + size])
    return name, Product(name, lambda rng, number, is_query: (face, None))


def draw_ground(pool: PhotoPool, rng: Generator, size: int) -> Product:
    if pool.of_domain["material"] and rng.random() < 0.4:
        return surface(pool, rng, size, pick(rng, pool.of_domain["material"]))
    colour = rng.uniform(10, 245, 3) if rng.random() < 0.5 else np.full(3, rng.uniform(10, 245))
    unrest = rng.uniform(2, 16)

    def draw(rng: Generator, number: int, is_query: bool) -> Specimen:
        coarse = (smooth_noise(rng, (32, 32), 8.0) - 0.5) * np.float32(unrest)
        plain = np.clip(colour + coarse[..., None], 0, 255).astype(np.uint8)
        return resize_image(plain, (size, size)), None

    return Product("plain", draw)


def _shade(rng: Generator, matte: Matte) -> NDArray[np.uint8]:
    """Light on the body, 255 is full: flat, or darker towards the edge as on a round one."""
    size = matte.shape[0]
    if rng.random() < 0.5:
        return np.full((size, size, 3), 255, np.uint8)
    depth = np.float32(rng.uniform(0.2, 0.6))
    inner = cv2.GaussianBlur(matte, (0, 0), size * rng.uniform(0.02, 0.08))
    light = 1 - depth * (1 - np.clip(2 * inner - 1, 0, 1))
    return np.repeat((255 * light).astype(np.uint8)[..., None], 3, axis=2)
