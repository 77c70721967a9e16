"""Names of the images of a run, and paths of their heat maps.

A name says where the image is and stays the same from run to run, so that a run can go on after a
stop: ``photos/001.png``, ``monday.zip/line 3/001.png``, ``belt.mp4#frame=120``,
``s3://bucket/001.png``.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
from pathlib import Path

from metaformer.io.file_kinds import ARCHIVE_SUFFIXES, VIDEO_SUFFIXES

LONGEST_PART = 180
"""Bytes of one part of a map's path; file systems take 255, and endings are added."""
ELSEWHERE = "elsewhere"
"""Folder of maps of images outside the folder that a run was started for."""


def is_address(source: str) -> bool:
    """``s3://bucket/key`` rather than a path."""
    return "://" in source


def is_archive(source: str) -> bool:
    return source.lower().endswith(ARCHIVE_SUFFIXES)


def is_video(source: str) -> bool:
    return source.lower().endswith(VIDEO_SUFFIXES)


def member_name(archive: str, member: str) -> str:
    """The name of an archive's member in the results."""
    return f"{archive}/{posixpath.normpath(member.lstrip('/'))}"


def absolute(path: str) -> str:
    """From the root of the file system, without ``..``; links are left as they are.

    Told from the text alone: ``Path.resolve`` would ask the disk for each of a million images.
    """
    return os.path.abspath(path)  # noqa: PTH100


def as_text(name: str) -> str:
    """The name as valid Unicode; bytes that are no text, which file names may hold, escaped."""
    return name.encode(errors="backslashreplace").decode()


def name_digest(name: str) -> bytes:
    """12 bytes that stand for a name: a million of them in memory weigh 80 MB, no more."""
    return hashlib.blake2b(as_text(name).encode(), digest_size=12).digest()


Version = tuple[int, int]
"""Size in bytes and time of the last change in nanoseconds: what a file is known by."""
UNKNOWN: Version = (0, 0)


def version_of(path: str) -> Version:
    """The present version of a file; unknown for addresses and what is not there."""
    if is_address(path):
        return UNKNOWN
    try:
        status = os.stat(path)  # noqa: PTH116, once for each image
    except (OSError, ValueError):
        return UNKNOWN
    return status.st_size, status.st_mtime_ns


def version_digest(name: str, size: int, mtime_ns: int) -> bytes:
    """Digest that identifies a version of a file."""
    return name_digest(f"{name}\0{size}\0{mtime_ns}")


def map_path(name: str, root: str) -> str:
    """Path of the map of the image ``name`` inside ``maps/``, with slashes.

    Local images keep their place below ``root``; others go under the scheme of their address or
    under ``elsewhere``, so that no two images share a map.
    """
    if is_address(name):
        scheme, _, rest = name.partition("://")
        parts = [scheme, *rest.split("/")]
    else:
        path = Path(absolute(name))
        inside = path.is_relative_to(root)
        parts = list(path.relative_to(root).parts) if inside else [ELSEWHERE, *path.parts[1:]]
    parts = [shorten(part) for part in parts if part not in ("", ".", "..")]
    return "/".join(parts) + ".png"


def shorten(part: str) -> str:
    """``part`` if a file system takes it with an ending added, else its start and a digest."""
    encoded = os.fsencode(part)
    if len(encoded) <= LONGEST_PART:
        return part
    digest = hashlib.blake2b(encoded, digest_size=8).hexdigest()
    return f"{as_text(part)[: LONGEST_PART // 4]}~{digest}"
