"""Files and folders that are found and not scored, each with its reason."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

SKIPPED = "passed over"
"""Category of what is no image to score, on purpose; it is said, and is no failure."""
UNREADABLE = "unreadable"
NOT_READ = "not read"
"""Category of files that may hold images and are of a kind that is not read."""
NO_PERMISSION = "no permission"
NOT_A_FILE = "not a file"
MISSING = "missing"
CUT_SHORT = "cut short"


@dataclass(frozen=True)
class Omission:
    """Something that was found and is not scored."""

    path: str
    reason: str
    category: str


def no_permission(path: str) -> Omission:
    return Omission(
        path, "no permission to list this folder. Change its permissions.", NO_PERMISSION
    )


def not_a_file(path: str) -> Omission | None:
    """Pipes, sockets and devices, which can make a reader wait for ever."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116, a hot path
    except (OSError, ValueError):
        return None  # reading it says why
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return None
    return Omission(path, "neither a file nor a link to one. Give an image file.", NOT_A_FILE)
