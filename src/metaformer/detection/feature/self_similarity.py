"""What else an image shows.

A part that is normal but unlike the few normal images remembered, in its light or its grain, is
often like the rest of its own image. So the map is lowered where a token's nearest elsewhere on
the image is nearer than the nearest remembered, and nowhere raised: what is seen once on every
image (a hole, a chip of chocolate) has its like in the memory. Elsewhere is a quarter of the side
away or more, so that a defect is not compared with itself.
Ours (``docs/decisions/07-self-similarity.md``).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from math import ceil

import torch
from torch import Tensor

from metaformer.detection.nearest_neighbors import QUERY_CHUNK, as_columns, to_distance, with_ones
from metaformer.networks.patch_metric import COARSE, EUCLIDEAN, FINE, POOLED, READINGS, TokenMetric

NAMES = {reading: f"own.{reading}" for reading in READINGS}
"""Reading -> name of these distances among others."""
REACH = 0.25
"""Of the root of the image's area: tokens nearer than that, along both sides, are not elsewhere."""
EVERY = {FINE: 2, POOLED: 2, COARSE: 1}
"""One token in so many is compared with, along either side: neighbours overlap."""
MOST_A_SIDE = 32
"""Of an image worked at with more pixels, one in more, so that no more than the square of this is
compared with: time and memory grow with the tokens, not with their square."""
FAR = -1e3
"""How much less alike a token is to one that is not elsewhere."""


def own_distances(tokens: Mapping[str, Tensor], reach: float = REACH) -> dict[str, Tensor]:
    """(h, w) for each reading of the metric, in its own kind of distance, from each token (C, h, w)
    to the nearest elsewhere on the image; large where nothing is elsewhere."""
    return {
        name: elsewhere(tokens[reading], EVERY[reading], reach, euclidean=reading in EUCLIDEAN)
        for reading, name in NAMES.items()
    }


def elsewhere(tokens: Tensor, every: int, reach: float, *, euclidean: bool) -> Tensor:
    """(h, w) distance of each of ``tokens`` (C, h, w), Euclidean or 1 - cosine of unit tokens."""
    height, width = tokens.shape[1:]
    side = (height * width) ** 0.5
    every = max(every, ceil(side / MOST_A_SIDE))
    near = around(height, width, every, round(reach * side))
    others = as_columns(tokens[:, ::every, ::every].flatten(1).T, euclidean=euclidean)
    queries = tokens.flatten(1).T  # (h * w, C)
    asked = with_ones(queries) if euclidean else queries
    best = []
    for chunk, near_chunk in zip(
        torch.split(asked, QUERY_CHUNK), torch.split(near, QUERY_CHUNK), strict=True
    ):
        alike = chunk @ others  # (chunk, N)
        best.append(alike.add_(near_chunk, alpha=FAR).amax(1))
    return to_distance(torch.cat(best), queries if euclidean else None).reshape(height, width)


@lru_cache(maxsize=2)  # of stride 8 and of stride 16
def around(height: int, width: int, every: int, cells: int) -> Tensor:
    """(h * w, N) 1 where one of the tokens compared with is no more than ``cells`` away, else 0."""
    down, right = (
        (torch.arange(length)[:, None] - torch.arange(0, length, every)).abs() <= cells
        for length in (height, width)
    )  # (h, h / every), (w, w / every)
    near = down[:, None, :, None] & right[None, :, None, :]  # (h, w, h / every, w / every)
    return near.reshape(height * width, -1).to(torch.int8)  # a fifth of the time of a mask, added


def lowered(metric: TokenMetric, distances: Mapping[str, Tensor], share: float) -> Tensor:
    """(..., h, w) factor of the map, above 0 and at most 1: ``ratio``, where it is below 1, to the
    power of ``share``."""
    return ratio(metric, distances).clamp_max(1) ** share


def ratio(metric: TokenMetric, distances: Mapping[str, Tensor]) -> Tensor:
    """(..., h, w) how far what is elsewhere on the image is, for each 1 that what is remembered is;
    both joined as the metric has learned.

    Args:
        distances: on one grid, of the readings and by their ``NAMES``.
    """
    remembered = metric.join({reading: distances[reading] for reading in READINGS})
    own = metric.join({reading: distances[name] for reading, name in NAMES.items()})
    return own / remembered
