"""The images of an evaluation: those of a support, those of a test, and what is true of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from metaformer.data.datasets.loading import Category, Sample, draw_support
from metaformer.io.images import guess_white_level, read_mask
from metaformer.io.pixels import check_white_level

MAX_ASPECT_ERROR = 0.02
"""A mask whose sides relate otherwise than its image's by more than this is not its mask."""

Image = NDArray[np.uint8]
AnomalyMap = NDArray[np.float32]
Shots = int | Literal["full"]


def template_of(sample: Sample) -> Path:
    if sample.template is None:
        raise ValueError(f"{sample.image}: it has no template, though its set is one of pairs.")
    return sample.template


def check_outputs(
    outputs: list[tuple[float, AnomalyMap]],
    images: Sequence[Image],
    batch: Sequence[Sample],
    name: str,
) -> None:
    """Raise ValueError unless there is one finite score and one finite map for each image."""
    if len(outputs) != len(images):
        raise ValueError(f"{name} gave {len(outputs)} scores for {len(images)} images.")
    for sample, image, (score, anomaly_map) in zip(batch, images, outputs, strict=True):
        if not math.isfinite(score):
            raise ValueError(f"{sample.image}: {name} gave the score {score}.")
        if anomaly_map.shape != image.shape[:2]:
            raise ValueError(
                f"{sample.image}: {name} gave a map of {anomaly_map.shape}, "
                f"the image is {image.shape[:2]}."
            )
        if not np.isfinite(anomaly_map).all():
            raise ValueError(f"{sample.image}: {name} gave a map with NaN or infinite values.")


def load_mask(sample: Sample, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    """Where the sample is defective; None if that is not known.

    A defective image whose mask is missing, or marks no pixel, is unknown: counting its pixels as
    normal would punish a method for finding the defect.
    """
    if not sample.is_anomalous:
        return np.zeros(shape, dtype=bool)
    union: NDArray[np.bool_] | None = None
    for path in sample.masks:
        mask = read_mask(path)
        if union is not None and mask.shape != union.shape:
            raise ValueError(
                f"{path}: mask of {mask.shape}, other masks of the image are {union.shape}."
            )
        union = mask if union is None else union | mask
    if union is None or not union.any():
        return None
    aspect = (union.shape[0] / union.shape[1]) / (shape[0] / shape[1])
    if abs(aspect - 1) > MAX_ASPECT_ERROR:
        raise ValueError(
            f"{sample.masks[0]}: mask of {union.shape} for {sample.image} of {tuple(shape)}; "
            f"a mask must have its image's proportions."
        )
    return union


def limit_samples(samples: Sequence[Sample], limit: int | None) -> list[Sample]:
    """At most ``limit`` samples, drawn once and for all, keeping the share of each class."""
    if limit is None or len(samples) <= limit:
        return list(samples)
    defective = [i for i, sample in enumerate(samples) if sample.is_anomalous]
    normal = [i for i, sample in enumerate(samples) if not sample.is_anomalous]
    wanted = round(limit * len(defective) / len(samples))
    if defective and normal:
        wanted = min(max(wanted, 1), limit - 1)
    rng = np.random.default_rng(0)
    kept = [*rng.permutation(defective)[:wanted], *rng.permutation(normal)[: limit - wanted]]
    return [samples[int(i)] for i in sorted(kept)]


def support_of(category: Category, shots: Shots, seed: int) -> list[Path]:
    return draw_support(category, None if shots == "full" else shots, seed)


def all_supports(
    category: Category, samples: Sequence[Sample], shots: Shots, seeds: Sequence[int]
) -> list[Path]:
    """The images that some seed fits a method to, to score ``samples``, once each."""
    if category.is_paired:
        return list(dict.fromkeys(template_of(sample) for sample in samples))
    drawn = (path for seed in seeds for path in support_of(category, shots, seed))
    return list(dict.fromkeys(drawn))


def white_levels(
    supports: Mapping[str, Sequence[Path]], given: int | None, unified: bool
) -> dict[str, int | None]:
    """The white level of each category by its name: the one given, or guessed from its supports,
    or with ``unified`` from those of all of them.

    Raises:
        ValueError: the one given is not in 1..65535.
        ImageError: an image to guess from cannot be read.
    """
    if given is not None:
        check_white_level(given)
        return dict.fromkeys(supports, given)
    if unified:
        return dict.fromkeys(supports, guess_white_level(chain(*supports.values())))
    return {name: guess_white_level(paths) for name, paths in supports.items()}
