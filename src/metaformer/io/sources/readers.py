"""Opening a shard: its images one after the other, encoded as they are stored.

Members of archives are read into memory and never written anywhere. What cannot be read becomes
an item that says why, and the run continues.
"""

from __future__ import annotations

import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray

from metaformer.io.file_kinds import START_BYTES
from metaformer.io.images import ImageError, read_image
from metaformer.io.omissions import CUT_SHORT, MISSING, NOT_READ, Omission
from metaformer.io.sources.members import Members
from metaformer.io.sources.naming import is_address, member_name
from metaformer.io.sources.remote import open_container
from metaformer.io.sources.shards import (
    Files,
    NotScored,
    Shard,
    TarArchive,
    Video,
    ZipMembers,
    frames_by_header,
)

MAX_ENCODED_BYTES = 256 * 2**20
"""Largest member of an archive, and largest remote file, that is read."""
HEADER_ERROR = 0.01
"""Share of frames by which headers of sound videos may err."""
DAMAGED_ARCHIVE = (OSError, EOFError, RuntimeError, ValueError, NotImplementedError, zlib.error)
"""What zipfile and tarfile raise on damaged, encrypted or odd archives, or inherit from."""

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # a damaged video is ours to report


@dataclass(frozen=True)
class Item:
    """One image of a run, not decoded yet."""

    name: str
    """What it is called in the results; see ``naming``."""
    content: str | bytes | NDArray[np.uint8] | ImageError
    """A path or address to read, an encoded image, a decoded frame, or why there is none."""


def read_shard(shard: Shard, is_wanted: Callable[[str], bool]) -> Iterator[Item]:
    """The images of ``shard`` whose names are wanted, in order, one in memory at a time."""
    match shard:
        case Files(paths=paths):
            yield from (Item(path, path) for path in paths if is_wanted(path))
        case ZipMembers():
            yield from read_zip(shard, is_wanted)
        case TarArchive():
            yield from read_tar(shard, is_wanted)
        case Video():
            yield from read_video(shard, is_wanted)
        case NotScored(omissions=omissions):
            yield from (omitted(omission) for omission in omissions)


def omitted(omission: Omission) -> Item:
    return Item(omission.path, ImageError(omission.path, omission.reason, omission.category))


def read_zip(shard: ZipMembers, is_wanted: Callable[[str], bool]) -> Iterator[Item]:
    archive = shard.archive
    try:
        with open_container(archive) as file, zipfile.ZipFile(file) as opened:
            for member in shard.members:
                name = member_name(archive, member)
                if is_wanted(name):
                    size = opened.getinfo(member).file_size
                    yield Item(name, read_member(name, member, size, opened, member))
    except (zipfile.BadZipFile, *DAMAGED_ARCHIVE) as error:
        yield broken_archive(archive, error)


def read_tar(shard: TarArchive, is_wanted: Callable[[str], bool]) -> Iterator[Item]:
    archive = shard.archive
    members = Members(archive)
    try:
        with suppress(tarfile.TarError, *DAMAGED_ARCHIVE):  # met again, and said, below
            members.learn(info.name for _, info in tar_entries(archive))
        for opened, info in tar_entries(archive):
            start = partial(start_of, opened, info)
            found = None if info.isdir() else members.sort(info.name, start)
            if isinstance(found, str) and not info.isfile():
                kind = "a link" if info.issym() or info.islnk() else "neither a file nor a link"
                reason = f"{kind} inside a tar archive, which is not followed. Pack the file."
                found = Omission(found, reason, NOT_READ)
            if isinstance(found, Omission):
                yield omitted(found)
            elif found is not None and is_wanted(found):
                yield Item(found, read_member(found, info.name, info.size, opened, info))
    except (tarfile.TarError, *DAMAGED_ARCHIVE) as error:
        yield broken_archive(archive, error)


def start_of(opened: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    """First bytes of a tar archive's member; none of a link."""
    file = opened.extractfile(info) if info.isfile() else None
    return b"" if file is None else file.read(START_BYTES)


def tar_entries(archive: str) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """What a tar archive holds, one after the other; each is to be read before the next."""
    with open_container(archive) as file, tarfile.open(fileobj=file, mode="r|*") as opened:
        for info in opened:
            opened.members.clear()  # type: ignore[attr-defined]  # it would keep them all
            yield opened, info


def broken_archive(archive: str, error: Exception) -> Item:
    if isinstance(error, FileNotFoundError):
        return Item(archive, ImageError(archive, "no such file. Check the path.", MISSING))
    return Item(
        archive,
        ImageError(
            archive,
            f"the archive is damaged, cut short or of another kind ({error}); what came before "
            f"in a tar archive was read. Copy or pack it again.",
            CUT_SHORT,
        ),
    )


def read_member(name: str, member: str, size: int, opened: Any, key: Any) -> bytes | ImageError:
    """The content of a member of an opened archive, ``key`` being what the archive knows it by."""
    if ".." in member.split("/"):
        return ImageError(name, "its name leads out of the archive. Pack it under another name.")
    if size > MAX_ENCODED_BYTES:
        return too_many_bytes(name, size)
    try:
        is_zip = isinstance(opened, zipfile.ZipFile)
        with opened.open(key) if is_zip else opened.extractfile(key) as file:
            return read_limited(name, file)
    except (zipfile.BadZipFile, *DAMAGED_ARCHIVE) as error:
        if isinstance(opened, tarfile.TarFile):
            raise  # a stream cannot go on after damage
        return ImageError(name, f"cannot be taken out of the archive ({error}). Pack it again.")


def read_limited(name: str, file: BinaryIO) -> bytes | ImageError:
    """All of ``file``, unless that is more than ``MAX_ENCODED_BYTES``."""
    content = file.read(MAX_ENCODED_BYTES + 1)
    return content if len(content) <= MAX_ENCODED_BYTES else too_many_bytes(name, len(content))


def too_many_bytes(name: str, size: int) -> ImageError:
    return ImageError(
        name,
        f"{size:,} bytes; accepted inside archives and at addresses are at most "
        f"{MAX_ENCODED_BYTES:,}. Read it from a local file.",
    )


def read_video(shard: Video, is_wanted: Callable[[str], bool]) -> Iterator[Item]:
    path = shard.path
    if is_address(path):
        reason = "videos are read from local files only. Copy it here first."
        yield Item(path, ImageError(path, reason))
        return
    expected = frames_by_header(path)
    capture = cv2.VideoCapture(path)
    frame = 0
    try:
        while capture.isOpened() and capture.grab():
            name = f"{path}#frame={frame}"
            if frame % shard.every == 0 and is_wanted(name):
                is_decoded, pixels = capture.retrieve()
                if is_decoded:
                    yield Item(name, np.asarray(pixels[:, :, ::-1], dtype=np.uint8))
                else:
                    yield Item(name, ImageError(name, "this frame cannot be decoded."))
            frame += 1
    finally:
        capture.release()
    if frame == 0:
        reason = "no frame can be read. It is damaged or of an unknown kind; convert it to MP4."
        if not Path(path).exists():
            yield Item(path, ImageError(path, "no such file. Check the path.", MISSING))
        else:
            yield Item(path, ImageError(path, reason))
    elif expected - frame > max(1, expected * HEADER_ERROR):
        reason = (
            f"the video is cut short or damaged: {frame} frames could be read of {expected} by its "
            f"header. Copy or record it again."
        )
        yield Item(path, ImageError(path, reason, CUT_SHORT))


def decode_item(item: Item, white_level: int | None) -> NDArray[np.uint8] | ImageError:
    """Pixels (H, W, 3) uint8 RGB of an item, or why there are none."""
    content = item.content
    if isinstance(content, ImageError):
        return content
    try:
        return read_image(content, white_level=white_level)
    except ImageError as error:
        return ImageError(item.name, error.reason, error.category)


def fetch(item: Item) -> Item:
    """The item with the content of its address, if it has one, in memory."""
    if not (isinstance(item.content, str) and is_address(item.content)):
        return item
    try:
        with closing(open_container(item.content)) as file:
            return Item(item.name, read_limited(item.name, file))
    except FileNotFoundError:
        return Item(item.name, ImageError(item.name, "no such file. Check the address."))
    except Exception as error:  # each service raises errors of its own library
        reason = f"cannot be fetched ({error}). Check the address and the network."
        return Item(item.name, ImageError(item.name, reason))
