"""Reading sets of photos with object masks: MSRA10K, DUTS, ECSSD, HKU-IS.

Training the prior takes the photos alone; the masks are for evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from metaformer.io.images import list_images

LAYOUTS: dict[str, tuple[str, str]] = {
    "MSRA10K": ("Imgs", "Imgs"),
    "MSRA10K, as unpacked": ("MSRA10K_Imgs_GT/Imgs", "MSRA10K_Imgs_GT/Imgs"),
    "DUTS train": ("DUTS-TR-Image", "DUTS-TR-Mask"),
    "DUTS test": ("DUTS-TE-Image", "DUTS-TE-Mask"),
    "ECSSD": ("images", "ground_truth_mask"),
    "HKU-IS": ("imgs", "gt"),
}
"""Folder of the photos and folder of the masks, below the root of the set."""


@dataclass(frozen=True)
class SaliencySample:
    """A photo and its object mask (white is object, read with ``read_mask``)."""

    image: Path
    mask: Path


def load_saliency_set(root: Path) -> list[SaliencySample]:
    """Photos of ``root`` with the mask of the same stem, in natural order.

    Raises:
        ValueError: the layout is none of ``LAYOUTS``, or a photo has no mask.
    """
    for images, masks in LAYOUTS.values():
        if (root / images).is_dir() and (root / masks).is_dir():
            return _pairs(root / images, root / masks)
    known = "; ".join(
        f"{name}: {images}/ and {masks}/" for name, (images, masks) in LAYOUTS.items()
    )
    raise ValueError(f"{root}: no layout of a saliency set found. Known: {known}.")


def _pairs(images: Path, masks: Path) -> list[SaliencySample]:
    # Masks are always PNG. Where photos share the folder with them (MSRA10K), photos are JPEG.
    by_stem = {path.stem: path for path in list_images(masks) if path.suffix.lower() == ".png"}
    photos = [
        path
        for path in list_images(images)
        if images != masks or path.suffix.lower() in {".jpg", ".jpeg"}
    ]
    if not photos:
        raise ValueError(f"{images}: no photo found.")
    for photo in photos:
        if photo.stem not in by_stem:
            raise ValueError(
                f"{photo}: no mask {photo.stem}.png in {masks}. Remove the photo or add the mask."
            )
    return [SaliencySample(photo, by_stem[photo.stem]) for photo in photos]
