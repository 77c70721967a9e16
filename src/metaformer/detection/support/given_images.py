"""From what the user gives to images: folders, archives, videos, lists, arrays, tensors."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage

from metaformer.data.datasets.suggestion import (
    defects_among,
    holds_defects,
    suggest_good_folder,
    suggest_test_folder,
)
from metaformer.data.datasets.truth import FolderTruth
from metaformer.io.encoding import encode_picture
from metaformer.io.folders import describe_omissions, walk
from metaformer.io.images import IMAGE_SUFFIXES, ImageError, Source
from metaformer.io.omissions import (
    NO_PERMISSION,
    NOT_A_FILE,
    NOT_READ,
    SKIPPED,
    Omission,
)
from metaformer.io.sources.items import NamedBytes, items_of
from metaformer.io.sources.naming import is_address
from metaformer.io.sources.shards import Sources
from metaformer.io.tensors import TensorLike

OMITTED = frozenset({SKIPPED, NOT_READ, NOT_A_FILE, NO_PERMISSION})
"""Categories of what was found and is not used; an image that cannot be read ends adapting."""

ImageSource = Source
SupportImages = Path | str | Sources | ImageSource | Sequence[ImageSource]
SHOWN = 3
"""Files that a message names at most."""
MOST_BYTES = 2 * 2**30
"""Encoded images of archives and videos are held in memory, at most so many bytes of them."""


class PassedOverWarning(UserWarning):
    """Some files of a folder are not used: of a kind that is not read, pipes, masks."""


class SkippedImageWarning(UserWarning):
    """An image cannot be read and was left out, as asked for."""


def support_sources(images: SupportImages) -> Sequence[ImageSource]:
    """The images that are meant: a sequence itself, or what is in a folder, archive, video, list
    (``@FILE``) or behind an address.

    Raises:
        ImageError: there are none, or one cannot be read.
        ValueError: there are defective images of a data set among them, by their folders.
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
    found, omissions = list_support(images)
    warn_about_omissions(omissions)
    return found


def list_support(sources: Sources) -> tuple[list[ImageSource], list[Omission]]:
    """The images of ``sources``, files as their paths and others in memory, encoded; and what was
    found and is not used.

    Raises: as ``support_sources``.
    """
    found: list[ImageSource] = []
    omissions: list[Omission] = []
    for argument in sources.arguments:
        one = replace(sources, arguments=(argument,))
        images, omitted = list_folder(one) if Path(argument).is_dir() else list_stored(one)
        refuse_defects(argument, images)
        found += images
        omissions += omitted
    if sum(len(image) for image in found if isinstance(image, bytes)) > MOST_BYTES:
        raise ValueError(
            f"{', '.join(sources.arguments)}: over {MOST_BYTES / 2**30:.0f} GB of images in "
            f"archives or videos. Take the good images you need out into a folder."
        )
    return found, omissions


def refuse_defects(argument: str, images: Sequence[ImageSource]) -> None:
    """Raises: ValueError: some of these images are defective, by the folder they are in or by
    masks."""
    names = [image.name if isinstance(image, NamedBytes) else str(image) for image in images]
    if (found := defects_among(names)) is not None:
        defective, good = found
        is_near = Path(good).is_dir() or is_address(argument)
        advice = "Give that." if is_near else "Unpack it, and give that folder."
        raise ValueError(
            f"{argument}: defective images are among these, in {defective}, which a support must "
            f"not have. The good images are in {good}. {advice}"
        )
    truth = FolderTruth()
    files = [str(image) for image in images if isinstance(image, (str, Path))]
    marked = [sample for name in files if (sample := truth(name)) is not None and sample.masks]
    if marked:
        shown = ", ".join(f"{s.image} (by {s.masks[0].name})" for s in marked[:SHOWN])
        more = f" and {len(marked) - SHOWN} more" if marked[SHOWN:] else ""
        raise ValueError(
            f"{argument}: defective images are among these, by masks of their defects, which a "
            f"support must not have: {shown}{more}. Take them out, or give the folder of the good "
            f"ones."
        )


def list_folder(sources: Sources) -> tuple[list[ImageSource], list[Omission]]:
    """``list_support`` for one folder."""
    (folder,) = sources.arguments
    if sources.recursive and holds_defects(Path(folder)):
        raise ValueError(
            f"{folder}: a data set with defective images in it, which a support must not have. "
            f"{suggest_good_folder(Path(folder))}"
        )
    entries = list(walk(folder, recursive=sources.recursive))
    omissions = [entry for entry in entries if isinstance(entry, Omission)]
    found: list[ImageSource] = [Path(entry) for entry in entries if isinstance(entry, str)]
    if not found:
        endings = ", ".join(sorted(IMAGE_SUFFIXES))
        usual = "Give the folder that holds the normal images itself."
        advice = describe_omissions(omissions) or suggest_good_folder(Path(folder)) or usual
        raise ImageError(
            folder, f"no images in this folder (by their endings: {endings}). {advice}"
        )
    return found, omissions


def list_stored(sources: Sources) -> tuple[list[ImageSource], list[Omission]]:
    """``list_support`` for files, archives, videos, lists and addresses."""
    found: list[ImageSource] = []
    omissions: list[Omission] = []
    for item in items_of(sources):
        content = item.content
        if isinstance(content, ImageError):
            if content.category not in OMITTED:
                raise content
            omissions.append(Omission(content.path, content.reason, content.category))
            continue
        if isinstance(content, np.ndarray):
            content = encode_picture(content)
        found.append(NamedBytes(content, item.name) if isinstance(content, bytes) else content)
    if not found:
        advice = describe_omissions(omissions) or "Give the normal images."
        raise ImageError(", ".join(sources.arguments), f"no images in it. {advice}")
    return found, omissions


def warn_about_omissions(omissions: Sequence[Omission]) -> None:
    """``PassedOverWarning`` for each folder or archive that something was omitted of."""
    by_parent: dict[str, list[Omission]] = {}
    for omission in omissions:
        by_parent.setdefault(str(Path(omission.path).parent), []).append(omission)
    for parent, omitted in by_parent.items():
        warnings.warn(f"{parent}: {describe_omissions(omitted)}", PassedOverWarning, stacklevel=4)


def named_sources(
    images: Path | str | Sources | Iterable[ImageSource],
) -> Iterator[tuple[str | None, ImageSource | ImageError]]:
    """Images to score, in order, with the names of those that were found in a folder, an archive, a
    video or a list. What is no image to score, as masks, is passed over with a warning.

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
        content = item.content
        if isinstance(content, ImageError) and content.category == SKIPPED:
            warnings.warn(f"skipped: {content}", PassedOverWarning, stacklevel=3)
            continue
        count += 1
        yield item.name, NamedBytes(content, item.name) if isinstance(content, bytes) else content
    if not count:
        first = Path(images.arguments[0])
        advice = suggest_test_folder(first) if first.is_dir() else "Check the path."
        raise ImageError(", ".join(images.arguments), f"no images in it. {advice}".strip())
