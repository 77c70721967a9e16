"""The images that a detector is made from: where they come from, and what is recorded of them."""

from __future__ import annotations

import hashlib
import platform
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage

from metaformer.data.datasets.suggestion import (
    holds_defects,
    suggest_good_folder,
    suggest_test_folder,
)
from metaformer.detection.support_thumbnails import MOST as MOST_THUMBNAILS
from metaformer.detection.support_thumbnails import make_thumbnail
from metaformer.io.encoding import encode_picture
from metaformer.io.folders import count_passed_over, describe_passed_over
from metaformer.io.images import IMAGE_SUFFIXES, ImageError, Source, list_images
from metaformer.io.sources.items import NamedBytes, items_of
from metaformer.io.sources.shards import Sources
from metaformer.io.tensors import TensorLike

ODD_DISTANCE = 4.0
"""Robust standard deviations above the median at which a support image is called odd."""
ODD_RATIO = 1.25
"""And it must score this many times the median, so that a tight support has no odd image."""
MIN_IMAGES_TO_DOUBT = 4
SIGNATURE_SIDE = 16
COPY_MEAN, COPY_MOST = 0.5, 2.5
"""Grey levels; signatures are stored rounded."""

ImageSource = Source
SupportImages = Path | str | Sources | ImageSource | Sequence[ImageSource]
MOST_BYTES = 2 * 2**30
"""Encoded images of archives and videos are held in memory, at most so many bytes of them."""


class OddSupportWarning(UserWarning):
    """A support image looks unlike the rest: perhaps a defect, perhaps another product."""


class PassedOverWarning(UserWarning):
    """Some files of a folder are images of a kind that is not read."""


class SkippedImageWarning(UserWarning):
    """An image cannot be read and was left out, as asked for."""


class DuplicateSupportWarning(UserWarning):
    """An image is a copy, or nearly one, of another support image; it was left out."""


class SupportRecord:
    """The support images so far, by name and pixels, each counted once.

    Copies of one image promise nothing about other parts, so a copy is not taken in. Nearly a copy
    is what the same photo looks like encoded again or at another size: its signature differs by at
    most ``COPY_MEAN`` grey levels on average and ``COPY_MOST`` anywhere. JPEG at quality 60 and
    half the size stay below both on eight sets, and of 805 different photos of good parts one pair
    does (ours).
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

    def take_in(self, name: str, pixels: NDArray[np.uint8]) -> bool:
        """Whether the image (H, W, 3) is a new one; it is recorded either way."""
        digest, signature = digest_of(pixels), signature_of(pixels)
        for image in self.images:
            if image["sha256"] == digest or are_copies(signature, image.get("signature")):
                self.copies.append(f"{name} (a copy of {image['name']})")
                return False
        # A file of an earlier version has none: later ones would stand for other images.
        if len(self.thumbnails) == len(self.images) < MOST_THUMBNAILS:
            self.thumbnails.append(make_thumbnail(pixels))
        hexed = signature.round().astype(np.uint8).tobytes().hex()
        self.images.append({"name": name, "sha256": digest, "signature": hexed})
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
    """(H, W, 3) -> (16, 16) mean grey levels."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    sides = (SIGNATURE_SIDE, SIGNATURE_SIDE)
    return np.asarray(cv2.resize(grey, sides, interpolation=cv2.INTER_AREA), np.float32)


def are_copies(signature: NDArray[np.float32], stored: str | None) -> bool:
    """Whether a signature is that of a stored one; files of earlier versions have none."""
    if stored is None:
        return False
    other = np.frombuffer(bytes.fromhex(stored), np.uint8).reshape(signature.shape)
    apart = np.abs(signature - other)
    return bool(apart.mean() <= COPY_MEAN and apart.max() <= COPY_MOST)


def support_sources(images: SupportImages) -> Sequence[ImageSource]:
    """The images that are meant: a sequence itself, or what is in a folder, archive, video, list
    (``@FILE``) or behind an address.

    Raises:
        ImageError: there are none, or one cannot be read.
        ValueError: the root of a data set is to be looked into, defective images and all.
        OSError: a folder cannot be listed.
    """
    if isinstance(images, (bytes, PillowImage.Image)):
        return [images]
    if isinstance(images, TensorLike):
        return [images] if len(images.shape) < 4 else list(images)
    if isinstance(images, np.ndarray):
        return [images] if images.ndim < 4 else list(images)
    if isinstance(images, (str, Path)):
        images = Sources((str(images),))
    if not isinstance(images, Sources):
        return list(images)
    found: list[ImageSource] = []
    for argument in images.arguments:
        if Path(argument).is_dir():
            found += folder_images(argument, images)
        else:
            found += stored_images(replace(images, arguments=(argument,)))
    if sum(len(image) for image in found if isinstance(image, bytes)) > MOST_BYTES:
        raise ValueError(
            f"{', '.join(images.arguments)}: over {MOST_BYTES / 2**30:.0f} GB of images in "
            f"archives or videos. Take the good images you need out into a folder."
        )
    return found


def folder_images(folder: str, sources: Sources) -> list[Path]:
    """The images of a folder, with a warning about what of it is not read.

    Raises: as ``support_sources``.
    """
    if sources.recursive and holds_defects(Path(folder)):
        raise ValueError(
            f"{folder}: a data set with defective images in it, which a support must not have. "
            f"{suggest_good_folder(Path(folder))}"
        )
    found = list_images(folder, recursive=sources.recursive)
    passed_over = describe_passed_over(count_passed_over(folder, recursive=sources.recursive))
    if not found:
        endings = ", ".join(sorted(IMAGE_SUFFIXES))
        usual = "Give the folder that holds the normal images itself."
        advice = passed_over or suggest_good_folder(Path(folder)) or usual
        raise ImageError(
            folder, f"no images in this folder (by their endings: {endings}). {advice}"
        )
    if passed_over:
        warnings.warn(f"{folder}: {passed_over}", PassedOverWarning, stacklevel=4)
    return found


def stored_images(sources: Sources) -> list[ImageSource]:
    """Image files as their paths; images in archives, videos and at addresses in memory, encoded.

    Raises: ImageError: there are none, or one cannot be had.
    """
    found: list[ImageSource] = []
    for item in items_of(sources):
        content = item.content
        if isinstance(content, ImageError):
            raise content
        if isinstance(content, np.ndarray):
            content = encode_picture(content)
        found.append(NamedBytes(content, item.name) if isinstance(content, bytes) else content)
    if not found:
        raise ImageError(", ".join(sources.arguments), "no images in it. Give the normal images.")
    return found


def named_sources(
    images: Path | str | Sources | Iterable[ImageSource],
) -> Iterator[tuple[str | None, ImageSource | ImageError]]:
    """Images to score, in order, with the names of those that were found in a folder, an archive, a
    video or a list.

    Raises:
        ImageError: there are none in what is named.
        OSError: a folder cannot be listed.
    """
    if isinstance(images, (str, Path)):
        images = Sources((str(images),))
    if not isinstance(images, Sources):
        yield from ((None, image) for image in images)
        return
    count = 0
    for item in items_of(images):
        count += 1
        content = item.content
        named = NamedBytes(content, item.name) if isinstance(content, bytes) else content
        yield item.name, named
    if not count:
        first = Path(images.arguments[0])
        advice = suggest_test_folder(first) if first.is_dir() else "Check the path."
        raise ImageError(", ".join(images.arguments), f"no images in it. {advice}".strip())


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
    """How unlike the others one support image is."""

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


def make_folds(count: int, most: int) -> list[set[int]]:
    """Leave-one-out up to ``most`` images, ``most`` interleaved folds beyond; none for one."""
    if count < 2:
        return []
    folds = min(count, most)
    return [set(range(first, count, folds)) for first in range(folds)]
