"""The distances that the transformer reads, in batches and on any device.

Euclidean distances of pooled patches and of single strides, and cosine distances of three strides,
each to the nearest patch of the support. Training and the adapted model share them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from metaformer.detection.nearest_neighbors import as_columns, nearest_distance
from metaformer.networks.feature_maps import GAP, Features
from metaformer.networks.support_description import FLOOR

POOLED = "p"
SCALE = {"p": 50.0, "e4": 20.0, "e8": 42.0, "e16": 60.0, "e32": 44.0}
"""Euclidean distances are divided by these, about their size on photos."""
MOST_PATCHES = 256
"""Support patches that are compared with, at one stride."""
OWN_REACH = 32
"""Pixels: a lone support image is compared with its own patches farther away than this."""


@dataclass(frozen=True)
class Readings:
    """What the transformer reads of a backbone's features.

    Distances are named: p: Euclidean of strides 8 and 16 joined and pooled over 3 x 3; e and a
    stride: Euclidean; c and a stride: 1 - cosine.
    """

    third: int
    """The stride that is compared beside 8 and 16."""
    channels: Mapping[int, int]
    """Channels of the features at strides 8 and 16."""
    cosine_share: float
    """Exponent of the cosine distance in the core's map."""
    weights: str
    """File of the transformer's weights in the package."""
    gaps: int = 0
    """Channels of the reconstruction gap; 0 if nothing is rebuilt."""
    size: float = 0.25
    """Share of the correction that is made (``docs/decisions/11-transformer.md``)."""

    @property
    def strides(self) -> tuple[int, ...]:
        return (8, 16, self.third)

    @property
    def distances(self) -> tuple[str, ...]:
        """Their names, in the order of the network's inputs."""
        return ("p", "c8", "c16", "e8", "e16", f"e{self.third}", f"c{self.third}")

    def grids(self, features: Features) -> dict[str, Tensor]:
        """What is compared: ``p``, and each stride's features by name."""
        fine = features[8]
        coarse = F.interpolate(features[16], (fine.shape[2], fine.shape[3]), mode="bilinear")
        pooled = F.avg_pool2d(torch.cat([fine, coarse], dim=1), 3, 1, 1)
        return {POOLED: pooled, **self.stride_grids(features)}

    def stride_grids(self, features: Features) -> dict[str, Tensor]:
        """Each stride's features by name."""
        return {str(stride): features[stride] for stride in self.strides}

    def together(self, found: Mapping[str, Tensor], features: Features) -> tuple[Tensor, Tensor]:
        """Name -> (B, h, w) of its own grid, to maps (B, D, h, w) on the grid of stride 8, the gap
        the last, and the core's map (B, 1, h, w)."""
        fine = features[8]
        size = (fine.shape[2], fine.shape[3])
        maps = [found[name][:, None] for name in self.distances]
        if self.gaps:
            maps.append(features[GAP])
        stacked = torch.cat([F.interpolate(grid, size, mode="bilinear") for grid in maps], dim=1)
        return stacked, core_map(stacked, self.cosine_share)


OF_BACKBONE = Readings(32, {8: 40, 16: 112}, 0.2, "gap_transformer.safetensors")
"""Of EfficientNet-Lite0, in the ``feature`` preset."""
OF_AUTOENCODER = Readings(
    4, {8: 128, 16: 256}, 0.5, "gap_transformer_autoencoder.safetensors", gaps=4
)
"""Of the autoencoder, in the ``pixel`` preset."""


def of_core(distances: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The distances that the core has measured already, from its (B, h, w) by descriptor."""
    pooled, fine, coarse = distances["pooled"], distances["8"], distances["16"]
    return {POOLED: pooled / SCALE[POOLED], "c8": fine, "c16": coarse}


def some_patches(support: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Name -> at most ``MOST_PATCHES`` rows (M, C) of grids (k, C, h, w), drawn at random."""
    found = {}
    for name, grid in support.items():
        memory = grid.flatten(2).transpose(1, 2).flatten(0, 1)  # (k * h * w, C)
        if len(memory) > MOST_PATCHES:
            drawn = torch.randperm(len(memory), generator=generator)[:MOST_PATCHES]
            memory = memory[drawn.to(memory.device)]
        found[name] = memory
    return found


def measure_to(
    query: Mapping[str, Tensor],
    memory: Mapping[str, Tensor],
    known: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Distances (B, h, w) by name, of grids to rows (M, C); ``known`` ones are not measured
    again."""
    found = {} if known is None else dict(known)
    for name, grid in query.items():
        rows = grid.flatten(2).transpose(1, 2).flatten(0, 1)
        size = (grid.shape[0], grid.shape[2], grid.shape[3])
        direction = name != POOLED and f"c{name}" not in found
        distances = nearest(rows, memory[name], direction=direction)
        _put(found, name, [d.unflatten(0, size) for d in distances])
    return found


def measure_alone(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same of one image (1, C, h, w) against itself, patches nearer than ``OWN_REACH`` left
    out."""
    found: dict[str, Tensor] = {}
    for name, grid in own.items():
        height, width = grid.shape[2:]
        reach = OWN_REACH // (8 if name == POOLED else int(name))
        rows = grid[0].flatten(1).T
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        places = torch.stack([y.flatten(), x.flatten()], dim=1).to(rows.device)
        near = (places[:, None] - places).abs().amax(2) <= reach
        near &= ~near.all(1, keepdim=True)
        distances = nearest(rows, rows, direction=name != POOLED, barred=near)
        _put(found, name, [d.reshape(1, height, width) for d in distances])
    return found


def nearest(
    rows: Tensor, memory: Tensor, *, direction: bool, barred: Tensor | None = None
) -> list[Tensor]:
    """Euclidean distance of rows (N, C) to the nearest of (M, C), and 1 - cosine to the nearest.

    Args:
        direction: False leaves out the second.
        barred: (N, M) pairs that do not count, for both distances.
    """
    if direction:
        unit_rows, unit_memory = F.normalize(rows, dim=1), F.normalize(memory, dim=1)
    if barred is not None:
        products = (rows @ memory.T).masked_fill(barred, -torch.inf)
        best = (products - memory.square().sum(1) / 2).amax(1)
        found = [(rows.square().sum(1) - 2 * best).clamp_min(0).sqrt()]
        if direction:
            cosines = (unit_rows @ unit_memory.T).masked_fill(barred, -torch.inf)
            found.append((1 - cosines.amax(1)).clamp_min(0))
        return found
    found = [nearest_distance(rows, as_columns(memory, euclidean=True), euclidean=True)]
    if direction:
        columns = as_columns(unit_memory, euclidean=False)
        found.append(nearest_distance(unit_rows, columns, euclidean=False))
    return found


def _put(found: dict[str, Tensor], name: str, pair: Sequence[Tensor]) -> None:
    euclidean = POOLED if name == POOLED else f"e{name}"
    found[euclidean] = pair[0] / SCALE[euclidean]
    if len(pair) > 1:
        found[f"c{name}"] = pair[1]


def core_map(distances: Tensor, cosine_share: float) -> Tensor:
    """(B, D, h, w) -> (B, 1, h, w): the weighted geometric mean of the pooled distance and
    directions."""
    pooled, fine, coarse = (distances[:, i : i + 1] for i in range(3))
    cosine = (fine + 2 * coarse) / 3
    return (pooled + FLOOR) ** (1 - cosine_share) * (cosine + FLOOR) ** cosine_share
