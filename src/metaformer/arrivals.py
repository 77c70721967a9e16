"""Which images of a folder are there and have stopped growing: a look now and then.

Looking works on every drive, network drives included; notices of changes do not.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from metaformer.listing import check_folder, natural_key
from metaformer.sources.naming import is_image_name, name_digest


@dataclass(frozen=True)
class Arrival:
    """One version of a file."""

    path: Path
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
        there = [arrival for arrival in self._walk(self.folder) if not self._is_known(arrival)]
        settled = [arrival for arrival in there if arrival in self._seen]
        self.growing = len(there) - len(settled)
        self._seen = set(there)
        return sorted(settled, key=lambda arrival: (arrival.mtime_ns, natural_key(arrival.name)))

    def _walk(self, folder: Path) -> Iterator[Arrival]:
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    path = Path(entry.path)
                    name = path.relative_to(self.folder).as_posix()
                    if is_image_name(name):
                        arrival = as_it_is(path, name)
                        if arrival is not None:
                            yield arrival
                    elif self.recursive and entry.is_dir(follow_symlinks=False):
                        yield from self._walk(path)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            if folder == self.folder:
                raise  # a sub-folder may have gone, or be none of our business


def as_it_is(path: Path, name: str) -> Arrival | None:
    """The file's present version; None if there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return Arrival(path, name, status.st_size, status.st_mtime_ns)
