"""What of an archive or remote folder is an image and what is passed over, as in a folder."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable

from metaformer.io.folders import OUTPUT_FOLDERS, OUTPUTS, RUN_FILE, sort_file, why_skipped
from metaformer.io.omissions import SKIPPED, Omission
from metaformer.io.sources.naming import member_name, name_digest


class Members:
    """Sorts the members of ``container`` by their names, which are learnt first.

    A folder that is passed over is said once.
    """

    def __init__(self, container: str, names: Iterable[str] = ()) -> None:
        self._container = container
        self._stems: set[bytes] = set()
        self._runs: set[str] = set()
        self._outputs: set[str] = set()
        self._said: set[str] = set()
        self.learn(names)

    def learn(self, names: Iterable[str]) -> None:
        """Take in names of files and folders, with slashes."""
        for name in names:
            folder, _, last = clean(name).rpartition("/")
            self._stems.add(name_digest(posixpath.join(folder, posixpath.splitext(last)[0])))
            if last == RUN_FILE:
                self._runs.add(folder)
            elif last in OUTPUTS:
                self._outputs.add(folder)
            parts = folder.split("/")
            for depth, part in enumerate(parts):
                if part in OUTPUT_FOLDERS:
                    self._outputs.add("/".join(parts[:depth]))

    def sort(self, name: str, start: Callable[[], bytes] = bytes) -> str | Omission | None:
        """What the results call an image; or why it, or its folder, is not scored; None if it is
        neither, or its folder has been said.

        Args:
            start: gives the member's first bytes, by which an image without an ending is told.
        """
        folder, _, last = clean(name).rpartition("/")
        parts = folder.split("/") if folder else []
        for depth, part in enumerate(parts):
            parent, inside = "/".join(parts[:depth]), "/".join(parts[: depth + 1])
            if why := why_skipped(part, inside, parent, self._is_results):
                is_new = inside not in self._said
                self._said.add(inside)
                path = member_name(self._container, inside)
                return Omission(path, f"{why}; skipped.", SKIPPED) if is_new else None
        return sort_file(
            member_name(self._container, name),
            last,
            lambda stem: name_digest(posixpath.join(folder, stem)) in self._stems,
            start,
        )

    def _is_results(self, folder: str) -> bool:
        return folder in self._runs and folder in self._outputs


def clean(name: str) -> str:
    """A member's path from the top of its archive."""
    return posixpath.normpath(name.lstrip("/"))
