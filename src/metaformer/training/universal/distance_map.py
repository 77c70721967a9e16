"""The map that meta-training asks of the autoencoder's features: their distance to the nearest of
the support.

Differentiable, and without the transformer, which is trained afterwards on the finished autoencoder
(``training/transformer``). Ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.detection.feature.memory_bank import to_rows
from metaformer.detection.nearest_neighbors import as_columns, nearest_distance

STAGES = (1, 2, 3)
"""Encoder stages that are compared: strides 4, 8 and 16."""
STRIDE = 4
"""Pixels along a cell of the map."""
LEAST_UNIT = 0.01
"""Added to the units of distances, near zero on a flat support."""
MOST_QUERIES = 320
"""Cells of a support image that are compared with the others' to find a unit; evenly spread."""


class DefectLogit(nn.Module):
    """Map -> logit of a defect, by two learned numbers: 1 is normal, 3 is not."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(2.0))
        self.offset = nn.Parameter(torch.tensor(2.0))

    def forward(self, maps: Tensor) -> Tensor:
        return F.softplus(self.slope) * (maps - self.offset)


def distance_map(query: Sequence[Tensor], support: Sequence[Tensor]) -> Tensor:
    """Encoder stages of queries and support, (B, C, h, w) from stride 2 on -> (Q, H / 4, W / 4).

    The mean over strides of log2(1 + distance / unit), where the unit is the mean distance of a
    support image to the others: about 1 where all is normal, and a doubling counts as much at each
    stride.
    """
    layers = []
    size = query[STAGES[0]].shape[2:]
    for stage in STAGES:
        of_query, of_support = (F.normalize(x[stage].float(), dim=1) for x in (query, support))
        unit = mean_distance_between([image.flatten(1).T for image in of_support]) + LEAST_UNIT
        columns = as_columns(to_rows(of_support), euclidean=False)
        distance = nearest_distance(to_rows(of_query), columns, euclidean=False)
        maps = distance.reshape(len(of_query), 1, *of_query.shape[2:]) / unit
        layers.append(torch.log2(1 + F.interpolate(maps, size, mode="bilinear")))
    return torch.cat(layers, dim=1).mean(1)


def mean_distance_between(images: Sequence[Tensor]) -> Tensor:
    """Mean distance of each image's features (n, C) to the nearest of the others'.

    One image is compared with itself, one half with the other.
    """
    if len(images) == 1:
        half = len(images[0]) // 2
        images = [images[0][:half], images[0][half:]]
    distances = []
    for i, image in enumerate(images):
        others = torch.cat([other for j, other in enumerate(images) if j != i])
        some = image[:: -(-len(image) // MOST_QUERIES)]
        columns = as_columns(others, euclidean=False)
        distances.append(nearest_distance(some, columns, euclidean=False))
    return torch.cat(distances).mean()
