"""One product of a data set: its normal training images, its test images and their masks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metaformer.io.folders import list_folders, list_images

TRAIN_SHARE = 0.8
"""Share of normal images (or parts) taken for training where a set has no split of its own."""
SPLIT_SEED = 0
"""Seed of that split, the same for ever, so that everyone's test set is the same."""

OWN_SPLIT = "the set's own"
OUR_SPLIT = f"ours: {TRAIN_SHARE:.0%} of the normal images for training, seed {SPLIT_SEED}"


class DatasetError(ValueError):
    """A folder that is not the data set it should be. Says what was found and what is accepted."""


@dataclass(frozen=True)
class Sample:
    """One test image and what is known of it."""

    image: Path
    is_anomalous: bool
    masks: tuple[Path, ...]
    """Masks of its defects, to be united; empty for a normal image, and where none exists."""
    kind: str
    """Kind of defect; "good" for a normal image."""
    template: Path | None = None
    """In a set of pairs, the defect-free image this one is compared with."""


@dataclass(frozen=True)
class Category:
    """One product: normal images to learn from, and test images."""

    name: str
    root: Path
    """Folder of the category; all its files lie inside."""
    train: tuple[Path, ...]
    """Normal images, in natural order. Supports are drawn from here alone."""
    test: tuple[Sample, ...]
    split: str = OWN_SPLIT
    """Where the division into train and test comes from, in words for a report."""

    @property
    def is_paired(self) -> bool:
        """Each test image has its own template."""
        return bool(self.test) and all(sample.template is not None for sample in self.test)

    @property
    def has_masks(self) -> bool:
        """At least one defective image has a mask, so that pixel metrics can be computed."""
        return any(sample.masks for sample in self.test)


def split_normal(groups: Sequence[Sequence[Path]]) -> tuple[list[Path], list[Path]]:
    """Divide normal images into train and test, whole groups at a time.

    A seeded permutation of the groups; at least one group is left on each side where there are
    two. Which image goes where depends on the order of the groups alone.
    """
    order = np.random.default_rng(SPLIT_SEED).permutation(len(groups))
    held_out = max(1, round(len(groups) * (1 - TRAIN_SHARE))) if len(groups) > 1 else 0
    for_test = set(order[:held_out].tolist())
    train = [path for i, group in enumerate(groups) if i not in for_test for path in group]
    test = [path for i, group in enumerate(groups) if i in for_test for path in group]
    return train, test


def normal_samples(images: Sequence[Path]) -> list[Sample]:
    """Test images without a defect."""
    return [Sample(image, is_anomalous=False, masks=(), kind="good") for image in images]


def defective_samples(images: Sequence[Path], kind: str, mask_folder: Path) -> list[Sample]:
    """Test images with defects, and their masks in ``mask_folder``, which need not exist.

    Raises: as ``masks_by_image``.
    """
    masks = masks_by_image(images, mask_folder)
    return [Sample(image, True, masks[image], kind) for image in images]


def masks_by_image(images: Sequence[Path], folder: Path) -> dict[Path, tuple[Path, ...]]:
    """Masks of each image: <stem>_mask.*, <stem>.*, or everything in a folder <stem>/.

    Raises:
        DatasetError: there are masks, but none belongs to any of the images.
    """
    found = masks_in(folder)
    masks = {image: tuple(found.get(image.stem, ())) for image in images}
    if images and any(found.values()) and not any(masks.values()):
        example = next(path for paths in found.values() for path in paths)
        raise DatasetError(
            f"{folder}: none of its masks (such as {example.name}) belongs to an image (such as "
            f"{images[0].name}). Name the mask of x.png x_mask.png or x.png, or put it into x/."
        )
    return masks


def masks_in(folder: Path) -> dict[str, list[Path]]:
    """The masks in ``folder`` by the stem of their image; empty if there is no such folder."""
    found: dict[str, list[Path]] = defaultdict(list)
    if folder.is_dir():
        for path in list_images(folder):
            found[path.stem.removesuffix("_mask")].append(path)
        for inner in list_folders(folder):
            found[inner.name] += list_images(inner)
    return found


def category_name(folder: Path) -> str:
    """Last part of the path, also of one that ends in a dot."""
    return folder.name if folder.name not in ("", "..") else folder.resolve().name
