"""Suggestions for someone who names the root of a data set instead of its good images."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable
from pathlib import Path

from metaformer.data.datasets.category import Category, DatasetError
from metaformer.data.datasets.layouts import BAD_NAMES, GOOD_NAMES
from metaformer.data.datasets.loading import load_categories
from metaformer.io.folders import list_folders, list_images
from metaformer.io.sources.naming import absolute, is_address

SHOWN = 3
DEPTH = 2
"""Levels below the first that are looked into for images."""


def suggest_good_folder(folder: Path) -> str:
    """A hint at the sub-folder with the good images; empty if none is found."""
    categories = recognised(folder)
    if categories:
        first = categories[0]
        where = folders_of([path.parent for path in first.train or templates(first)])
        if len(categories) == 1:
            return f"It is a data set: its good images are in {where}. Give that."
        return (
            f"It is a data set of {len(categories)} products, each of which needs a detector of "
            f"its own: the good images of {first.name} are in {where}. Give that."
        )
    return suggest_sub_folders(folder)


def suggest_test_folder(folder: Path) -> str:
    """A hint at the sub-folder with images to score; empty if none is found."""
    categories = recognised(folder)
    if categories:
        where = folders_of([sample.image.parent for c in categories[:1] for sample in c.test])
        return f"It is a data set: test images are in {where}."
    return suggest_sub_folders(folder)


def holds_defects(folder: Path) -> bool:
    """Whether it is the root of a data set with defective images in it."""
    return bool(recognised(folder))


def recognised(folder: Path) -> list[Category]:
    """The categories of a data set; none if it is no data set, with defects as such sets have."""
    try:
        found = list(load_categories(folder))
    except (DatasetError, OSError):
        return []
    has_defects = any(sample.is_anomalous for category in found for sample in category.test)
    return found if has_defects else []


def defects_among(names: Iterable[str]) -> tuple[str, str] | None:
    """A folder of defective images among those of the images ``names``, and one of good images
    that tells it; None if there is none.

    Told by names alone, in an archive or at an address as on the disk.
    """
    paths = (name if is_address(name) else absolute(name) for name in names)
    folders = dict.fromkeys(posixpath.dirname(path.replace(os.sep, "/")) for path in paths)
    for folder in folders:
        for good in places_of_good(folder):
            if good in folders or Path(good).is_dir():
                return folder, good
    return None


def places_of_good(folder: str) -> list[str]:
    """Where good images are if ``folder`` holds defective ones; none if its name does not say so:
    ``test/<kind>``, ``bad`` and the like, ``test`` and ``boxes`` of a set of pairs."""
    above, name = posixpath.split(folder)
    root, part = posixpath.split(above)
    if name == "boxes" or (name == "test" and Path(above, "boxes").is_dir()):
        return [f"{above}/template"]
    tops = []
    if part == "test" and name.lower() not in GOOD_NAMES:
        tops = [f"{root}/train", above]
    elif name.lower() in BAD_NAMES:
        tops = [above]
    spellings = (str.lower, str.capitalize, str.upper)
    return [
        f"{top}/{case(good)}" for top in tops for good in sorted(GOOD_NAMES) for case in spellings
    ]


def templates(category: Category) -> list[Path]:
    return [sample.template for sample in category.test if sample.template is not None]


def folders_of(paths: list[Path]) -> str:
    found = [str(path) for path in dict.fromkeys(paths)]
    return ", ".join(found[:SHOWN]) + (f" and {len(found) - SHOWN} more" if found[SHOWN:] else "")


def folders_below(folder: Path, depth: int) -> list[Path]:
    """Sub-folders, and theirs, so many levels down."""
    inside = list_folders(folder)
    deeper = [path for each in inside for path in folders_below(each, depth - 1)] if depth else []
    return [*inside, *deeper]


def suggest_sub_folders(folder: Path) -> str:
    try:
        counts = [(path, len(list_images(path))) for path in folders_below(folder, DEPTH)]
    except OSError:
        return ""
    counts.sort(key=lambda found: found[0].name.lower() not in GOOD_NAMES)
    found = [f"{path} ({count})" for path, count in counts if count]
    if not found:
        return ""
    more = ", ..." if found[SHOWN:] else ""
    return f"Its sub-folders hold images: {', '.join(found[:SHOWN])}{more}. Give one of them."
