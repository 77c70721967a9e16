"""Descriptors of patches, and the memory bank of those that a support shows.

PatchCore's idea (Roth et al. 2022): the patches of normal images are kept, and a patch of a new
image is as anomalous as it is far from the nearest one kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from metaformer.detection.nearest_neighbors import merge_samples, spread_out
from metaformer.networks import feature_maps
from metaformer.networks.feature_maps import Features

POOLED = "pooled"
"""The descriptor compared by Euclidean distance; the others are compared by direction."""
PIXELS = "pixels"
"""The image itself among descriptors, where aligned images are compared pixel by pixel, too."""
POOL = 3
"""Side of the neighbourhood whose mean is a pooled descriptor, in cells (PatchCore)."""

Descriptors = dict[str, Tensor]
"""Name -> (B, C, h, w): ``POOLED``, and the strides as strings."""
Rows = dict[str, Tensor]
"""Name -> (N, C)."""


def describe(features: Features, levels: Sequence[int], cosine_share: float) -> Descriptors:
    """Features -> the descriptors that have a share in the map.

    Returns:
        For each level (B, C, h, w) of unit length over C, and ``POOLED``: the features of all
        levels on the finest grid, averaged over 3 x 3 cells. Zeros beyond the border set the border
        apart, as in PatchCore's published code.
    """
    found: Descriptors = {}
    if cosine_share > 0:
        found = {str(level): F.normalize(features[level], dim=1) for level in levels}
    if cosine_share < 1:
        finest = features[levels[0]]  # (B, C, h, w)
        size = finest.shape[2:]
        grids = [F.interpolate(features[s], size, mode="bilinear") for s in levels[1:]]
        joined = torch.cat([finest, *grids], dim=1)
        found[POOLED] = F.avg_pool2d(joined, POOL, stride=1, padding=POOL // 2)
    if feature_maps.PIXELS in features:
        found[PIXELS] = features[feature_maps.PIXELS]
    return found


def to_rows(grid: Tensor) -> Tensor:
    """(B, C, h, w) -> (B * h * w, C)."""
    return grid.permute(0, 2, 3, 1).flatten(0, 2)


@dataclass(frozen=True)
class MemoryBank:
    """Descriptors of a support, and which of its images each is from."""

    rows: Rows
    owners: dict[str, Tensor]
    """Name -> (N,) int64: index of the support image of each row."""

    @classmethod
    def of(cls, images: Sequence[Rows], *, most: int, generator: torch.Generator) -> MemoryBank:
        """Of each image's rows, at random at most ``most`` of all of them."""
        rows, owners = {}, {}
        for name in images[0]:
            joined = torch.cat([image[name] for image in images])
            owner = torch.repeat_interleave(
                torch.arange(len(images)), torch.tensor([len(image[name]) for image in images])
            )
            if len(joined) > most:
                kept = torch.randperm(len(joined), generator=generator)[:most].sort().values
                joined, owner = joined[kept], owner[kept]
            rows[name], owners[name] = joined.contiguous(), owner
        return cls(rows, owners)

    def coreset(self, pooled: int, others: int) -> MemoryBank:
        """At most ``pooled`` pooled rows and ``others`` of each other kind, the same every time.

        Pooled rows are spread out; the others, of which a random choice loses nothing, are drawn
        at random.
        """
        rows, owners = {}, {}
        for name, all_rows in self.rows.items():
            most = pooled if name == POOLED else others
            kept = torch.arange(len(all_rows))
            if len(all_rows) > most:
                generator = torch.Generator().manual_seed(0)
                drawn = torch.randperm(len(all_rows), generator=generator)
                if name == POOLED:
                    drawn = spread_out(all_rows, drawn[: (most + 1) // 2], most)
                kept = drawn[:most].sort().values
            rows[name], owners[name] = all_rows[kept], self.owners[name][kept]
        return MemoryBank(rows, owners)

    def without(self, image: int) -> MemoryBank:
        """The memory bank without one support image."""
        kept = {name: owner != image for name, owner in self.owners.items()}
        return MemoryBank(
            {name: rows[kept[name]] for name, rows in self.rows.items()},
            {name: owner[kept[name]] for name, owner in self.owners.items()},
        )

    def extended(
        self, images: Sequence[Rows], *, earlier: int, most: int, generator: torch.Generator
    ) -> MemoryBank:
        """With rows of more images, each as likely to be kept as any other, at most ``most``.

        Args:
            earlier: how many support images this bank stands for.
        """
        new = MemoryBank.of(images, most=sum(map(total_rows, images)), generator=generator)
        rows, owners = {}, {}
        for name, old_rows in self.rows.items():
            both = torch.cat([old_rows, new.rows[name]])
            owner = torch.cat([self.owners[name], new.owners[name] + earlier])
            added = len(new.rows[name])
            kept = merge_samples(
                *torch.arange(len(both)).split([len(old_rows), added]),
                stands_for=round(earlier * added / len(images)),
                most=most,
                generator=generator,
            )
            rows[name], owners[name] = both[kept], owner[kept]
        return MemoryBank(rows, owners)


def total_rows(rows: Mapping[str, Tensor]) -> int:
    return sum(len(of_name) for of_name in rows.values())
