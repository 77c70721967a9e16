"""Receiving a multipart body, bounded while it comes in: size, time, number and length of parts.

The body is never held in memory as a whole: files go to unnamed temporary files as they arrive.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import BinaryIO

from fastapi import HTTPException, Request
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from metaformer.serve.http.limits import Limits, busy

MAX_FIELDS = 16
MAX_FIELD_BYTES = 4096
IN_MEMORY_BYTES = 64 * 2**10
"""Files beyond it wait on disk; times images times requests this is memory."""
SHOWN_NAME = 200
"""Characters of a file name that are given back."""


@dataclass(frozen=True)
class Upload:
    """One file of a request. ``name`` is for people alone: it never becomes a path."""

    name: str
    file: BinaryIO

    def read(self) -> bytes:
        self.file.seek(0)
        return self.file.read()


@asynccontextmanager
async def receive_form(
    request: Request, limits: Limits
) -> AsyncIterator[tuple[dict[str, str], list[Upload]]]:
    """Text fields and the files called ``images``; the files live as long as the context.

    Raises:
        HTTPException: 400 not a well-formed multipart body, 408 it took too long, 413 too large,
            415 another kind of body, 422 too many images, a field twice, a file of another name or
            none, 503 there is no room on the disk.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        found = f'found "{kind[:100]}"' if kind else "found none"
        raise HTTPException(415, f"the body must be multipart/form-data, {found}.")
    parser = MultiPartParser(
        request.headers,
        bounded(request, limits.body_bytes),
        max_files=limits.images + MAX_FIELDS,
        max_fields=MAX_FIELDS,
        max_part_size=MAX_FIELD_BYTES,
    )
    parser.spool_max_size = IN_MEMORY_BYTES
    try:
        async with asyncio.timeout(limits.upload_seconds):
            form = await parser.parse()
    except TimeoutError:
        raise HTTPException(
            408, f"the body did not arrive within {limits.upload_seconds:g} seconds."
        ) from None
    except MultiPartException as error:
        status = 422 if error.message.startswith("Too many") else 400
        raise HTTPException(status, f"the body is not accepted: {error.message}") from None
    except OSError as error:
        raise busy(503, f"the upload cannot be stored now ({error.strerror}).") from error
    except (ValueError, KeyError, IndexError):  # odd boundaries and character sets
        raise HTTPException(400, "the body is not well-formed multipart/form-data.") from None
    try:
        yield sort_parts(form, limits)
    finally:
        await form.close()


async def receive_json(request: Request, limits: Limits, most: int | None = None) -> bytes:
    """The whole body of a request that sends JSON.

    Args:
        most: bytes it may have; the limit for bodies if None.

    Raises:
        HTTPException: 408 it took too long, 413 too large, 415 another kind of body.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, f'the body must be application/json, found "{kind[:100]}".')
    try:
        async with asyncio.timeout(limits.upload_seconds):
            chunks = [chunk async for chunk in bounded(request, most or limits.body_bytes)]
    except TimeoutError:
        raise HTTPException(
            408, f"the body did not arrive within {limits.upload_seconds:g} seconds."
        ) from None
    return b"".join(chunks)


async def bounded(request: Request, most: int) -> AsyncGenerator[bytes, None]:
    """The body's chunks, broken off by 413 when they exceed ``most`` bytes together."""
    detail = f"the body has more than {most:,} bytes. Send less at once."
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > most:
        raise HTTPException(413, detail)
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > most:
            raise HTTPException(413, detail)
        yield chunk


def sort_parts(form: FormData, limits: Limits) -> tuple[dict[str, str], list[Upload]]:
    """Text fields by name, and the files called ``images``."""
    texts: dict[str, str] = {}
    uploads: list[Upload] = []
    for key, value in form.multi_items():
        if isinstance(value, UploadFile):
            if key != "images":
                raise HTTPException(422, f'files go into the field "images", found "{shown(key)}".')
            uploads.append(Upload(shown(value.filename or ""), value.file))
        elif key == "images":
            raise HTTPException(422, 'the field "images" must hold files, found text.')
        elif key in texts:
            raise HTTPException(422, f'the field "{shown(key)}" is given twice.')
        else:
            texts[key] = value
    if not uploads:
        raise HTTPException(422, 'no images: send one or more files in the field "images".')
    if len(uploads) > limits.images:
        raise HTTPException(
            422, f"{len(uploads)} images; accepted are at most {limits.images} in a request."
        )
    return texts, uploads


def shown(name: str) -> str:
    """A client's file name made safe to show: no folders, no control characters, cut if long."""
    name = name.replace("\\", "/").rpartition("/")[2]
    printable = "".join(c if c.isprintable() else "\ufffd" for c in name)
    return printable[:SHOWN_NAME]
