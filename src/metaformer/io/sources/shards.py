"""From what the user names to shards: small descriptions of the images a worker reads at a time.

A shard holds names and no pixels, travels between processes, and means the same images wherever
and whenever it is read. Files and the members of a zip archive come in shards of ``SHARD_IMAGES``;
a tar archive or a video can only be read from its start and is one shard.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

import cv2

from metaformer.io.folders import IMAGE_SUFFIXES, check_folder, is_visible, natural_key
from metaformer.io.sources.naming import (
    absolute,
    as_text,
    is_address,
    is_archive,
    is_image_name,
    is_video,
)
from metaformer.io.sources.remote import list_address, open_container

SHARD_IMAGES = 1000


@dataclass(frozen=True)
class Sources:
    """What a run reads, as the user named it."""

    arguments: tuple[str, ...]
    """Images, folders, archives, videos, addresses, and lists as ``@FILE``."""
    recursive: bool = False
    """Look into sub-folders."""
    every: int = 1
    """Of a video, every so many frames, the first included."""
    passed_over: str = ""
    """A folder that is not looked into: that of the results."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every must be 1 or more frames, got {self.every}.")


@dataclass(frozen=True)
class Files:
    """Image files and addresses of images."""

    paths: tuple[str, ...]


@dataclass(frozen=True)
class ZipMembers:
    """Members of a zip archive; none if the archive could not be opened, as reading it will say."""

    archive: str
    members: tuple[str, ...]


@dataclass(frozen=True)
class TarArchive:
    """All images of a tar archive, in the order they are in."""

    archive: str


@dataclass(frozen=True)
class Video:
    """Every so many frames of a video."""

    path: str
    every: int


Shard = Files | ZipMembers | TarArchive | Video


def shards(sources: Sources, size: int = SHARD_IMAGES) -> Iterator[Shard]:
    """The shards of ``sources``, in order, at most ``size`` images in one where it can be split.

    Lists one folder at a time.

    Raises:
        FileNotFoundError, NotADirectoryError, PermissionError: a folder or list cannot be read.
        ValueError: a list is not UTF-8 text, or an address is not known.
    """
    files: list[str] = []
    for found in _walk(sources):
        if isinstance(found, str):
            files.append(found)
        if files and (len(files) == size or not isinstance(found, str)):
            yield Files(tuple(files))
            files = []
        if isinstance(found, ZipMembers):
            starts = range(0, max(1, len(found.members)), size)
            yield from (ZipMembers(found.archive, found.members[i : i + size]) for i in starts)
        elif not isinstance(found, str):
            yield found
    if files:
        yield Files(tuple(files))


def count_images(sources: Sources) -> int | None:
    """How many images there are, for a progress bar: exact but for videos, whose headers may err.

    None where only reading everything can tell (tar archives). Raises: as ``shards``.
    """
    total: int | None = 0
    for shard in shards(sources):
        count = images_in(shard)
        total = None if total is None or count is None else total + count
    return total


def images_in(shard: Shard) -> int | None:
    """How many images there are in a shard, as ``count_images`` tells it."""
    match shard:
        case Files(paths=names) | ZipMembers(members=names):
            return len(names)
        case Video():
            return frames_of(shard)
        case TarArchive():
            return None


def frames_of(video: Video) -> int | None:
    """Frames to score, by what the header says; None if it says nothing."""
    capture = cv2.VideoCapture(video.path)
    frames = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
    capture.release()
    return -(-frames // video.every) if frames > 0 else None


def shard_digest(shard: Shard) -> str:
    """A name for the shard's results: the same for the same images, in any run."""
    match shard:
        case Files(paths=names):
            kind = "files"
        case ZipMembers(archive=archive, members=names):
            kind = f"zip {archive}"
        case TarArchive(archive=archive):
            kind, names = f"tar {archive}", ()
        case Video(path=path, every=every):
            kind, names = f"video {every} {path}", ()
    text = "\0".join([kind, *names])
    return hashlib.blake2b(as_text(text).encode(), digest_size=10).hexdigest()


def common_root(sources: Sources) -> str:
    """The deepest local folder that holds all of ``sources``; "/" if there is none.

    Raises: as ``shards``, for lists.
    """
    root: str | None = None
    for source in _named(sources):
        if is_address(source):
            continue
        path = absolute(source)
        folder = path if Path(path).is_dir() else str(Path(path).parent)
        if root != folder:
            root = folder if root is None else os.path.commonpath([root, folder])
    return root or "/"


def _named(sources: Sources) -> Iterator[str]:
    """The arguments, with the lines of lists in their place."""
    for argument in sources.arguments:
        if argument.startswith("@") and not Path(argument).exists():
            yield from _lines(Path(argument[1:]))
        else:
            yield argument


def _lines(path: Path) -> Iterator[str]:
    """The lines of a list that are not blank."""
    try:
        with path.open(encoding="utf-8-sig", errors="strict", newline=None) as file:
            for line in file:
                if name := line.rstrip("\r\n"):
                    yield name
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such list. Check the path.") from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not a list of images: the text is not UTF-8 ({error}). Write one path or "
            f"address on each line."
        ) from error


def _walk(sources: Sources) -> Iterator[str | ZipMembers | TarArchive | Video]:
    """Paths of images, and containers of images."""
    for source in _named(sources):
        is_remote = is_address(source)
        path = source if is_remote else str(Path(source))
        if not is_remote and Path(path).is_dir():
            visited: set[str] = set()
            yield from walk_folder(path, sources.recursive, sources.passed_over, visited)
        elif is_archive(path):
            is_zip = path.lower().endswith(".zip")
            yield ZipMembers(path, zip_members(path)) if is_zip else TarArchive(path)
        elif is_video(path):
            yield Video(path, sources.every)
        elif is_remote and Path(path).suffix.lower() not in IMAGE_SUFFIXES:
            yield from list_address(path, recursive=sources.recursive)
        else:
            yield path


def walk_folder(folder: str, recursive: bool, passed_over: str, visited: set[str]) -> Iterator[str]:
    """The image files of ``folder`` in natural order, one folder in memory at a time.

    Hidden files and folders are skipped; links are followed, each folder once.

    Raises: as ``listing.list_images``.
    """
    check_folder(folder)
    here = os.path.realpath(folder)
    if here in visited or here == passed_over:
        return
    visited.add(here)
    with os.scandir(folder) as entries:
        found = [
            (entry.name, is_folder)
            for entry in entries
            if is_visible(entry.name)
            and (
                (is_folder := entry.is_dir())
                or PurePath(entry.name).suffix.lower() in IMAGE_SUFFIXES
            )
        ]
    found.sort(key=lambda entry: natural_key(entry[0]))
    for name, is_folder in found:
        path = str(Path(folder, name))
        if not is_folder:
            yield path
        elif recursive:
            yield from walk_folder(path, recursive, passed_over, visited)


def zip_members(archive: str) -> tuple[str, ...]:
    """Names of the images in a zip archive, in the order they are in; none if it is damaged."""
    try:
        with open_container(archive) as file, zipfile.ZipFile(file) as opened:
            return tuple(info.filename for info in opened.infolist() if is_member(info))
    except (OSError, zipfile.BadZipFile, NotImplementedError):
        return ()


def is_member(info: zipfile.ZipInfo) -> bool:
    return not info.is_dir() and is_image_name(info.filename)
