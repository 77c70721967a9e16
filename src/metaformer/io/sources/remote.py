"""Addresses such as ``s3://bucket/key``, by way of fsspec (extra ``remote``)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

from metaformer.io.atomic_files import open_file
from metaformer.io.folders import natural_key
from metaformer.io.omissions import Omission
from metaformer.io.sources.members import Members
from metaformer.io.sources.naming import is_address

EXTRA = "pip install 'metaformer-ad[remote]'"


def filesystem(address: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path on it.

    Raises:
        ValueError: fsspec, or the package for this kind of address, is not installed, or the kind
            is not known.
    """
    try:
        import fsspec
    except ImportError:
        raise ValueError(
            f"{address}: addresses need the package fsspec. Install it: {EXTRA}."
        ) from None
    try:
        found, path = fsspec.core.url_to_fs(address)
    except ImportError as error:  # fsspec says which package the protocol needs
        raise ValueError(f"{address}: {error}.") from error
    except ValueError as error:
        raise ValueError(f"{address}: not an address that fsspec knows ({error}).") from error
    return found, str(path)


def open_address(address: str) -> Any:
    """A binary file object that can seek, to be closed by the caller.

    Raises:
        OSError: it is not there or cannot be reached; errors of other kinds that file systems
            raise become this one.
        ValueError: as ``filesystem``.
    """
    found, path = filesystem(address)
    try:
        return found.open(path, "rb")
    except OSError:
        raise
    except Exception as error:  # each service raises errors of its own library
        raise OSError(f"{address}: cannot be opened ({error}).") from error


def open_container(path: str) -> BinaryIO:
    """A file by its path or address, for reading.

    Raises:
        OSError: it is not there or cannot be read.
        ValueError: as ``filesystem``.
    """
    if is_address(path):
        file: BinaryIO = open_address(path)
        return file
    return open_file(path)


def list_address(address: str, *, recursive: bool) -> Iterator[str | Omission]:
    """Addresses of the images in a remote folder, folder by folder, in natural order, and what is
    omitted.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: as ``filesystem``.
    """
    found, path = filesystem(address)
    if not found.isdir(path):
        raise FileNotFoundError(f"{address}: no such folder. Check the address.")
    top = path.rstrip("/")
    members = Members(address.rstrip("/"))
    for where, folders, files in found.walk(path, maxdepth=None if recursive else 1):
        inside = str(where).rstrip("/").removeprefix(top).strip("/")
        members.learn(f"{inside}/{name}" for name in (*folders, *files))
        for name in sorted(files, key=natural_key):
            sorted_as = members.sort(f"{inside}/{name}")
            if sorted_as is not None:
                yield sorted_as
