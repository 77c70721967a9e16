"""Listing the images of a folder, in an order that does not depend on the file system."""

from __future__ import annotations

import os
import re
from pathlib import Path

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
"""Endings (lower case) of the files taken for images; case does not matter."""

OTHER_IMAGE_SUFFIXES = frozenset(
    {".avif", ".heic", ".heif", ".jp2", ".jxl", ".gif", ".raw"}
    | {".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"}
)
"""Endings of images that are not read: telephones and cameras write some of them."""

_CLUTTER = frozenset({"thumbs.db", "desktop.ini", "__macosx"})


def natural_key(path: Path | str) -> tuple[object, ...]:
    """Sort key that puts ``img2`` before ``img10``, folder by folder, the same everywhere."""
    parts = Path(path).parts
    pieces = tuple(
        # Text and numbers never meet in a comparison: odd places of the split are the numbers.
        tuple(
            int(piece) if place % 2 else piece
            for place, piece in enumerate(re.split(r"([0-9]+)", part.casefold()))
        )
        for part in parts
    )
    return (pieces, parts)


def is_visible(name: str) -> bool:
    """False for what systems leave behind: ``.DS_Store``, ``._x.png``, ``Thumbs.db``."""
    return not name.startswith(".") and name.lower() not in _CLUTTER


def list_images(folder: Path | str, *, recursive: bool = False) -> list[Path]:
    """The image files of ``folder`` (by their ending), in natural order; may be empty.

    Hidden files and folders are skipped; links are followed, each folder once.

    Raises:
        FileNotFoundError: there is no such folder.
        NotADirectoryError: it is a file.
        PermissionError: it may not be read.
    """
    folder = check_folder(folder)
    found: list[Path] = []
    visited: set[str] = set()
    for where, folders, files in os.walk(folder, followlinks=True):
        here = os.path.realpath(where)
        if here in visited:  # a link that leads back up
            folders.clear()
            continue
        visited.add(here)
        found += [
            Path(where) / name
            for name in files
            if is_visible(name) and Path(name).suffix.lower() in IMAGE_SUFFIXES
        ]
        if not recursive:
            break
        # Sorted, so that which of two links to one folder is kept does not depend on the disk.
        folders[:] = sorted((name for name in folders if is_visible(name)), key=natural_key)
    return sorted(found, key=lambda path: natural_key(path.relative_to(folder)))


def count_passed_over(folder: Path | str, *, recursive: bool = False) -> dict[str, int]:
    """How many images of ``folder`` are of a kind that is not read: ending -> count.

    Raises: as ``list_images``.
    """
    counts: dict[str, int] = {}
    for _, folders, files in os.walk(check_folder(folder)):
        for name in files:
            suffix = Path(name).suffix.lower()
            if suffix in OTHER_IMAGE_SUFFIXES and is_visible(name):
                counts[suffix] = counts.get(suffix, 0) + 1
        if not recursive:
            break
        folders[:] = [name for name in folders if is_visible(name)]
    return dict(sorted(counts.items()))


def describe_passed_over(counts: dict[str, int]) -> str:
    """What ``count_passed_over`` has found and what to do about it; empty if it found nothing."""
    if not counts:
        return ""
    files = ", ".join(
        f"{count} {suffix} file{'' if count == 1 else 's'}" for suffix, count in counts.items()
    )
    return f"{files} cannot be read here; convert to PNG, JPEG or TIFF."


def list_folders(folder: Path | str) -> list[Path]:
    """The visible folders directly inside ``folder``, in natural order.

    Raises: as ``list_images``.
    """
    folder = check_folder(folder)
    inside = [path for path in folder.iterdir() if is_visible(path.name) and path.is_dir()]
    return sorted(inside, key=lambda path: natural_key(path.name))


def check_folder(folder: Path | str) -> Path:
    """``folder`` as a Path, once it is sure that it can be listed.

    Raises: as ``list_images``.
    """
    folder = Path(folder)
    try:
        with os.scandir(folder):
            return folder
    except FileNotFoundError:
        raise FileNotFoundError(f"{folder}: no such folder. Check the path.") from None
    except NotADirectoryError:
        raise NotADirectoryError(f"{folder}: a file; a folder is needed here.") from None
    except PermissionError:
        raise PermissionError(
            f"{folder}: no permission to list this folder. Change its permissions."
        ) from None
