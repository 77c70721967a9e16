"""Scoring uploaded images: a few worker threads, in turn for all clients.

Every image is a task of its own, so a request of many images does not hold up a request of one.
Detectors keep nothing between images; several threads may use the same one.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Literal, TypeVar

import numpy as np
from fastapi import HTTPException, Request
from numpy.typing import NDArray

from metaformer.detection.detector import Detector
from metaformer.detection.scoring.overlays import draw_overlay, map_levels
from metaformer.detection.scoring.prediction import Prediction
from metaformer.inference.report.thumbnails import make_picture
from metaformer.io.encoding import data_address, encode_levels, encode_photo
from metaformer.io.images import (
    WHITE_LEVELS,
    ImageError,
    guess_white_level,
    read_image,
    resize_map,
    shrink,
)
from metaformer.serve.http.limits import Limits, busy
from metaformer.serve.http.schemas import NotScored, Scored
from metaformer.serve.http.uploads import Upload
from metaformer.serve.reports import to_answer

T = TypeVar("T")
MapKind = Literal["none", "png", "overlay", "report"]

OVERLAY_SIDE = 1200
"""An overlay has at most this many pixels squared: it is for looking at, and an answer holds
many."""
OVERLAY_QUALITY = 90
REPORT_SIDE = 512
"""Longer side of a photo in a report, as in those of the command line."""


UNKNOWN_WHITE_LEVEL = (
    "a 16-bit image, and the detector, made from 8-bit images, does not know which value is white: "
    "65535 is taken. Images of a 10 or 12 bit camera are nearly black then. Make the detector from "
    "16-bit images, or give it the white level (white_level): 1023, 4095, 16383 or 65535."
)


class ClientGone(Exception):
    """The client hung up before the answer was ready."""


class Workers:
    """Threads for all that takes time, so that the event loop always answers."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.waiting = 0
        """Tasks that have no thread yet."""
        self._turns = asyncio.Semaphore(count)
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="score")

    async def run(self, work: Callable[[], T]) -> T:
        """The result of ``work``, done by a worker thread when its turn comes."""
        self.waiting += 1
        try:
            await self._turns.acquire()
        finally:
            self.waiting -= 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self._turns.release()

    def stop(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


async def answer_in_time(request: Request, seconds: float, work: Coroutine[None, None, T]) -> T:
    """The result of ``work``, given up when time is over or the client is gone.

    Call it when the request's body has been read.

    Raises:
        HTTPException: 503, time is over.
        ClientGone: nobody waits for the answer.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(until_disconnected(request))
    try:
        await asyncio.wait({task, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ClientGone
        raise busy(
            503, f"not finished within {seconds:g} seconds. Try again, or send fewer images."
        )
    finally:
        gone.cancel()
        task.cancel()


async def until_disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def score_uploads(
    workers: Workers, detector: Detector, uploads: Sequence[Upload], kind: MapKind, limits: Limits
) -> list[Scored | NotScored]:
    """One entry an upload, in order.

    Raises:
        HTTPException: 422, not one image could be read.
    """

    def score(index: int) -> Scored | NotScored:
        return score_one(detector, index, uploads[index], kind, limits.pixels)

    entries = await asyncio.gather(
        *(workers.run(partial(score, index)) for index in range(len(uploads)))
    )
    failures = [entry for entry in entries if isinstance(entry, NotScored)]
    if len(failures) == len(entries):
        reasons = "; ".join(f"{f.name or f'image {f.index}'}: {f.error}" for f in failures[:3])
        more = f"; and {len(failures) - 3} more" if len(failures) > 3 else ""
        raise HTTPException(422, f"no image could be read. {reasons}{more}")
    return entries


def score_one(
    detector: Detector, index: int, upload: Upload, kind: MapKind, max_pixels: int
) -> Scored | NotScored:
    """The verdict on one upload, the same that ``Detector.predict`` gives on its bytes."""
    content = upload.read()
    white_level = detector.provenance["white_level"]
    try:
        # Where the level is not known `read_image` takes this one, and warns the whole process.
        pixels = read_image(
            content, white_level=white_level or WHITE_LEVELS[-1], max_pixels=max_pixels
        )
        warnings = [] if white_level else white_level_warnings(content)
    except ImageError as error:
        return NotScored(index=index, name=upload.name, error=error.reason)
    prediction = detector.predict_pixels(pixels)
    picture, report_picture = None, None
    if kind == "png":
        picture = data_address(encode_levels(map_levels(prediction.anomaly_map)), "png")
    elif kind == "overlay":
        picture = data_address(encode_photo(overlay(pixels, prediction), OVERLAY_QUALITY), "jpeg")
    elif kind == "report":
        report_picture = to_answer(
            make_picture(pixels, prediction, REPORT_SIDE, good=detector.nearest_good(pixels))
        )
    return Scored.of(
        index,
        upload.name,
        prediction,
        sha256=hashlib.sha256(content).hexdigest(),
        p_value_kind=detector.calibration.p_value_kind,
        map=picture,
        picture=report_picture,
        warnings=warnings,
    )


def white_level_warnings(content: bytes) -> list[str]:
    """What there is to doubt in an image read with a white level that nobody knows."""
    # Brighter than 14 bits can be: then 65535 is right.
    is_dark_and_deep = guess_white_level([content]) in WHITE_LEVELS[:-1]
    return [UNKNOWN_WHITE_LEVEL] if is_dark_and_deep else []


def overlay(pixels: NDArray[np.uint8], prediction: Prediction) -> NDArray[np.uint8]:
    """Heat map and outlines on the image, (h, w, 3) RGB, made smaller if it is large."""
    small = shrink(pixels, OVERLAY_SIDE)
    if small.shape != pixels.shape:
        anomaly_map = resize_map(prediction.anomaly_map, small.shape[:2])
        mask = (anomaly_map >= 0.5) & prediction.is_anomalous
        prediction = replace(prediction, anomaly_map=anomaly_map, mask=mask)
    return draw_overlay(small, prediction, caption=False)
