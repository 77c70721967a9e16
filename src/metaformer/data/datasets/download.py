"""Fetching public data sets: download, check, unpack. The only module that uses the network."""

from __future__ import annotations

import hashlib
import lzma
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from metaformer.data.datasets.catalogue import PUBLIC_SETS, PublicSet
from metaformer.io.atomic_files import write_text

__all__ = ["PUBLIC_SETS", "FetchError", "PublicSet", "fetch", "fetch_set", "unpack"]

CHUNK = 1 << 20

Move = Callable[[int, int], None]
"""Moves a progress bar to (bytes done, bytes in all)."""


class FetchError(ValueError):
    """A data set that could not be fetched; the message says how to go on."""


def fetch(name: str, destination: Path | str, *, quiet: bool = False) -> Path:
    """Download a public data set, check it, and unpack it into ``destination/name``.

    A set that is there already is left alone. Sets to be downloaded by hand are checked and
    unpacked once their archive lies in ``destination``. Nothing is left half-done: the folder
    appears when all of it has been unpacked.

    Args:
        name: one of ``PUBLIC_SETS``.
        destination: folder to put it in; made if it does not exist.
        quiet: no progress bars.

    Returns:
        The folder, to be given to ``load_categories``. A file SOURCE.txt in it names the home
        page, the licence and the paper to cite.

    Raises:
        FetchError: the set is to be downloaded by hand (the message says how), the download
            failed, the checksum differs, or the archive is damaged or unsafe.
        ValueError: there is no such set.
        OSError: the disk is full, or ``destination`` cannot be written to.
    """
    if name not in PUBLIC_SETS:
        raise ValueError(f"no data set {name!r} is known; known are {', '.join(PUBLIC_SETS)}.")
    return fetch_set(PUBLIC_SETS[name], destination, quiet=quiet)


def fetch_set(public: PublicSet, destination: Path | str, *, quiet: bool = False) -> Path:
    """``fetch`` for a set that is described by the caller. Raises as ``fetch``."""
    destination = Path(destination)
    target = destination / public.name
    if target.is_dir():
        return target
    if public.archive is None:
        raise FetchError(
            f"{public.name} is fetched by hand. {public.by_hand} Home page: {public.homepage} "
            f"(licence: {public.licence})."
        )
    destination.mkdir(parents=True, exist_ok=True)
    archive = destination / public.archive
    came_by_hand = archive.is_file()
    if came_by_hand:
        with _bar(f"checking {archive.name}", quiet) as move:
            _check(archive, public, move)
    elif public.url is None:
        raise FetchError(
            f"{public.name} is fetched by hand. {public.by_hand} Put {public.archive} into "
            f"{destination} and run this again: it will be checked and unpacked. Home page: "
            f"{public.homepage} (licence: {public.licence})."
        )
    else:
        _download(public, archive, quiet)
    with _bar(f"unpacking {archive.name}", quiet) as move:
        unpack(archive, target, note=_note(public), move=move)
    if not came_by_hand:
        archive.unlink()
    return target


def _check(archive: Path, public: PublicSet, move: Move) -> None:
    if public.sha256 is None:
        return
    digest, done, total = hashlib.sha256(), 0, archive.stat().st_size
    with archive.open("rb") as stream:
        while block := stream.read(CHUNK):
            digest.update(block)
            done += len(block)
            move(done, total)
    if digest.hexdigest() != public.sha256:
        raise FetchError(
            f"{archive}: its SHA-256 is {digest.hexdigest()}, that of {public.name} is "
            f"{public.sha256}. It is damaged, incomplete or another version: remove it and "
            f"download it again. {public.by_hand} Home page: {public.homepage}"
        )


class _DownloadBar:
    """A progress bar with the interface that pooch calls."""

    def __init__(self, move: Move) -> None:
        self.move = move
        self.total = 0
        self.done = 0

    def update(self, count: int) -> None:
        self.done += count
        self.move(self.done, self.total)

    def reset(self) -> None:
        self.done = 0

    def close(self) -> None:
        pass


def _download(public: PublicSet, archive: Path, quiet: bool) -> None:
    import pooch  # with requests, which nothing else needs
    from requests import RequestException

    pooch.get_logger().setLevel("WARNING")
    with _bar(f"downloading {archive.name}", quiet) as move:
        downloader = pooch.HTTPDownloader(progressbar=_DownloadBar(move), chunk_size=CHUNK)
        try:
            pooch.retrieve(
                public.url,
                known_hash=f"sha256:{public.sha256}",
                fname=archive.name,
                path=archive.parent,
                downloader=downloader,
            )
        except RequestException as error:
            raise FetchError(
                f"{public.url}: the download failed ({error}). Check the connection and try "
                f"again, or do it by hand: {public.by_hand} Put {archive.name} into "
                f"{archive.parent} and run this again. Home page: {public.homepage}"
            ) from error
        except ValueError as error:
            raise FetchError(
                f"{public.url}: the downloaded file is not {public.name} as it is known "
                f"({str(error).splitlines()[0]}). Try again; if it stays so, the set has changed "
                f"at its source: see {public.homepage}"
            ) from error


def unpack(
    archive: Path, target: Path, *, note: str = "", move: Move = lambda done, total: None
) -> None:
    """Unpack a zip or tar archive into the new folder ``target``, in one step.

    Args:
        archive: .zip, or .tar with any compression.
        target: folder to make; it must not exist, its parent must.
        note: written into SOURCE.txt in it.
        move: called with (bytes read, bytes in all).

    Raises:
        FetchError: not such an archive, damaged, or with entries that are links or would land
            outside the folder.
    """
    size = archive.stat().st_size
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
        root = Path(temporary) / target.name
        root.mkdir()
        try:
            with archive.open("rb") as raw:
                for name, stream in _entries(raw):
                    path = _place(root, name, archive)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with path.open("wb") as output:
                        shutil.copyfileobj(stream, output, CHUNK)
                    move(min(raw.tell(), size), size)
        except (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, EOFError) as error:
            raise FetchError(
                f"{archive}: damaged, or neither zip nor tar ({error}). Download it again."
            ) from error
        if note:
            write_text(root / "SOURCE.txt", note)
        root.rename(target)


def _entries(raw: IO[bytes]) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and content of each file; folders are left out, other kinds refused."""
    # Not zipfile.is_zipfile: it also takes a tar archive that ends in a zip archive.
    is_zip = raw.read(4) in (b"PK\x03\x04", b"PK\x05\x06")
    raw.seek(0)
    if is_zip:
        with zipfile.ZipFile(raw) as zipped:
            for info in zipped.infolist():
                if not info.is_dir():
                    with zipped.open(info) as stream:
                        yield info.filename, stream
        return
    with tarfile.open(fileobj=raw, mode="r:*") as tarred:
        for member in tarred:
            if member.isdir():
                continue
            content = tarred.extractfile(member) if member.isfile() else None
            if content is None:
                raise tarfile.TarError(f"{member.name} is a link or a device")
            yield member.name, content


def _place(root: Path, name: str, archive: Path) -> Path:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or not path.parts:
        raise FetchError(f"{archive}: holds {name!r}, which would land elsewhere. Do not use it.")
    return root.joinpath(*path.parts)


def _note(public: PublicSet) -> str:
    return (
        f"{public.title}\nHome page: {public.homepage}\nLicence: {public.licence}\n"
        f"Cite: {public.citation}\nSHA-256 of {public.archive}: {public.sha256 or 'not known'}\n"
    )


@contextmanager
def _bar(label: str, quiet: bool) -> Iterator[Move]:
    console = Console(stderr=True)
    columns: tuple[Any, ...] = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    hidden = quiet or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total or None)
