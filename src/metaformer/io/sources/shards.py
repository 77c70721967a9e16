"""From what the user names to shards: small descriptions of the images a worker reads at a time.

A shard holds names and no pixels, travels between processes, and means the same images wherever
and whenever it is read. Files and the members of a zip archive come in shards of ``SHARD_IMAGES``;
a tar archive or a video can only be read from its start and is one shard.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2

from metaformer.io.file_kinds import IMAGE_SUFFIXES, START_BYTES
from metaformer.io.folders import walk
from metaformer.io.omissions import Omission, no_permission, not_a_file
from metaformer.io.sources.lists import is_list, lines_of, lines_of_pipe
from metaformer.io.sources.members import Members
from metaformer.io.sources.naming import (
    absolute,
    as_text,
    is_address,
    is_archive,
    is_video,
)
from metaformer.io.sources.remote import list_address, open_container

SHARD_IMAGES = 1000


@dataclass(frozen=True)
class Sources:
    """The sources of a run, as the user named them."""

    arguments: tuple[str, ...]
    """Images, folders, archives, videos, addresses, and lists as ``@FILE``."""
    recursive: bool = False
    """Look into sub-folders."""
    every: int = 1
    """Of a video, every so many frames, the first included."""
    skipped: str = ""
    """A folder that is not looked into: that of the results."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every must be 1 or more frames, got {self.every}.")
        # A list from a pipe can be read once; sources are gone through several times.
        arguments: list[str] = []
        for argument in self.arguments:
            path = Path(argument[1:])
            if is_list(argument) and path.exists() and not path.is_file():
                arguments += lines_of_pipe(path)
            else:
                arguments.append(argument)
        object.__setattr__(self, "arguments", tuple(arguments))


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


@dataclass(frozen=True)
class NotScored:
    """Files that were found and are not scored, with reasons; each counts as a failure."""

    omissions: tuple[Omission, ...]


Shard = Files | ZipMembers | TarArchive | Video | NotScored


def shards(sources: Sources, size: int = SHARD_IMAGES) -> Iterator[Shard]:
    """The shards of ``sources``, in order, at most ``size`` images in one where it can be split.

    Lists one folder at a time.

    Raises:
        FileNotFoundError, NotADirectoryError, PermissionError: a folder or list cannot be read.
        ValueError: a list is not UTF-8 text, or an address is not known.
    """
    files: list[str] = []
    omissions: list[Omission] = []
    for found in _walk(sources):
        match found:
            case str():
                files.append(found)
            case Omission():
                omissions.append(found)
        is_other = not isinstance(found, (str, Omission))
        if files and (len(files) == size or is_other):
            yield Files(tuple(files))
            files = []
        if omissions and (len(omissions) == size or is_other):
            yield NotScored(tuple(omissions))
            omissions = []
        if isinstance(found, ZipMembers):
            starts = range(0, max(1, len(found.members)), size)
            yield from (ZipMembers(found.archive, found.members[i : i + size]) for i in starts)
        elif not isinstance(found, (str, Omission)):
            yield found
    if files:
        yield Files(tuple(files))
    if omissions:
        yield NotScored(tuple(omissions))


def count_images(sources: Sources) -> int | None:
    """Number of images, for a progress bar; exact except for videos, whose headers may be wrong.

    None where only reading everything can tell (tar archives). Raises: as ``shards``.
    """
    total: int | None = 0
    for shard in shards(sources):
        count = images_in(shard)
        total = None if total is None or count is None else total + count
    return total


def images_in(shard: Shard) -> int | None:
    """Number of images in a shard; see ``count_images``."""
    match shard:
        case Files(paths=names) | ZipMembers(members=names):
            return len(names)
        case Video():
            return frames_of(shard)
        case NotScored(omissions=omissions):
            return len(omissions)
        case TarArchive():
            return None


def frames_of(video: Video) -> int | None:
    """Frames to score, by what the header says; None if it says nothing."""
    frames = frames_by_header(video.path)
    return -(-frames // video.every) if frames > 0 else None


def frames_by_header(path: str) -> int:
    """Number of frames of a video by its header; 0 if it has none."""
    if not Path(path).is_file():  # a pipe would be waited for
        return 0
    capture = cv2.VideoCapture(path)
    frames = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
    capture.release()
    return max(0, frames)


def container_of(shard: Shard) -> str | None:
    """The archive or video that the images of a shard are in; None if they are files."""
    match shard:
        case ZipMembers(archive=path) | TarArchive(archive=path) | Video(path=path):
            return path
        case Files() | NotScored():
            return None


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
        case NotScored(omissions=omissions):
            kind, names = "not scored", tuple(omission.path for omission in omissions)
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
        if is_list(argument):
            yield from lines_of(Path(argument[1:]))
        else:
            yield argument


Found = str | Omission | ZipMembers | TarArchive | Video


def _walk(sources: Sources) -> Iterator[Found]:
    """Paths of images, containers of images, and what is omitted."""
    for source in _named(sources):
        is_remote = is_address(source)
        path = source if is_remote else str(Path(source))
        if not is_remote and Path(path).is_dir():
            try:
                yield from walk(path, recursive=sources.recursive, skipped=sources.skipped)
            except PermissionError:
                if len(sources.arguments) == 1:
                    raise  # nothing else was named
                yield no_permission(path)
        elif not is_remote and (omission := not_a_file(path)) is not None:
            yield omission
        elif is_archive(path):
            if path.lower().endswith(".zip"):
                yield from zip_members(path)
            else:
                yield TarArchive(path)
        elif is_video(path):
            yield Video(path, sources.every)
        elif is_remote and Path(path).suffix.lower() not in IMAGE_SUFFIXES:
            yield from list_address(path, recursive=sources.recursive)
        else:
            yield path


def start_of(opened: zipfile.ZipFile, name: str) -> bytes:
    """First bytes of a zip archive's member; none if it cannot be taken out."""
    unreadable = (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)
    with suppress(*unreadable), opened.open(name) as file:
        return file.read(START_BYTES)
    return b""


def zip_members(archive: str) -> Iterator[Omission | ZipMembers]:
    """The images in a zip archive, in the order they are in, and what of it is omitted.

    None if it is damaged, as reading it will say.
    """
    images: list[str] = []
    try:
        with open_container(archive) as file, zipfile.ZipFile(file) as opened:
            names = [info.filename for info in opened.infolist() if not info.is_dir()]
            members = Members(archive, names)
            for name in names:
                sorted_as = members.sort(name, partial(start_of, opened, name))
                if isinstance(sorted_as, Omission):
                    yield sorted_as
                elif sorted_as is not None:
                    images.append(name)
    except (OSError, zipfile.BadZipFile, NotImplementedError):
        images.clear()
    yield ZipMembers(archive, tuple(images))
