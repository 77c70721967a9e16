"""What a file is by its ending: an image, or what may hold images and is not read."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

from metaformer.io.atomic_files import open_file
from metaformer.io.omissions import NOT_READ, Omission

IMAGE_SUFFIXES = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".bmp", ".dib"}
    | {".tif", ".tiff", ".webp"}
)
"""Endings (lower case) of the files taken for images; case does not matter."""

OTHER_IMAGE_SUFFIXES = frozenset(
    {".avif", ".heic", ".heif", ".hif", ".jp2", ".j2k", ".j2c", ".jpf", ".jpx", ".jxl", ".jxr"}
    | {".gif", ".raw", ".pgm", ".ppm", ".pbm", ".pnm", ".pam", ".pfm", ".dcm", ".dicom", ".exr"}
    | {".tga", ".hdr", ".psd", ".pcx", ".ico", ".svg", ".eps", ".fits", ".fit", ".sgi", ".ras"}
    | {".btf", ".svs", ".ndpi", ".czi", ".lif", ".nd2", ".vsi", ".npy", ".npz", ".jls", ".wdp"}
    | {".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".rw2", ".srw", ".x3f"}
)
"""Endings of images that are not read: telephones, cameras and instruments write some of them."""

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
VIDEO_SUFFIXES = (".mp4", ".m4v", ".avi", ".mov", ".mkv", ".webm", ".mpg", ".mpeg")

OTHER_ARCHIVE_SUFFIXES = (".rar", ".7z", ".zipx", ".tar.zst", ".tzst", ".tar.lz4", ".cab", ".lzh")
OTHER_VIDEO_SUFFIXES = (
    *(".wmv", ".ts", ".mts", ".m2ts", ".hevc", ".h264", ".h265", ".264", ".265", ".flv"),
    *(".3gp", ".ogv", ".vob", ".mxf", ".asf"),
)
COMPRESSED_SUFFIXES = frozenset({".gz", ".bz2", ".xz", ".zst", ".lz4", ".z"})
UNFINISHED_SUFFIXES = frozenset(
    {".part", ".partial", ".filepart", ".crdownload", ".download", ".tmp"}
)
"""What browsers and copying programs add to a name until all of the file is there."""
UNFINISHED = "an unfinished download or copy. Let it end, or fetch it again."

START_BYTES = 16
"""First bytes of a file that tell an image."""
_STARTS = {
    b"\x89PNG\r\n\x1a\n": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
    b"II+\0": ".tif",
    b"MM\0+": ".tif",
}


def suffix_of(name: str) -> str:
    """The ending of a name in lower case, with its dot."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122, a hot path


def file_omission(
    path: str, name: str, start: Callable[[], bytes] | None = None
) -> Omission | None:
    """Why the file ``name`` is not scored though it may hold images; None if nobody would ask.

    Args:
        path: what messages call it.
        start: gives its first bytes; None reads them from ``path`` on the disk.
    """
    suffix, lower = suffix_of(name), name.lower()
    inner = lower.removesuffix(suffix)
    reason = ""
    if suffix in OTHER_IMAGE_SUFFIXES:
        reason = f"{suffix} files cannot be read here; convert to PNG, JPEG or TIFF."
    elif lower.endswith(ARCHIVE_SUFFIXES):
        reason = "an archive inside a folder or archive is not opened. Name it itself."
    elif lower.endswith(VIDEO_SUFFIXES):
        reason = "a video inside a folder or archive is not opened. Name it itself."
    elif lower.endswith(OTHER_ARCHIVE_SUFFIXES):
        reason = f"{suffix} archives cannot be read here. Unpack it, or pack it as zip or tar."
    elif lower.endswith(OTHER_VIDEO_SUFFIXES):
        reason = f"{suffix} videos cannot be read here. Convert it to MP4, and name it itself."
    elif suffix in COMPRESSED_SUFFIXES and is_image(inner):
        reason = "a compressed image is not read. Unpack it."
    elif suffix in UNFINISHED_SUFFIXES and (is_image(inner) or file_omission(path, inner)):
        reason = UNFINISHED
    elif not suffix and (ending := image_ending(start() if start else first_bytes(path))):
        reason = f"an image without an ending is not read. Add {ending} to its name."
    return Omission(path, reason, NOT_READ) if reason else None


def is_image(name: str) -> bool:
    return suffix_of(name) in IMAGE_SUFFIXES | OTHER_IMAGE_SUFFIXES


def first_bytes(path: str) -> bytes:
    """Of a file on the disk; none if it cannot be read."""
    with suppress(OSError, ValueError), open_file(path) as file:
        return file.read(START_BYTES)
    return b""


def image_ending(start: bytes) -> str:
    """The ending that the first bytes of a file call for; empty if they are no image's."""
    if start.startswith(b"BM") and start[6:10] == bytes(4):
        return ".bmp"
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return ".webp"
    return next((ending for first, ending in _STARTS.items() if start.startswith(first)), "")
