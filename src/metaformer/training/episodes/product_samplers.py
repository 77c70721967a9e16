"""Products made from photos, and good specimens of them.

A product is drawn once for an episode; each of its specimens then differs as two good parts do:
another patch of the surface, another photo of the same goods, a small change of pose. Light and
noise come later, from ``camera``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from metaformer.data.synthetic.defect_shapes import smooth_noise
from metaformer.io.images import resize_image
from metaformer.training.episodes.photo_pool import PhotoPool

Image = NDArray[np.uint8]
Specimen = tuple[Image, NDArray[np.bool_] | None]
"""uint8 (S, S, 3), and where the part is if that is known, bool (S, S)."""


@dataclass(frozen=True)
class Product:
    """``draw(rng, number, is_query)`` gives the specimen with that number in the episode."""

    name: str
    draw: Callable[[Generator, int, bool], Specimen]
    regular: bool = True
    """False for random surfaces, where a piece moved elsewhere is no defect: nobody could tell."""


def surface(pool: PhotoPool, rng: Generator, size: int, anchor: int | None = None) -> Product:
    """Patches of one photo of a material, or of it and up to three that look alike.

    One in seven is cut from the middle of a garment instead.
    """
    material = pool.of_domain["material"]
    garment = rng.random() < 0.15 or not material
    if anchor is None:
        choices = (pool.of_domain["things"] or material) if garment else material
        anchor = pick(rng, choices or tuple(range(len(pool))))
    photo = pool.photos[anchor]
    several = rng.random() < 0.6
    window = size * rng.uniform(0.5, 1.1)
    quarter, mirror = 90.0 * rng.integers(4), bool(rng.random() < 0.5)
    turn = 180.0 if rng.random() < 0.25 else rng.uniform(0, 3)

    chosen = (anchor, *photo.alike[:3]) if several else (anchor,)
    sources = [pool.image(i) for i in chosen]
    if photo.domain != "material":
        sources = [_middle(source, 0.4) for source in sources]
    sides = [min(source.shape[:2]) * (1.8 if photo.seamless else 0.9) for source in sources]
    window = min(window, *sides)
    border = cv2.BORDER_WRAP if photo.seamless else cv2.BORDER_REFLECT_101

    def draw(rng: Generator, number: int, is_query: bool) -> Specimen:
        source = sources[rng.integers(len(sources))]
        height, width = source.shape[:2]
        inside = window * np.exp(rng.normal(0, 0.03))
        reach = np.array([width, height], float)
        if not photo.seamless:
            reach = np.maximum(reach - inside, 0)
        centre = np.array([width, height]) / 2 + rng.uniform(-0.5, 0.5, 2) * reach
        degrees = quarter + turn * rng.uniform(-1, 1)
        return _view(source, centre, inside / size, degrees, size, mirror, border), None

    return Product(photo.name, draw, regular=photo.regular)


def goods(pool: PhotoPool, rng: Generator, size: int, anchor: int | None = None) -> Product:
    """Photos of similar goods of one kind, cropped to the centre: one photo a specimen."""
    if anchor is None:
        anchor = pick(rng, pool.similar_goods)
    photo = pool.photos[anchor]
    share = rng.uniform(0.45, 0.8)
    several = rng.permutation(8)
    chosen = (anchor, *photo.alike[:7])
    order = [chosen[i] for i in several if i < len(chosen)]
    sources = [_square(pool.image(i), round(size / share)) for i in order]

    def draw(rng: Generator, number: int, is_query: bool) -> Specimen:
        source = sources[number % len(sources)]
        side = source.shape[0]
        scale = side * share / size * np.exp(rng.normal(0, 0.06))
        centre = side / 2 + rng.normal(0, 0.04, 2) * side
        return _view(source, centre, scale, rng.normal(0, 4), size), None

    return Product(photo.name, draw)


def views(pool: PhotoPool, rng: Generator, size: int) -> Product:
    """One photo, cropped (0.85 to 1), turned, shifted, and sometimes bent a little."""
    name, source, mirror = any_photo(pool, rng, round(1.1 * size))
    turn = rng.uniform(0, 8)
    bend = size * rng.uniform(0.004, 0.012) if rng.random() < 0.4 else 0.0

    def draw(rng: Generator, number: int, is_query: bool) -> Specimen:
        share = rng.uniform(0.85, 1.0)
        side = source.shape[0]
        centre = side / 2 + rng.uniform(-0.5, 0.5, 2) * (1 - share) * side
        view = _view(source, centre, side * share / size, rng.normal(0, turn), size, mirror)
        return (_bent(view, rng, bend) if bend else view), None

    return Product(name, draw)


def scene(pool: PhotoPool, rng: Generator, size: int) -> Product:
    """One scene: supports taken by a fixed camera, queries shifted and turned against them."""
    share = rng.uniform(0.6, 0.88)
    name, source, mirror = any_photo(pool, rng, round(size / share))
    shift, turn = rng.uniform(0, 0.05), rng.uniform(0, 3)

    def draw(rng: Generator, number: int, is_query: bool) -> Specimen:
        side = source.shape[0]
        loose = 1.0 if is_query else 0.05
        centre = side / 2 + rng.uniform(-1, 1, 2) * shift * size * loose
        scale = side * share / size * np.exp(rng.normal(0, 0.01) * loose)
        view = _view(source, centre, scale, rng.normal(0, turn) * loose, size, mirror)
        return view, None

    return Product(name, draw)


def tiles(pool: PhotoPool, rng: Generator, size: int) -> Product:
    """A grid of tiles with slight differences, each a motif or a piece of one material."""
    count = int(rng.integers(2, 7))
    cell = -(-size // count)
    resampled = bool(pool.of_domain["material"]) and rng.random() < 0.5
    if resampled:
        anchor = pick(rng, pool.of_domain["material"])
        name, source = pool.photos[anchor].name, pool.image(anchor)
    else:
        name, source, _ = any_photo(pool, rng, cell)
    gap = int(rng.integers(0, max(2, cell // 12)))
    gap_colour = rng.integers(0, 256, 3).astype(np.uint8)
    vary = rng.uniform(0, 0.08)
    slide = cell * (rng.uniform(0, 0.1) if rng.random() < 0.6 else 1.0)

    def draw(rng: Generator, number: int, is_query: bool) -> Specimen:
        canvas = np.empty(((count + 1) * cell, (count + 1) * cell, 3), np.uint8)
        gains = np.clip(rng.normal(1, vary, (count + 1, count + 1)), 0.7, 1.3)
        for row, column in np.ndindex(gains.shape):
            piece = _piece(source, rng, cell) if resampled else source
            place = canvas[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
            place[:] = cv2.convertScaleAbs(piece, alpha=float(gains[row, column]))
            place[cell - gap :] = gap_colour
            place[:, cell - gap :] = gap_colour
        top, left = (int(rng.uniform(0, slide)) for _ in range(2))
        view = canvas[top : top + size, left : left + size]
        return np.ascontiguousarray(view), None

    return Product(name, draw)


def pick(rng: Generator, choices: tuple[int, ...]) -> int:
    """One of ``choices``."""
    return choices[int(rng.integers(len(choices)))]


def any_photo(pool: PhotoPool, rng: Generator, side: int) -> tuple[str, Image, bool]:
    """Name, the photo as a square of ``side`` pixels, and whether to mirror it."""
    things = pool.of_domain["goods"] + pool.of_domain["things"]
    material = pool.of_domain["material"]
    # Photos of materials have no layout to keep, so most of these are of things.
    index = pick(rng, material if material and (not things or rng.random() < 0.1) else things)
    photo = pool.image(index)
    source = _square(photo, side) if rng.random() < 0.5 else resize_image(photo, (side, side))
    return pool.photos[index].name, source, bool(rng.random() < 0.5)


def _square(photo: Image, side: int) -> Image:
    """The middle square of a photo, ``side`` pixels wide."""
    return resize_image(_middle(photo, 1.0), (side, side))


def _middle(photo: Image, share: float) -> Image:
    """The middle square, ``share`` of the shorter side wide."""
    height, width = photo.shape[:2]
    side = max(8, int(min(height, width) * share))
    top, left = (height - side) // 2, (width - side) // 2
    return np.ascontiguousarray(photo[top : top + side, left : left + side])


def _piece(source: Image, rng: Generator, cell: int) -> Image:
    """A random square of ``source``, ``cell`` pixels wide."""
    side = min(cell, *source.shape[:2])
    top, left = (int(rng.integers(length - side + 1)) for length in source.shape[:2])
    return resize_image(source[top : top + side, left : left + side], (cell, cell))


def _view(
    source: Image,
    centre: NDArray[np.float64],
    scale: float,
    degrees: float,
    size: int,
    mirror: bool = False,
    border: int = cv2.BORDER_REFLECT_101,
) -> Image:
    """The square view of ``source`` around ``centre`` (x, y), ``scale`` source pixels a pixel."""
    cosine, sine = scale * np.cos(np.deg2rad(degrees)), scale * np.sin(np.deg2rad(degrees))
    flip = -1 if mirror else 1
    linear = np.array([[cosine * flip, -sine], [sine * flip, cosine]])
    offset = centre - linear @ np.full(2, (size - 1) / 2)
    transform = np.concatenate([linear, offset[:, None]], axis=1)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    view = cv2.warpAffine(source, transform, (size, size), flags=flags, borderMode=border)
    return view.astype(np.uint8, copy=False)


def _bent(image: Image, rng: Generator, reach: float) -> Image:
    """Pixels moved by up to ``reach``, smoothly."""
    size = image.shape[0]
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    cell = size / 3
    move_x, move_y = (smooth_noise(rng, (size, size), cell) - np.float32(0.5) for _ in range(2))
    two = np.float32(2 * reach)
    bent = cv2.remap(
        image, x + two * move_x, y + two * move_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )
    return bent.astype(np.uint8, copy=False)
