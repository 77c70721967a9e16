"""The distances and the core's map of an episode, in batches and on any device.

The same readings as the ``feature`` preset's: Euclidean distances of pooled patches and of single
strides, and directions of strides 8, 16 and 32, each to the nearest patch of the support.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from metaformer.networks.gap_reader import FLOOR

POOLED = "p"
READINGS = ("p", "c8", "c16", "e8", "e16", "e32", "c32")
"""p: Euclidean of strides 8 and 16 joined and pooled over 3 x 3; e: Euclidean; c: 1 - cosine."""
SCALE = {"p": 50.0, "e8": 42.0, "e16": 60.0, "e32": 44.0}
"""Euclidean distances are divided by these, about their size on photos."""
MOST_PATCHES = 1024
"""Support patches that are compared with, at one stride."""
QUERY_CHUNK = 1024
OWN_REACH = 32
"""Pixels: a lone support image is compared with its own patches farther away than this."""

Features = Mapping[int, Tensor]
"""Stride -> (B, C, h, w)."""


def grids(features: Features) -> dict[str, Tensor]:
    """What is compared: ``p``, and each stride's features by name."""
    fine = features[8]
    coarse = F.interpolate(features[16], fine.shape[2:], mode="bilinear")
    pooled = F.avg_pool2d(torch.cat([fine, coarse], dim=1), 3, 1, 1)
    return {POOLED: pooled, **{str(stride): features[stride] for stride in (8, 16, 32)}}


def measure(
    query: Mapping[str, Tensor],
    support: Mapping[str, Tensor],
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Distances (B, 7, h, w), in the order of ``READINGS`` on the grid of stride 8, and the core's
    map (B, 1, h, w)."""
    found: dict[str, Tensor] = {}
    for name, grid in query.items():
        memory = support[name].flatten(2).transpose(1, 2).flatten(0, 1)  # (k * h * w, C)
        if len(memory) > MOST_PATCHES:
            drawn = torch.randperm(len(memory), generator=generator)[:MOST_PATCHES]
            memory = memory[drawn.to(memory.device)]
        rows = grid.flatten(2).transpose(1, 2).flatten(0, 1)
        distances = nearest(rows, memory, direction=name != POOLED)
        _put(found, name, [d.reshape(len(grid), *grid.shape[2:]) for d in distances])
    return together(found)


def measure_alone(own: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
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
    return together(found)


def nearest(
    rows: Tensor, memory: Tensor, *, direction: bool, barred: Tensor | None = None
) -> list[Tensor]:
    """Euclidean distance of rows (N, C) to the nearest of (M, C), and 1 - cosine to the nearest.

    Args:
        direction: False leaves out the second.
        barred: (N, M) pairs that do not count.
    """
    halves = memory.square().sum(1) / 2
    scale = 1 / memory.norm(dim=1).clamp_min(1e-6)
    best, best_direction = [], []
    for start in range(0, len(rows), QUERY_CHUNK):
        part = slice(start, start + QUERY_CHUNK)
        products = rows[part] @ memory.T
        if barred is not None:
            products = products.masked_fill(barred[part], -torch.inf)
        best.append((products - halves).amax(1))
        if direction:
            best_direction.append(products.mul_(scale).amax(1))
    squares = rows.square().sum(1)
    euclidean = (squares - 2 * torch.cat(best)).clamp_min(0).sqrt()
    if not direction:
        return [euclidean]
    lengths = squares.sqrt().clamp_min(1e-6)
    return [euclidean, (1 - torch.cat(best_direction) / lengths).clamp_min(0)]


def _put(found: dict[str, Tensor], name: str, pair: Sequence[Tensor]) -> None:
    if name == POOLED:
        found[POOLED] = pair[0] / SCALE[POOLED]
    else:
        found[f"e{name}"], found[f"c{name}"] = pair[0] / SCALE[f"e{name}"], pair[1]


def together(found: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Reading -> (B, h, w) of its own grid, to one grid and the core's map."""
    size = found[POOLED].shape[1:]
    maps = [
        found[name][:, None]
        if found[name].shape[1:] == size
        else F.interpolate(found[name][:, None], size, mode="bilinear")
        for name in READINGS
    ]
    stacked = torch.cat(maps, dim=1)
    return stacked, core_map(stacked)


def core_map(distances: Tensor) -> Tensor:
    """(B, 7, h, w) -> (B, 1, h, w): the pooled distance to 0.8 and directions to 0.2."""
    pooled, fine, coarse = (distances[:, i : i + 1] for i in range(3))
    return (pooled + FLOOR) ** 0.8 * ((fine + 2 * coarse) / 3 + FLOOR) ** 0.2
