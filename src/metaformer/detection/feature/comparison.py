"""Distances of an image's descriptors to those of a support, and the map that they make."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.detection.feature.config import FeatureConfig
from metaformer.detection.feature.feature_image import FeatureImage
from metaformer.detection.feature.memory_bank import (
    PIXELS,
    POOLED,
    Descriptors,
    MemoryBank,
    describe,
    to_rows,
)
from metaformer.detection.nearest_neighbors import NeighborSearch, aligned_distance, fit_grid

PIXEL_REACH = 1
"""Pixels of the working size that an aligned image may be off at a place, where it is compared
pixel by pixel. On 12 pairs of boards 1 is better than 0, 2 and 3
(``docs/decisions/08-pixel-preset.md``)."""
LEAST_DIFFERENCE = 0.02
"""Added to the difference of pixels, 0 to 1.7: where there is none, features still count."""


class BankComparison(nn.Module):
    """Name -> (B, h, w) distance to the nearest descriptor in a memory bank."""

    def __init__(self, bank: MemoryBank, config: FeatureConfig) -> None:
        super().__init__()
        self.config = config
        self.coreset = bank.coreset(config.coreset_size, config.cosine_rows)
        self.search = search_of(self.coreset, config)

    def forward(self, descriptors: Descriptors, without: int | None = None) -> dict[str, Tensor]:
        """``without``: index of a support image that is not compared with."""
        search = self.search
        if without is not None:
            search = search_of(self.coreset.without(without), self.config)
        return {
            name: search[name](to_rows(grid)).reshape(grid.shape[0], *grid.shape[2:])
            for name, grid in descriptors.items()
        }


def search_of(bank: MemoryBank, config: FeatureConfig) -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            name: NeighborSearch(
                rows, euclidean=name == POOLED, directions=config.principal_directions
            )
            for name, rows in bank.rows.items()
        }
    )


class AlignedComparison(nn.Module):
    """Name -> (B, h, w) distance to the nearest around the same place of a support image."""

    def __init__(self, support: Mapping[int, FeatureImage], config: FeatureConfig) -> None:
        super().__init__()
        self.config = config
        self.indices = [*support]
        self.grids = stacked_grids([*support.values()], config)

    def forward(self, descriptors: Descriptors, without: int | None = None) -> dict[str, Tensor]:
        """``without``: index of a support image that is not compared with."""
        found = {}
        for name, grid in descriptors.items():
            grids = self.grids[name]
            if without in self.indices:
                position = self.indices.index(without)
                grids = torch.cat([grids[:position], grids[position + 1 :]])
            grids = fit_grid(grids, (grid.shape[2], grid.shape[3]))
            finest = self.config.levels[0]
            if name == PIXELS:
                apart = aligned_distance(grid, grids, PIXEL_REACH, euclidean=True)
                found[name] = F.avg_pool2d(apart[:, None], finest)[:, 0]  # (B, h, w)
                continue
            level = finest if name == POOLED else int(name)
            found[name] = aligned_distance(
                grid, grids, self.config.reach_cells(level), euclidean=name == POOLED
            )
        return found


def stacked_grids(support: Sequence[FeatureImage], config: FeatureConfig) -> Descriptors:
    """Name -> (K, C, h, w) of all support images, sized as the first."""
    described = [describe(image.features, config.levels, config.cosine_share) for image in support]
    return {
        name: torch.cat(
            [fit_grid(each[name], (first.shape[2], first.shape[3])) for each in described]
        )
        for name, first in described[0].items()
    }


def fuse(distances: dict[str, Tensor], config: FeatureConfig) -> Tensor:
    """Name -> (B, h, w) distances -> (B, h, w) map on the finest grid: the weighted geometric mean
    of the Euclidean and the cosine distance, which needs no common unit; times the difference of
    pixels where it was measured."""
    share = config.cosine_share
    finest = distances[POOLED if share < 1 else str(config.levels[0])]
    size = (finest.shape[1], finest.shape[2])
    parts = []
    if share < 1:
        parts.append(distances[POOLED] ** (1 - share))
    if share > 0:
        weighted = [
            weight * F.interpolate(distances[str(level)][:, None], size, mode="bilinear")[:, 0]
            for level, weight in zip(config.levels, config.level_weights, strict=True)
        ]
        cosine = torch.stack(weighted).sum(0) / sum(config.level_weights)
        parts.append((cosine + config.cosine_floor) ** share)
    if PIXELS in distances:
        parts.append(distances[PIXELS] + LEAST_DIFFERENCE)
    return math.prod(parts[1:], start=parts[0])
