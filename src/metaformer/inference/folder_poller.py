"""Which images of a folder are there and have stopped growing: a look now and then.

Looking works on every drive, network drives included; notices of changes do not.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from metaformer.io.folders import IMAGE_SUFFIXES, check_folder, is_visible, natural_key
from metaformer.io.sources.naming import name_digest


@dataclass(frozen=True)
class Arrival:
    """One version of a file."""

    path: str
    name: str
    """Relative to the folder watched, with slashes."""
    size: int
    mtime_ns: int

    @property
    def digest(self) -> bytes:
        """12 bytes that stand for name, size and time."""
        return version_digest(self.name, self.size, self.mtime_ns)


def version_digest(name: str, size: int, mtime_ns: int) -> bytes:
    """What a version is known by."""
    return name_digest(f"{name}\0{size}\0{mtime_ns}")


class Arrivals:
    """New images in ``folder``, told by their endings; hidden ones are passed over.

    Args:
        recursive: sub-folders too, links to folders excepted.
        is_known: versions of files that need not be told again.
    """

    def __init__(self, folder: Path, recursive: bool, is_known: Callable[[Arrival], bool]) -> None:
        self.folder = folder
        self.recursive = recursive
        self.growing = 0
        """Images at the last look that were new, or not as at the look before."""
        self._is_known = is_known
        self._seen: set[Arrival] = set()

    def look(self) -> list[Arrival]:
        """What is not known and is as it was at the last look; the oldest first.

        Raises:
            OSError: the folder cannot be listed.
        """
        check_folder(self.folder)
        there = [a for a in self._walk(os.fspath(self.folder), "") if not self._is_known(a)]
        settled = [arrival for arrival in there if arrival in self._seen]
        self.growing = len(there) - len(settled)
        self._seen = set(there)
        return sorted(settled, key=lambda arrival: (arrival.mtime_ns, natural_key(arrival.name)))

    def _walk(self, folder: str, prefix: str) -> Iterator[Arrival]:
        """The images below ``folder``, whose name is ``prefix``; a sub-folder may have gone."""
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if not is_visible(entry.name):
                        continue
                    ending = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122, a hot path
                    if ending in IMAGE_SUFFIXES:
                        arrival = as_it_is(entry.path, prefix + entry.name)
                        if arrival is not None:
                            yield arrival
                    elif self.recursive and entry.is_dir(follow_symlinks=False):
                        yield from self._walk(entry.path, f"{prefix}{entry.name}/")
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            if not prefix:
                raise


def as_it_is(path: str, name: str) -> Arrival | None:
    """The file's present version; None if there is no such file."""
    try:
        status = os.stat(path)  # noqa: PTH116, and what scandir knows may be stale
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return Arrival(path, name, status.st_size, status.st_mtime_ns)
