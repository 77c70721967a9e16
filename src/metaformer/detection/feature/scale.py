"""Whether the size of an image says how large what it shows is.

Photos of one camera share their size, which says nothing then. Images cut out of photos, to what is
to be seen on each, come in nearly as many sizes as there are images, and are of one scale: worked
at with one area, as others are, a small one would show its texture enlarged. Unless parts stand in
the same way on every image: then each was cut, or made smaller, to the part, and areas are what
they have in common.
Ours (``docs/decisions/07-self-similarity.md``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from statistics import geometric_mean

import numpy as np

from metaformer.detection.adaptation import Model, prepare
from metaformer.detection.feature.position_memory import measure_alignment
from metaformer.detection.feature.preset import FeatureModel
from metaformer.io.images import Image
from metaformer.networks.patch_metric import FINE

SHARED = 5
"""A size that two images and more have, and one in so many at least, is that of a camera: by chance
two of many cuts have one, too."""
FEW = 2
"""With so many images half of what there is to gain by sizes is trusted: they cover few scales."""
MOST_ASKED = 4
"""Images asked whether parts stand in the same way on all."""


def fit_to_sizes(model: Model, areas: Iterable[int], read: Callable[[int], Image]) -> Model:
    """The model for a product of whose normal images each has so many pixels.

    A model that has been told of sizes already is left as it is.

    Args:
        areas: height times width of each, 0 where it is not known; gone through only where sizes
            can matter.
        read: the image (H, W, 3) uint8 of an index.

    Raises:
        ImageError: an image cannot be read.
    """
    if not isinstance(model, FeatureModel) or not model.config.learned:
        return model
    if model.config.usual_side is not None:
        return model
    areas = list(areas)
    if 0 in areas:
        return model
    shared = shared_areas(areas)
    own = [i for i, area in enumerate(areas) if area not in shared]
    side = usual_side([areas[i] for i in own])
    if side is None:
        return model
    asked = np.linspace(0, len(own) - 1, min(len(own), MOST_ASKED)).round().astype(int)
    alignment = measure_alignment([prepare(model, read(own[i]))[FINE] for i in asked.tolist()])
    kept = len(own) / (len(own) + FEW) * (1 - alignment)
    config = replace(model.config, usual_side=side, size_kept=kept, shared_areas=shared)
    return model.with_config(config)


def shared_areas(areas: Sequence[int]) -> tuple[int, ...]:
    """Numbers of pixels that photos of a camera have; of several, where the support is of several
    products."""
    counts = Counter(areas)
    return tuple(
        sorted(a for a, count in counts.items() if count > 1 and SHARED * count >= len(areas))
    )


def usual_side(areas: Sequence[int]) -> float | None:
    """Side of a square as large as a typical image, by the pixels of each image; None where half of
    them or more have the size of another."""
    if len(set(areas)) < 2 or 2 * len(set(areas)) <= len(areas):
        return None
    return geometric_mean(areas) ** 0.5
