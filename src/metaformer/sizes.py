"""Whether the size of an image says how large what it shows is.

Photos of one camera share their sizes, and so do those of several products; sizes say nothing
then. Images cut out of photos, to what is to be seen on each, come in nearly as many sizes as there
are images, and are of one scale: worked at with one area, as others are, a small one would show its
texture enlarged. Unless parts stand in the same way on every image: then each was cut, or made
smaller, to the part, and areas are what they have in common.
Ours (``docs/decisions/0020-sizes.md``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import geometric_mean

import numpy as np

from metaformer.adaptation import Image, Model, prepare
from metaformer.feature_model import FeatureModel
from metaformer.metric import FINE
from metaformer.same_place import measure_alignment

FEW = 2
"""With so many images half of what there is to gain by sizes is trusted: they cover few scales."""
MOST_ASKED = 4
"""Images asked whether parts stand in the same way on all."""


def fit_to_sizes(model: Model, areas: Sequence[int], read: Callable[[int], Image]) -> Model:
    """The model for a product of whose normal images each has so many pixels.

    Args:
        areas: height times width of each; 0 where it is not known.
        read: the image (H, W, 3) uint8 of an index.

    Raises:
        ImageError: an image cannot be read.
    """
    if not isinstance(model, FeatureModel) or not model.config.learned:
        return model
    side = usual_side(areas)
    if side is None:
        return model
    count = len(areas)
    asked = np.linspace(0, count - 1, min(count, MOST_ASKED)).round().astype(int).tolist()
    alignment = measure_alignment([prepare(model, read(i))[FINE] for i in asked])
    kept = count / (count + FEW) * (1 - alignment)
    return model.with_config(replace(model.config, usual_side=side, size_kept=kept))


def usual_side(areas: Sequence[int]) -> float | None:
    """Side of a square as large as a typical image, by the pixels of each image; None where they
    share their sizes, or one's is not known (0)."""
    if 0 in areas or len(set(areas)) < 2 or 2 * len(set(areas)) <= len(areas):
        return None
    return geometric_mean(areas) ** 0.5
