"""Test samples on their way through an evaluation: which are taken, what is true of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metaformer.data.datasets.loading import Sample
from metaformer.io.images import read_mask

MAX_ASPECT_ERROR = 0.02
"""A mask whose sides relate otherwise than its image's by more than this is not its mask."""

Image = NDArray[np.uint8]
AnomalyMap = NDArray[np.float32]


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
