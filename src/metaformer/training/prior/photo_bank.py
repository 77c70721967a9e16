"""The photos that the prior is trained on, dealt out to side A, side B and a held-out side.

No mask made by a person is read here. Objects on plain backdrops are cut out by colour alone
(``chroma_key``). Objects and backgrounds of one side are other photos than those of another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from metaformer.io.images import ImageError, list_images, read_image, resize_image
from metaformer.networks.instance_prior import EFFECTS, Effect
from metaformer.training.prior.chroma_key import key_by_border
from metaformer.training.prior.saliency_sets import load_saliency_set

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
    rng = np.random.default_rng(seed)
    objects: list[tuple[Photo, Matte]] = []
    plain: list[Photo] = []
    for photo in _load_all(object_folders):
        matte = key_by_border(resize_image(photo, (KEYING_SIDE, KEYING_SIDE)))
        if matte is None:
            plain.append(photo)
        else:
            large = cv2.resize(matte, (STORED_SIDE, STORED_SIDE)).astype(np.float32)
            objects.append((photo, large))
    if len(objects) < 9:
        raise ValueError(
            f"{', '.join(map(str, object_folders))}: only {len(objects)} photos show one object on "
            f"a plain backdrop, training needs 9 at least. Add photos of single objects."
        )
    backgrounds = _load_all(background_folders)

    more_natural = [
        load_square(sample.image) for root in saliency_sets for sample in load_saliency_set(root)
    ]

    # A third of the keyed objects to side A, half to B, the rest held out. Photos that cannot be
    # keyed go to A, save a share that serves B as scenes to paste onto and one held out.
    order = rng.permutation(len(objects))
    cut_a, cut_b = len(order) * 36 // 100, len(order) * 88 // 100
    objects_a = tuple(objects[i] for i in order[:cut_a])
    objects_b = tuple(objects[i] for i in order[cut_a:cut_b])
    objects_held = tuple(objects[i] for i in order[cut_b:])
    grounds = [backgrounds[i] for i in rng.permutation(len(backgrounds))]
    cut_a, cut_b = len(grounds) * 45 // 100, len(grounds) * 90 // 100
    others = [plain[i] for i in rng.permutation(len(plain))]
    cut_plain, cut_scenes = len(others) * 50 // 100, len(others) * 92 // 100
    return PhotoBank(
        natural=Side(
            plain=(*others[:cut_plain], *(photo for photo, _ in objects_a), *more_natural),
            objects=objects_a,
            backgrounds=tuple(grounds[:cut_a]),
            scenes=tuple(others[:cut_plain]),
        ),
        effect=Side(
            plain=tuple(photo for photo, _ in objects_b),
            objects=objects_b,
            backgrounds=tuple(grounds[cut_a:cut_b]),
            scenes=tuple(others[cut_plain:cut_scenes]),
        ),
        held_out=Side(
            plain=tuple(photo for photo, _ in objects_held),
            objects=objects_held,
            backgrounds=tuple(grounds[cut_b:]),
            scenes=tuple(others[cut_scenes:]),
        ),
        effect_as_taken=() if effect_folder is None else _load_effect_folder(effect_folder),
    )


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
