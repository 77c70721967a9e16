"""Products of several objects, as in a tray or on a board, and changes of single objects.

A slot has a place and a sort: coins of one kind (another photo on each specimen, so that good ones
vary as real ones do), or one printed part. An object may be missing, of another kind, one too many,
turned the other way, or without a part of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from metaformer.data.synthetic.defect_shapes import blob
from metaformer.io.images import resize_image
from metaformer.training.episodes.object_sampler import draw_ground, outline
from metaformer.training.episodes.photo_pool import PhotoPool
from metaformer.training.episodes.pose import Mask
from metaformer.training.episodes.product_samplers import Image, Product, any_photo, pick

DISC = 0.33
"""Radius of the disc that is cut from a photo of a coin, as a share of its side: what the smallest
of the kinds fills."""
COINS = "coin"
"""Photos whose name begins so show a round thing in the middle."""


@dataclass(frozen=True)
class Sprite:
    """An object cut out: uint8 (s, s, 3) and uint8 (s, s), 255 inside."""

    face: Image
    matte: NDArray[np.uint8]


@dataclass(frozen=True)
class Sort:
    """Objects that may stand for each other, and whether they lie at any angle."""

    sprites: tuple[Sprite, ...]
    any_angle: bool


@dataclass(frozen=True)
class Slot:
    place: tuple[float, float]
    sort: int


@dataclass(frozen=True)
class Arrangement:
    """``draw`` gives a good specimen, ``change`` the same specimen good and with a fault."""

    name: str
    ground: Product
    slots: tuple[Slot, ...]
    spare: tuple[float, float]
    """A free place, for one object too many."""
    sorts: tuple[Sort, ...]
    foreign: Sort
    side: float
    """Of an object, in pixels."""
    jitter: float
    size: int

    def draw(self, rng: Generator, number: int) -> Image:
        return self.change(rng, number, None)[0]

    def change(self, rng: Generator, number: int, fault: str | None) -> tuple[Image, Image, Mask]:
        """(S, S, 3) good and faulty, and the mask of what differs. ``fault`` None draws none."""
        canvas = self.ground.draw(rng, number, True)[0].copy()
        chosen = int(rng.integers(len(self.slots)))
        good, bad = canvas, canvas.copy()
        mask = np.zeros((self.size, self.size), bool)
        slots = list(enumerate(self.slots))
        if fault == "extra":
            slots.append((-1, Slot(self.spare, int(rng.integers(len(self.sorts))))))
        for i, slot in slots:
            sort = self.sorts[slot.sort]
            sprite = sort.sprites[int(rng.integers(len(sort.sprites)))]
            angle = rng.uniform(0, 360) if sort.any_angle else rng.normal(0, 3)
            scale = self.side / sprite.face.shape[0] * np.exp(rng.normal(0, 0.015))
            place = np.array(slot.place) + rng.normal(0, self.jitter, 2) * self.side
            here = place_sprite(sprite, (self.size, self.size), place, scale, angle)
            if i >= 0:
                lay(good, here)
            if i >= 0 and (fault is None or fault == "extra" or i != chosen):
                lay(bad, here)
                continue
            inside = here.matte > 127
            mask[here.box] |= inside
            if fault == "extra":
                lay(bad, here)
            elif fault == "other":
                others = self.foreign.sprites
                other = others[int(rng.integers(len(others)))]
                scale = self.side / other.face.shape[0]
                there = place_sprite(other, (self.size, self.size), place, scale, angle)
                lay(bad, there)
                mask[there.box] |= there.matte > 127
            elif fault == "turned":
                turn = angle + rng.uniform(90, 270)
                there = place_sprite(sprite, (self.size, self.size), place, scale, turn)
                lay(bad, there)
                mask[there.box] |= there.matte > 127
            elif fault == "bitten":
                whole = here.matte
                area = float(inside.sum()) * rng.uniform(0.08, 0.5)
                edge = np.argwhere(inside)
                y, x = edge[int(rng.integers(len(edge)))] if len(edge) else (0, 0)
                bite = blob(rng, max(area, 8.0), (float(x), float(y)), whole.shape)
                left = whole.copy()
                left[bite.box] = (left[bite.box] * (1 - bite.matte)).astype(np.uint8)
                lay(bad, Placed(here.box, here.face, left))
                mask[here.box] &= (whole.astype(int) - left) > 100
        return good, bad, mask


FAULTS = ("missing", "missing", "other", "other", "extra", "bitten", "turned")


@dataclass(frozen=True)
class Placed:
    box: tuple[slice, slice]
    face: Image
    matte: NDArray[np.uint8]


def place_sprite(
    sprite: Sprite,
    frame: tuple[int, int],
    place: NDArray[np.float64],
    scale: float,
    degrees: float,
) -> Placed:
    """Turn and scale a sprite, and give it in its box of the frame around ``place`` (x, y)."""
    side = sprite.face.shape[0]
    reach = int(np.ceil(side * scale * 0.72)) + 1
    left, top = (int(np.floor(place[i])) - reach for i in (0, 1))
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + 2 * reach, frame[1]), min(top + 2 * reach, frame[0])
    x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)
    turn = cv2.getRotationMatrix2D(((side - 1) / 2, (side - 1) / 2), degrees, scale)
    turn[:, 2] += (place[0] - x0 - (side - 1) / 2, place[1] - y0 - (side - 1) / 2)
    box = (x1 - x0, y1 - y0)
    face = cv2.warpAffine(sprite.face, turn, box, borderMode=cv2.BORDER_REPLICATE)
    matte = cv2.warpAffine(sprite.matte, turn, box)
    return Placed(
        (slice(y0, y1), slice(x0, x1)), face.astype(np.uint8), matte.astype(np.uint8, copy=False)
    )


def lay(canvas: Image, placed: Placed) -> None:
    """Blend a placed sprite into ``canvas``, in place."""
    cover = placed.matte.astype(np.float32) * np.float32(1 / 255)
    under = np.ascontiguousarray(canvas[placed.box])
    canvas[placed.box] = cv2.blendLinear(placed.face, under, cover, 1 - cover)


def arrangement(pool: PhotoPool, rng: Generator, size: int) -> Arrangement:
    """One to twelve objects in rows, in a ring or anywhere, of one sort or of several."""
    coins = tuple(i for i in pool.similar_goods if pool.photos[i].name.startswith(COINS))
    many = int(rng.integers(1, 5))
    rows, columns = many, int(rng.integers(1, 5))
    cell = size / (max(rows, columns) + rng.uniform(0, 0.6))
    grid = [
        (size / 2 + (c - (columns - 1) / 2) * cell, size / 2 + (r - (rows - 1) / 2) * cell)
        for r in range(rows)
        for c in range(columns)
    ]
    places = [grid[i] for i in rng.permutation(len(grid))]
    free = (
        places[-1]
        if len(places) > 2
        else (float(rng.uniform(0.15, 0.85) * size), float(rng.uniform(0.1, 0.9) * size))
    )
    taken = places[:-1] if len(places) > 2 and rng.random() < 0.6 else places
    kinds = 1 if rng.random() < 0.6 else int(rng.integers(2, 4))
    uses_coins = bool(coins) and rng.random() < 0.55
    any_angle = uses_coins and rng.random() < 0.7
    side = cell * rng.uniform(0.5, 0.95)
    anchors = [pick(rng, coins) for _ in range(kinds + 1)] if uses_coins else []
    if uses_coins:
        sorts = [coin_sort(pool, anchor, any_angle) for anchor in anchors[:-1]]
        anchor_kinds = {pool.photos[a].kind for a in anchors[:-1]}
        others = tuple(i for i in coins if pool.photos[i].kind not in anchor_kinds)
        foreign = coin_sort(pool, pick(rng, others or coins), any_angle)
        name = pool.photos[anchors[0]].name
    else:
        made = [printed_sort(pool, rng, max(16, round(side))) for _ in range(kinds + 1)]
        sorts, foreign, name = [s for _, s in made[:-1]], made[-1][1], made[0][0]
    ground = draw_ground(pool, rng, size)
    jitter = rng.uniform(0, 0.05)
    slots = tuple(Slot(place, int(rng.integers(kinds))) for place in taken)
    return Arrangement(name, ground, slots, free, tuple(sorts), foreign, side, jitter, size)


def coin_sort(pool: PhotoPool, anchor: int, any_angle: bool) -> Sort:
    """Discs of a photo and of up to five that look alike."""
    sprites = []
    for i in (anchor, *pool.photos[anchor].alike[:5]):
        image = pool.image(i)
        height, width = image.shape[:2]
        reach = int(DISC * min(height, width))
        y, x = height // 2, width // 2
        face = np.ascontiguousarray(image[y - reach : y + reach, x - reach : x + reach])
        matte = np.zeros(face.shape[:2], np.uint8)
        cv2.circle(matte, (reach, reach), reach - 1, (255,), -1, cv2.LINE_AA)
        sprites.append(Sprite(face, matte))
    return Sort(tuple(sprites), any_angle)


def printed_sort(pool: PhotoPool, rng: Generator, side: int) -> tuple[str, Sort]:
    """One outline filled with one photo, or with a colour, as a screw or a nut has one."""
    name, face, _ = any_photo(pool, rng, side)
    matte = (outline(rng, side) * 255).astype(np.uint8)
    ys, xs = np.nonzero(matte > 127)
    if rng.random() < 0.35:
        colour = rng.integers(0, 256, 3).astype(np.float32)
        plain = face.astype(np.float32) * np.float32(0.25) + colour * np.float32(0.75)
        face = plain.astype(np.uint8)
    if len(ys):  # the outline fills its sprite
        top, left = int(ys.min()), int(xs.min())
        reach = max(8, int(max(np.ptp(ys), np.ptp(xs))) + 1)
        face = resize_image(
            np.ascontiguousarray(face[top : top + reach, left : left + reach]), (side, side)
        )
        matte = np.asarray(
            cv2.resize(matte[top : top + reach, left : left + reach], (side, side)), np.uint8
        )
    return name, Sort((Sprite(face, matte),), False)
