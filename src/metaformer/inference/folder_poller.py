"""Poll a folder for new images whose files have stopped growing.

Polling works on every drive, network drives included; file-system events do not.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from metaformer.io.file_kinds import UNFINISHED
from metaformer.io.folders import check_folder, natural_key, walk
from metaformer.io.omissions import Omission
from metaformer.io.sources.naming import version_digest


@dataclass(frozen=True)
class FileVersion:
    """One version of a file."""

    path: str
    name: str
    """Relative to the folder watched, with slashes."""
    size: int
    mtime_ns: int
    omission: Omission | None = None
    """Why it is not scored, where that is known without reading it."""

    @property
    def digest(self) -> bytes:
        """12 bytes that stand for name, size and time."""
        return version_digest(self.name, self.size, self.mtime_ns)


class FolderPoller:
    """New images in ``folder``, told by their endings, and what of it is not scored.

    Args:
        recursive: sub-folders too, links to folders excepted.
        is_known: versions of files that need not be told again.
    """

    def __init__(
        self, folder: Path, recursive: bool, is_known: Callable[[FileVersion], bool]
    ) -> None:
        self.folder = folder
        self.recursive = recursive
        self.unsettled = 0
        """Images at the last poll that were new or had changed since the one before."""
        self._is_known = is_known
        self._previous: set[FileVersion] = set()

    def poll(self) -> list[FileVersion]:
        """New files that have not changed since the previous poll; the oldest first.

        Raises:
            OSError: the folder cannot be listed.
        """
        check_folder(self.folder)
        there = [a for a in self._found() if not self._is_known(a)]
        settled = [version for version in there if version in self._previous]
        self.unsettled = len(there) - len(settled)
        self._previous = set(there)
        return sorted(settled, key=lambda version: (version.mtime_ns, natural_key(version.name)))

    def _found(self) -> Iterator[FileVersion]:
        """The images there, and what is omitted, told from the folder watched."""
        for found in walk(self.folder, recursive=self.recursive, follow_links=False):
            path = found if isinstance(found, str) else found.path
            name = os.path.relpath(path, self.folder).replace(os.sep, "/")
            if isinstance(found, str):
                version = current_version(path, name)
                if version is not None:
                    yield version
            elif found.reason != UNFINISHED:  # it is on its way, and will have another name
                try:
                    status = os.stat(path)  # noqa: PTH116
                except OSError:
                    continue
                # What is in a folder may change, the reason stays.
                is_file = stat.S_ISREG(status.st_mode)
                size, time = (status.st_size, status.st_mtime_ns) if is_file else (0, 0)
                yield FileVersion(path, name, size, time, found)


def current_version(path: str, name: str) -> FileVersion | None:
    """The file's present version; None if there is no such file."""
    try:
        status = os.stat(path)  # noqa: PTH116, and what scandir knows may be stale
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return FileVersion(path, name, status.st_size, status.st_mtime_ns)
