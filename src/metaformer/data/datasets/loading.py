"""Data sets: from a folder to categories with normal training images and labelled test images.

The layouts are described in ``docs/datasets.md`` and read in ``layouts``.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np

from metaformer.data.datasets.category import Category, DatasetError, Sample
from metaformer.data.datasets.layouts import LAYOUTS, Layout, has_images, load_flat
from metaformer.io.folders import check_folder, list_folders, list_images

__all__ = ["LAYOUT_NAMES", "Category", "DatasetError", "Sample", "draw_support", "load_categories"]

LAYOUT_NAMES = ("auto", *(layout.name for layout in LAYOUTS))


def load_categories(root: Path | str, layout: str = "auto") -> list[Category]:
    """The categories in a folder: one if it is a category, several if it holds some.

    Args:
        root: a category, a folder of categories of one layout, a folder of normal images, or a
            folder whose only content is one of these.
        layout: one of ``LAYOUT_NAMES``; "auto" takes the first that fits.

    Returns:
        The categories in natural order of their names, each with at least one training image.

    Raises:
        FileNotFoundError, NotADirectoryError, PermissionError: ``root`` cannot be listed.
        DatasetError: no layout fits, some of the folders do not fit, a category has no normal
            training image, or masks, templates or listed files are missing.
        ValueError: there is no such layout.
    """
    if layout not in LAYOUT_NAMES:
        raise ValueError(f"layout {layout!r} is not known; use one of {', '.join(LAYOUT_NAMES)}.")
    folder = check_folder(root)
    accepted = [each for each in LAYOUTS if layout in ("auto", each.name)]
    categories = _find(folder, accepted)
    if not categories and layout in ("auto", "folder") and list_images(folder):
        categories = [load_flat(folder)]
    if not categories:
        children = list_folders(folder)
        if len(children) == 1:  # archives often unpack into one more folder
            return load_categories(children[0], layout)
        raise DatasetError(_nothing_fits(folder, accepted))
    for category in categories:
        if not category.train:
            raise DatasetError(
                f"{category.root}: no normal training images ({category.name} has "
                f"{len(category.test)} test images). A detector is made from them: add some."
            )
    return categories


def _find(folder: Path, layouts: list[Layout]) -> list[Category]:
    for layout in layouts:
        if layout.matches(folder):
            return [layout.load(folder)]
    children = list_folders(folder)
    for layout in layouts:
        members = [child for child in children if layout.matches(child)]
        if members:
            strangers = [
                child.name for child in children if child not in members and has_images(child)
            ]
            if strangers:
                # Leaving them out would change the mean over the set without a word.
                raise DatasetError(
                    f"{folder}: {', '.join(child.name for child in members)} have the layout "
                    f"{layout.name} ({layout.tree}), but {', '.join(strangers)} have not. Mend "
                    "or move them, or give a single category."
                )
            return [layout.load(child) for child in members]
    return []


def _nothing_fits(folder: Path, layouts: list[Layout]) -> str:
    names = [f"{path.name}/" for path in list_folders(folder)]
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    images = len(list_images(folder))
    listed = "\n".join(f"  {layout.name}: {layout.tree}" for layout in layouts)
    return (
        f"{folder}: no data set recognised. Found {images} images and the folders "
        f"{shown or '(none)'}. Accepted, for it or for each folder in it:\n{listed}\n"
        "Check the path, or move the images into one of these shapes."
    )


def draw_support(category: Category, shots: int | None, seed: int) -> list[Path]:
    """Draw normal training images, without replacement.

    The draw depends on the names of the training images (relative to the category) and on the
    seed, not on the machine or its file system. Draws nest: with one seed, 4 shots are the first
    4 of 10.

    Args:
        category: where from.
        shots: how many; None for all.
        seed: of ``numpy.random.default_rng``.

    Raises:
        DatasetError: more shots than training images.
        ValueError: ``shots`` is less than 1, or ``seed`` is negative.
    """
    names = sorted(category.train, key=lambda path: _portable_name(path, category.root))
    if shots is not None and shots < 1:
        raise ValueError(f"shots is {shots}; it must be 1 or more, or None for all.")
    if shots is not None and shots > len(names):
        raise DatasetError(
            f"{category.root}: {shots} shots asked of {category.name}, which has {len(names)} "
            f"normal training images. Ask for at most {len(names)}."
        )
    order = np.random.default_rng(seed).permutation(len(names))
    return [names[i] for i in order[:shots]]


def _portable_name(path: Path, root: Path) -> str:
    # Some file systems store é as two characters.
    return unicodedata.normalize("NFC", path.relative_to(root).as_posix())
