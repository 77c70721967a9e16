"""The images that a detector is made from: where they come from, and what is recorded of them."""

from __future__ import annotations

import hashlib
import platform
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from metaformer.detection.support.given_images import ImageSource
from metaformer.detection.support.support_thumbnails import MOST as MOST_THUMBNAILS
from metaformer.detection.support.support_thumbnails import make_thumbnail
from metaformer.io.images import guess_white_level
from metaformer.io.pixels import check_white_level
from metaformer.io.sources.items import NamedBytes

ODD_DISTANCE = 4.0
"""Robust standard deviations above the median at which a support image is called odd."""
ODD_RATIO = 1.25
"""And it must score this many times the median, so that a tight support has no odd image."""
MIN_IMAGES_TO_DOUBT = 4
SIGNATURE_SIDE = 16
COPY_MEAN, COPY_MOST = 0.5, 2.5
"""Grey levels; signatures are stored rounded."""
DARK = 64.0
MID_GREY = np.float32(128)
"""Taken off signatures before they are compared: small numbers round less."""


class OddSupportWarning(UserWarning):
    """A support image looks unlike the rest: perhaps a defect, perhaps another product."""


class DuplicateSupportWarning(UserWarning):
    """An image is a copy, or nearly one, of another support image; it was left out."""


class SupportRecord:
    """The support images so far, by name and pixels, each counted once.

    Copies of one image promise nothing about other parts, so a copy is not taken in. Nearly a copy
    is what the same photo looks like encoded again or at another size: its signature differs by at
    most ``COPY_MEAN`` grey levels on average and ``COPY_MOST`` anywhere
    (``docs/decisions/10-measured-core.md``, ours).
    """

    def __init__(
        self, images: Sequence[dict[str, Any]] = (), thumbnails: Sequence[bytes] = ()
    ) -> None:
        self.images = list(images)
        """Name, SHA-256 of the pixels and signature of each, ready for JSON."""
        self.thumbnails = list(thumbnails)
        """Small JPEGs of the first ``MOST_THUMBNAILS``, in their order; for reports alone."""
        self.copies: list[str] = []
        """Of what was not taken in: its name, and whose copy it is."""
        self._by_digest = {image["sha256"]: image["name"] for image in reversed(self.images)}
        self._signatures = Signatures()
        for image in self.images:
            if "signature" in image:  # files of earlier versions have none
                stored = np.frombuffer(bytes.fromhex(image["signature"]), np.uint8)
                self._signatures.add(stored.astype(np.float32), image["name"])

    def take_in(self, name: str, pixels: NDArray[np.uint8]) -> bool:
        """Whether the image (H, W, 3) is a new one; it is recorded either way."""
        digest, signature = digest_of(pixels), signature_of(pixels)
        original = self._by_digest.get(digest) or self._signatures.copy_of(signature)
        if original is not None:
            self.copies.append(f"{name} (a copy of {original})")
            return False
        # A file of an earlier version has none: later ones would stand for other images.
        if len(self.thumbnails) == len(self.images) < MOST_THUMBNAILS:
            self.thumbnails.append(make_thumbnail(pixels))
        rounded = signature.round()
        hexed = rounded.astype(np.uint8).tobytes().hex()
        self.images.append({"name": name, "sha256": digest, "signature": hexed})
        self._by_digest[digest] = name
        self._signatures.add(rounded, name)
        return True

    def warn(self) -> None:
        """``DuplicateSupportWarning`` naming what was not taken in, if there is anything."""
        if self.copies:
            warnings.warn(
                f"left out, because the same photo is among the normal images already: "
                f"{', '.join(self.copies)}. Copies say nothing about other parts.",
                DuplicateSupportWarning,
                stacklevel=3,
            )


def signature_of(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(H, W, 3) -> (256,) mean grey levels of 16 x 16 cells; those of dark images are
    doubled until the brightest is above ``DARK``, or different photos would be nearly the same."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    sides = (SIGNATURE_SIDE, SIGNATURE_SIDE)
    cells = cv2.resize(grey, sides, interpolation=cv2.INTER_AREA)
    brightest = max(1.0, float(cells.max()))
    while brightest <= DARK:  # not to a brightness: that would make two exposures the same
        cells, brightest = 2 * cells, 2 * brightest
    return np.asarray(cells, np.float32).reshape(-1)


class Signatures:
    """Signatures by name; a new one is compared with all of them at once."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._rows = np.empty((64, SIGNATURE_SIDE**2), np.float32)
        self._squares = np.empty(64, np.float32)
        """Squared length of each row."""

    def add(self, signature: NDArray[np.float32], name: str) -> None:
        count = len(self.names)
        if count == len(self._rows):  # room for twice as many
            self._rows = np.concatenate([self._rows, np.empty_like(self._rows)])
            self._squares = np.concatenate([self._squares, np.empty_like(self._squares)])
        row = signature - MID_GREY
        self._rows[count], self._squares[count] = row, row @ row
        self.names.append(name)

    def copy_of(self, signature: NDArray[np.float32]) -> str | None:
        """The name of the first that ``signature`` is a copy of."""
        count, row = len(self.names), signature - MID_GREY
        # A product with all rows is the fastest comparison, and no copy is farther apart than this.
        squared = self._squares[:count] + row @ row - 2 * (self._rows[:count] @ row)
        near = np.flatnonzero(squared <= 1.1 * len(row) * COPY_MEAN * COPY_MOST)
        apart = np.abs(self._rows[near] - row)  # (near, 256)
        found = near[(apart.mean(1) <= COPY_MEAN) & (apart.max(1, initial=0) <= COPY_MOST)]
        return self.names[found[0]] if len(found) else None


def choose_white_level(
    given: int | None, known: int | None, images: Sequence[ImageSource]
) -> int | None:
    """The white level to read ``images`` with: the one given, or known, or guessed; None: unknown.

    Raises:
        ValueError: it is not in 1..65535, or another one is known.
        ImageError: an image to guess from cannot be read.
    """
    if given is None:
        return guess_white_level(images) if known is None else known
    check_white_level(given)
    if known is not None and given != known:
        raise ValueError(
            f"white_level is {given}, but the detector's is {known} and cannot change: its images "
            f"were read with it. Adapt anew."
        )
    return given


def describe_source(source: ImageSource, index: int) -> str:
    """A name for provenance: the file's own, without folders that mean nothing elsewhere."""
    if isinstance(source, NamedBytes):
        return PurePosixPath(source.name).name
    return Path(source).name if isinstance(source, (str, Path)) else f"image {index}"


def digest_of(pixels: NDArray[np.uint8]) -> str:
    """SHA-256 of an image's pixels, whatever file they came in."""
    return hashlib.sha256(pixels.tobytes()).hexdigest()


def when_and_with_what() -> dict[str, Any]:
    """Date and versions, for provenance."""
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "metaformer-ad": version("metaformer-ad"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def warn_about_odd(scores: Sequence[SupportScore], names: Sequence[str]) -> None:
    """``OddSupportWarning`` naming the odd images, if there are any."""
    odd = [score for score in scores if score.is_odd]
    if not odd:
        return
    typical = float(np.median([score.raw_score for score in scores]))
    listed = ", ".join(f"{names[s.index]} ({s.raw_score / typical:.1f}x)" for s in odd)
    warnings.warn(
        f"these normal images look unlike the rest (score against the median): {listed}. Look at "
        f"them; adapt again without them if they show a defect or another product.",
        OddSupportWarning,
        stacklevel=3,
    )


@dataclass(frozen=True)
class SupportScore:
    """Raw score of a support image by a model of the others, with its outlier flag."""

    index: int
    raw_score: float
    is_odd: bool


def judge_support(scores: Sequence[float]) -> tuple[SupportScore, ...]:
    """Mark images far above the others: a defect or a stranger among the normals."""
    median = float(np.median(scores))
    deviation = 1.4826 * float(np.median(np.abs(np.asarray(scores) - median)))
    limit = max(median + ODD_DISTANCE * deviation, ODD_RATIO * median)
    may_doubt = len(scores) >= MIN_IMAGES_TO_DOUBT
    return tuple(
        SupportScore(i, score, may_doubt and score > limit) for i, score in enumerate(scores)
    )
