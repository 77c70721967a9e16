"""The photos that the prior is trained on, dealt out to side A, side B and a held-out side.

No mask made by a person is read here. Objects on plain backdrops are cut out by colour alone
(``chroma_key``). Objects and backgrounds of one side are other photos than those of another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from metaformer.io.images import ImageError, list_images, read_image, resize_image
from metaformer.networks.instance_prior import EFFECTS, Effect
from metaformer.training.prior.chroma_key import key_by_border
from metaformer.training.prior.saliency_sets import load_saliency_set

Item = TypeVar("Item")
Photo = NDArray[np.uint8]
"""(S, S, 3) RGB."""
Matte = NDArray[np.float32]
"""(S, S) in [0, 1]."""

STORED_SIDE = 224
"""Photos wait in memory larger than the prior's 128 pixels: crops of a background stay sharp."""
KEYING_SIDE = 144
"""Photos are keyed at this side, for which the thresholds of ``chroma_key`` were set."""


@dataclass(frozen=True)
class Side:
    """The photos of one side of the training, all uint8 (S, S, 3)."""

    plain: tuple[Photo, ...]
    """As taken, each with one main object; on side B all of them are keyed objects."""
    objects: tuple[tuple[Photo, Matte], ...]
    """Keyed objects with the matte that colour gave them."""
    backgrounds: tuple[Photo, ...]
    """Materials and heaps to paste onto or to fill shapes with."""
    scenes: tuple[Photo, ...] = ()
    """Photos with things of their own in them, to paste onto or to fill shapes with as well."""


@dataclass(frozen=True)
class PhotoBank:
    """Sides A and B, and a held-out side to watch training by. No photo is in two of them."""

    natural: Side
    effect: Side
    held_out: Side
    effect_as_taken: tuple[tuple[Photo, Effect], ...] = ()
    """Photos that show an effect by themselves, and which; part of side B."""


class Deal(Generic[Item]):
    """Items dealt at random onto three piles.

    Args:
        first, second: percentages at which the first and the second pile end.
    """

    def __init__(self, first: int, second: int) -> None:
        self.cuts = (first, second)
        self.first: list[Item] = []
        self.second: list[Item] = []
        self.rest: list[Item] = []

    def add(self, items: Sequence[Item], rng: np.random.Generator) -> None:
        shuffled = [items[i] for i in rng.permutation(len(items))]
        cut, next_cut = (len(items) * percent // 100 for percent in self.cuts)
        self.first += shuffled[:cut]
        self.second += shuffled[cut:next_cut]
        self.rest += shuffled[next_cut:]


def load_square(path: Path) -> Photo:
    return resize_image(read_image(path), (STORED_SIDE, STORED_SIDE))


def load_bank(
    object_folders: Sequence[Path],
    background_folders: Sequence[Path],
    *,
    seed: int,
    saliency_sets: Sequence[Path] = (),
    effect_folder: Path | None = None,
) -> PhotoBank:
    """Read every photo, key what can be keyed and deal the photos out to the three sides.

    Args:
        object_folders: folders (searched with subfolders) of photos of one main object each.
        background_folders: folders of materials, heaps and scenes.
        saliency_sets: roots of MSRA10K, DUTS, ECSSD or HKU-IS; only photos are read, for side A.
        effect_folder: photos that show an effect, in subfolders named as ``EFFECTS``.
        seed: decides which photo goes to which side.

    Raises:
        ValueError: a folder has no image, or too few photos have a border plain enough to key.
    """
    # A generator for each folder: another folder leaves the deal of the ones before as it was.
    rng = np.random.default_rng(seed)
    others_rng = [np.random.default_rng((seed, i)) for i in range(1, len(object_folders))]
    folders = [
        (_key_all(_load_all([folder])), folder_rng)
        for folder, folder_rng in zip(object_folders, [rng, *others_rng], strict=True)
    ]
    count = sum(len(keyed) for (keyed, _), _ in folders)
    if count < 9:
        raise ValueError(
            f"{', '.join(map(str, object_folders))}: only {count} photos show one object on "
            f"a plain backdrop, training needs 9 at least. Add photos of single objects."
        )
    # A third of the keyed objects to side A, half to B, the rest held out. Photos that cannot be
    # keyed go to A, save a share that serves B as scenes to paste onto and one held out.
    objects = Deal[tuple[Photo, Matte]](36, 88)
    for (keyed, _), folder_rng in folders:
        objects.add(keyed, folder_rng)
    grounds = Deal[Photo](45, 90)
    grounds.add(_load_all(background_folders), rng)
    others = Deal[Photo](50, 92)
    for (_, plain), folder_rng in folders:
        others.add(plain, folder_rng)

    more_natural = [
        load_square(sample.image) for root in saliency_sets for sample in load_saliency_set(root)
    ]
    return PhotoBank(
        natural=Side(
            plain=(*others.first, *(photo for photo, _ in objects.first), *more_natural),
            objects=tuple(objects.first),
            backgrounds=tuple(grounds.first),
            scenes=tuple(others.first),
        ),
        effect=Side(
            plain=tuple(photo for photo, _ in objects.second),
            objects=tuple(objects.second),
            backgrounds=tuple(grounds.second),
            scenes=tuple(others.second),
        ),
        held_out=Side(
            plain=tuple(photo for photo, _ in objects.rest),
            objects=tuple(objects.rest),
            backgrounds=tuple(grounds.rest),
            scenes=tuple(others.rest),
        ),
        effect_as_taken=() if effect_folder is None else _load_effect_folder(effect_folder),
    )


def _key_all(photos: Sequence[Photo]) -> tuple[list[tuple[Photo, Matte]], list[Photo]]:
    """Objects with the matte that colour gives them, and the photos that cannot be keyed."""
    keyed: list[tuple[Photo, Matte]] = []
    plain: list[Photo] = []
    for photo in photos:
        matte = key_by_border(resize_image(photo, (KEYING_SIDE, KEYING_SIDE)))
        if matte is None:
            plain.append(photo)
        else:
            large = cv2.resize(matte, (STORED_SIDE, STORED_SIDE)).astype(np.float32)
            keyed.append((photo, large))
    return keyed, plain


def _load_effect_folder(folder: Path) -> tuple[tuple[Photo, Effect], ...]:
    present = [effect for effect in EFFECTS if (folder / effect).is_dir()]
    if not present:
        raise ValueError(f"{folder}: no subfolder named {', '.join(EFFECTS)}. Add one at least.")
    return tuple((photo, effect) for effect in present for photo in _load_all([folder / effect]))


def _load_all(folders: Sequence[Path]) -> list[Photo]:
    photos = []
    for folder in folders:
        paths = list_images(folder, recursive=True)
        if not paths:
            raise ValueError(f"{folder}: no image found. Name a folder of photos.")
        for path in paths:
            try:
                photos.append(load_square(path))
            except ImageError:  # one unreadable photo among thousands is no reason to stop
                continue
    return photos
