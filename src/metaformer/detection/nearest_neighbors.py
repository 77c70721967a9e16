"""Distances of patch features to their nearest neighbours in a memory bank."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.jit._trace import is_tracing

CHUNK = 1024
"""Queries and bank entries compared at once. The products then stay in the processor's cache: a
third of the time of comparing with all of a large bank at once."""


def as_columns(bank: Tensor, *, euclidean: bool) -> Tensor:
    """Bank (N, C) -> what queries are multiplied with: (C, N), or (C + 1, N) for Euclidean
    distances. Made once for a bank, it saves a fifth of the time of comparing."""
    if euclidean:  # |q - m|^2 / 2 = |q|^2 / 2 - (q m - |m|^2 / 2)
        bank = torch.cat([bank, -bank.square().sum(1, keepdim=True) / 2], dim=1)
    return bank.T.contiguous()


def nearest_distance(queries: Tensor, columns: Tensor, *, euclidean: bool) -> Tensor:
    """(Q,) distance of each query to its nearest neighbour.

    Args:
        queries: (Q, C); of unit length for the cosine distance.
        columns: what ``as_columns`` made of the bank.
        euclidean: Euclidean distance; otherwise 1 - cosine.
    """
    asked = torch.cat([queries, queries.new_ones(queries.shape[0], 1)], 1) if euclidean else queries
    if is_tracing():  # a loop over chunks would be fixed to the traced size
        best = (asked @ columns).amax(dim=1)
    else:
        parts = columns.split(CHUNK, dim=1)
        best = torch.cat(
            [
                torch.stack([(chunk @ part).amax(dim=1) for part in parts]).amax(dim=0)
                for chunk in asked.split(CHUNK)
            ]
        )
    if not euclidean:
        return (1 - best).clamp_min(0)
    return (queries.square().sum(1) - 2 * best).clamp_min(0).sqrt()


def aligned_distance(query: Tensor, grids: Tensor, reach: int, *, euclidean: bool) -> Tensor:
    """Distance of each cell to the nearest within ``reach`` cells of the same place.

    Args:
        query: (B, C, h, w); of unit length over C for the cosine distance.
        grids: (K, C, h, w), one a support image.
        euclidean: Euclidean distance; otherwise 1 - cosine.

    Returns:
        (B, h, w).
    """
    height, width = query.shape[2:]
    padded = F.pad(grids, (reach,) * 4, mode="replicate")  # (K, C, h + 2 reach, w + 2 reach)
    nearest: Tensor | None = None
    for down in range(2 * reach + 1):
        for right in range(2 * reach + 1):
            shifted = padded[:, :, down : down + height, right : right + width]
            if euclidean:
                each = (query[:, None] - shifted[None]).square().sum(2)  # (B, K, h, w)
            else:
                each = 1 - (query[:, None] * shifted[None]).sum(2)
            least = each.amin(1)
            nearest = least if nearest is None else torch.minimum(nearest, least)
    assert nearest is not None
    nearest = nearest.clamp_min(0)
    return nearest.sqrt() if euclidean else nearest


def fit_grid(grid: Tensor, size: tuple[int, int]) -> Tensor:
    """Resample (B, C, h, w) features to ``size``; unchanged if they fit."""
    if tuple(grid.shape[2:]) == tuple(size):
        return grid
    return F.interpolate(grid, size, mode="bilinear")


def merge_samples(
    old: Tensor, new: Tensor, *, stands_for: int, most: int, generator: torch.Generator
) -> Tensor:
    """At most ``most`` rows of ``old`` and ``new``, each as likely to be kept as any other.

    If ``old`` is a random sample, already at its most, of ``stands_for`` rows, the result is
    distributed as a random sample of those and ``new``.
    """
    if len(old) < most:
        stands_for = len(old)
    stands_for = max(stands_for, len(old))
    drawn = torch.randperm(stands_for + len(new), generator=generator)[:most]
    from_old = min(int((drawn < stands_for).sum()), len(old))
    kept_old = torch.randperm(len(old), generator=generator)[:from_old].sort().values
    kept_new = (drawn[drawn >= stands_for] - stands_for).sort().values
    return torch.cat([old[kept_old], new[kept_new]])
