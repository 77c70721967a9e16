"""Distances of patch features to their nearest neighbours in a memory bank."""

from __future__ import annotations

from functools import reduce
from itertools import product, starmap

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.jit._trace import is_tracing

QUERY_CHUNK, BANK_CHUNK = 256, 1024
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
    if is_tracing():  # a loop over chunks would be fixed to the traced sizes
        best = (asked @ columns).amax(1)
    else:
        parts = columns.split(BANK_CHUNK, dim=1)
        best = torch.cat(
            [
                torch.stack([(chunk @ part).amax(1) for part in parts]).amax(0)
                for chunk in asked.split(QUERY_CHUNK)
            ]
        )
    if not euclidean:
        return (1 - best).clamp_min(0)
    return (queries.square().sum(1) - 2 * best).clamp_min(0).sqrt()


class NeighborSearch(nn.Module):
    """(Q, C) queries -> (Q,) distance of each to its nearest neighbour in a bank.

    Args:
        bank: (N, C); of unit length for the cosine distance.
        euclidean: Euclidean distance; otherwise 1 - cosine.
        directions: Euclidean distances are measured in so many principal directions of the bank,
            and what a query has outside of them is added in full:
            |q - m|^2 = |P (q - m)|^2 + |q - P q|^2, up to what bank entries have outside. Half as
            many directions take half the time. 0 measures in all. Ours.
    """

    columns: Tensor
    centre: Tensor
    basis: Tensor

    def __init__(self, bank: Tensor, *, euclidean: bool, directions: int = 0) -> None:
        super().__init__()
        self.euclidean = euclidean
        self.is_projected = euclidean and 0 < directions < bank.shape[1]
        if self.is_projected:
            centre, basis = principal_directions(bank, directions)
            self.register_buffer("centre", centre)
            self.register_buffer("basis", basis)
            bank = (bank - centre) @ basis
        self.register_buffer("columns", as_columns(bank, euclidean=euclidean))

    def forward(self, queries: Tensor) -> Tensor:
        if not self.is_projected:
            return nearest_distance(queries, self.columns, euclidean=self.euclidean)
        centred = queries - self.centre
        inside = centred @ self.basis  # (Q, directions)
        outside = (centred.square().sum(1) - inside.square().sum(1)).clamp_min(0)
        return (nearest_distance(inside, self.columns, euclidean=True).square() + outside).sqrt()


def principal_directions(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean (C,) of rows (N, C) and the directions (C, count) in which they vary most."""
    centre = rows.mean(0)
    centred = rows - centre
    _, directions = torch.linalg.eigh(centred.T @ centred / len(rows))  # in ascending order
    return centre, directions[:, -count:].contiguous()


SPREAD_DIRECTIONS = 16
"""Principal directions in which a sample is spread out: as good as all, in half the time."""


def spread_out(rows: Tensor, first: Tensor, most: int) -> Tensor:
    """Indices of ``most`` of the rows (N, C): those of ``first``, and each further one the farthest
    from all chosen before it.

    The greedy choice of PatchCore (Roth et al. 2022), begun with a random sample: by itself it
    would choose mostly rare patches.
    """
    centre, basis = principal_directions(rows, min(SPREAD_DIRECTIONS, rows.shape[1]))
    points = (rows - centre) @ basis
    squares = points.square().sum(1)
    nearest = nearest_distance(
        points, as_columns(points[first], euclidean=True), euclidean=True
    ).square()
    chosen = [*first.tolist()]
    while len(chosen) < most:
        new = int(nearest.argmax())
        chosen.append(new)
        apart = squares - 2 * (points @ points[new]) + squares[new]
        nearest = torch.minimum(nearest, apart)
    return torch.tensor(chosen)


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

    def apart(down: int, right: int) -> Tensor:
        shifted = padded[:, :, down : down + height, right : right + width]
        if euclidean:
            each = (query[:, None] - shifted[None]).square().sum(2)  # (B, K, h, w)
        else:
            each = 1 - (query[:, None] * shifted[None]).sum(2)
        return each.amin(1)

    shifts = product(range(2 * reach + 1), repeat=2)
    nearest = reduce(torch.minimum, starmap(apart, shifts)).clamp_min(0)
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
