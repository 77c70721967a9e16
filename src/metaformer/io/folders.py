"""Lists the images of folders, and what is omitted with its reason.

Everything found is either an image or said: a file that might be an image and is not read, a folder
that may not be entered, and what is passed over on purpose (results, recycle bins, masks).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from metaformer.io.file_kinds import IMAGE_SUFFIXES, OTHER_IMAGE_SUFFIXES, file_omission, suffix_of
from metaformer.io.omissions import (
    NO_PERMISSION,
    NOT_READ,
    SKIPPED,
    Omission,
    no_permission,
    not_a_file,
)

RUN_FILE = "run.json"
OUTPUT_FOLDERS = ("maps", "scores")
OUTPUTS = (*OUTPUT_FOLDERS, "scores.csv", "failures.csv")
"""What ``predict`` writes: the file and one of these tell a folder of results."""

SHOWN_NAMES = 3
"""Of the files that a message lists."""
_CLUTTER = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
_BINS = {
    "__macosx": "a folder of the system",
    "@eadir": "thumbnails of a network drive",
    "@tmp": "a network drive's own folder",
    "#recycle": "a recycle bin",
    "@recycle": "a recycle bin",
    "#snapshot": "snapshots of a network drive",
    "@recently-snapshot": "snapshots of a network drive",
    "$recycle.bin": "a recycle bin",
    "recycler": "a recycle bin",
    "system volume information": "a folder of the system",
    "lost+found": "a folder of the system",
}
_TRUTH = frozenset({"ground_truth", "ground-truth", "groundtruth", "mask", "masks"})


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
    return (not name.startswith(".") or name == "..") and name.lower() not in _CLUTTER


def sort_file(
    path: str, name: str, is_stem: Callable[[str], bool], start: Callable[[], bytes] | None = None
) -> str | Omission | None:
    """Sort a file by its name: an image is its path; None if nobody would ask for it.

    Args:
        path: what messages call it.
        is_stem: whether its folder holds a file of that name, whatever its ending.
        start: as for ``file_omission``.
    """
    if not is_visible(name):
        return None
    suffix = suffix_of(name)
    if suffix not in IMAGE_SUFFIXES:
        return file_omission(path, name, start)
    stem = name[: -len(suffix)]
    if stem.lower().endswith("_mask") and is_stem(stem[: -len("_mask")]):
        return Omission(path, "a mask that marks defects; skipped.", SKIPPED)
    return path


def why_skipped(name: str, path: str, parent: str, is_results: Callable[[str], bool]) -> str:
    """Why the images of the folder ``path`` are not looked at; empty if they are.

    Args:
        name: of the folder.
        parent: the folder it is in.
        is_results: tells of a folder whether ``predict`` has written it.
    """
    if name.lower() in _TRUTH:
        return "masks that mark defects"
    if is_results(path) or (name in OUTPUT_FOLDERS and is_results(parent)):
        return "results of this program"
    return _BINS.get(name.lower(), "" if is_visible(name) else "a hidden folder")


def is_results(folder: str) -> bool:
    """A folder that ``predict`` has written."""
    if not os.path.isfile(os.path.join(folder, RUN_FILE)):  # noqa: PTH113, PTH118, a hot path
        return False
    return any(os.path.exists(os.path.join(folder, name)) for name in OUTPUTS)  # noqa: PTH110, PTH118


def walk(
    folder: Path | str, *, recursive: bool = False, follow_links: bool = True, skipped: str = ""
) -> Iterator[str | Omission]:
    """The image files of ``folder`` (by their ending) and what is omitted, in natural order.

    One folder is in memory at a time. Hidden files are skipped, hidden folders
    said; links are followed, each folder once. Pipes and devices are omitted; links to nothing are
    not, as reading tells.

    Args:
        skipped: a folder not to look into nor to speak of (its real path).

    Raises:
        FileNotFoundError: there is no such folder.
        NotADirectoryError: it is a file.
        PermissionError: it may not be listed.
    """
    yield from _walk(os.fspath(check_folder(folder)), recursive, follow_links, skipped, set())


def _walk(
    folder: str, recursive: bool, follow_links: bool, skipped: str, visited: set[str]
) -> Iterator[str | Omission]:
    here = os.path.realpath(folder)
    if here in visited:  # a link that leads back up
        return
    visited.add(here)
    with os.scandir(folder) as entries:
        found = [(entry.name, _is_folder(entry, follow_links)) for entry in entries]
    found.sort(key=lambda entry: natural_key(entry[0]))
    stems = {os.path.splitext(name)[0] for name, _ in found}  # noqa: PTH122
    for name, is_folder in found:
        path = os.path.join(folder, name)  # noqa: PTH118, a hot path
        if not is_folder:
            sorted_as = sort_file(path, name, stems.__contains__)
            if isinstance(sorted_as, str):
                sorted_as = not_a_file(path) or path
            if sorted_as is not None:
                yield sorted_as
        elif recursive and os.path.realpath(path) != skipped:
            why = _folder_omission(folder, path, name)
            if why is not None:
                yield why
                continue
            try:
                yield from _walk(path, recursive, follow_links, skipped, visited)
            except (FileNotFoundError, NotADirectoryError):
                continue  # gone meanwhile
            except PermissionError:
                yield no_permission(path)


def _is_folder(entry: os.DirEntry[str], follow_links: bool) -> bool:
    try:
        return entry.is_dir(follow_symlinks=follow_links)
    except OSError:
        return False


def _folder_omission(parent: str, path: str, name: str) -> Omission | None:
    """Why a folder is passed over by its name or content."""
    why = why_skipped(name, path, parent, is_results)
    if not why:
        return None
    # On Windows nobody may list the first; what is hidden nobody would ask for.
    if is_visible(name) and name.lower() != "system volume information":
        try:
            with os.scandir(path):
                pass
        except PermissionError:
            return no_permission(path)
        except OSError:
            return None
    return Omission(path, f"{why}; skipped.", SKIPPED)


def list_images(folder: Path | str, *, recursive: bool = False) -> list[Path]:
    """The image files of ``folder`` (by their ending), in natural order; may be empty.

    Raises: as ``walk``; PermissionError for a sub-folder, too.
    """
    found = []
    for entry in walk(folder, recursive=recursive):
        if isinstance(entry, str):
            found.append(Path(entry))
        elif entry.category == NO_PERMISSION:
            raise PermissionError(f"{entry.path}: {entry.reason}")
    return sorted(found, key=lambda path: natural_key(path.relative_to(folder)))


def describe_omissions(omissions: Sequence[Omission]) -> str:
    """A line for people: how many files of each ending, and others by reason with a few names."""
    endings: dict[str, int] = {}
    by_reason: dict[str, list[str]] = {}
    for omission in omissions:
        suffix = suffix_of(omission.path)
        if omission.category == NOT_READ and suffix in OTHER_IMAGE_SUFFIXES:
            endings[suffix] = endings.get(suffix, 0) + 1
        else:
            by_reason.setdefault(omission.reason, []).append(Path(omission.path).name)
    parts = []
    if endings:
        files = (
            f"{count} {suffix} file{'' if count == 1 else 's'}"
            for suffix, count in sorted(endings.items())
        )
        parts.append(f"{', '.join(files)} cannot be read here; convert to PNG, JPEG or TIFF.")
    for reason, names in by_reason.items():
        listed = ", ".join(names[:SHOWN_NAMES]) + (", ..." if names[SHOWN_NAMES:] else "")
        parts.append(f"{listed}: {reason}")
    return " ".join(parts)


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
