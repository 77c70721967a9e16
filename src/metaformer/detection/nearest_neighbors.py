"""A memory of tokens: how far a token is from its nearest, and how two memories are merged."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

QUERY_CHUNK = MEMORY_CHUNK = 1024
"""Tokens compared at once, of either side. The products then stay in the cache: a third of the time
of comparing with all of a large memory at once."""


def cosine_distance(queries: Tensor, memory: Tensor) -> Tensor:
    """1 - cosine to the nearest of ``memory`` (N, C) for each of ``queries`` (Q, C), both unit."""
    return nearest_distance(queries, memory.T, euclidean=False)


def euclidean_distance(queries: Tensor, memory: Tensor) -> Tensor:
    """Distance to the nearest of ``memory`` (N, C) for each of ``queries`` (Q, C)."""
    return nearest_distance(queries, as_columns(memory, euclidean=True), euclidean=True)


def as_columns(memory: Tensor, *, euclidean: bool) -> Tensor:
    """(N, C) -> (C, N), or (C + 1, N) with what Euclidean distances need: what ``queries`` are
    multiplied with. Made beforehand it saves a fifth of the time of comparing."""
    if euclidean:  # |q - m|^2 / 2 = |q|^2 / 2 - (q m - |m|^2 / 2)
        memory = torch.cat([memory, -memory.square().sum(1, keepdim=True) / 2], dim=1)
    return memory.T.contiguous()


def with_ones(queries: Tensor) -> Tensor:
    """(Q, C) -> (Q, C + 1), to be multiplied with Euclidean columns."""
    return torch.cat([queries, queries.new_ones(len(queries), 1)], dim=1)


def nearest_distance(queries: Tensor, columns: Tensor, *, euclidean: bool) -> Tensor:
    """(Q,) distance of ``queries`` (Q, C) to the nearest of a memory ``as_columns``: Euclidean, or
    1 - cosine of unit tokens."""
    asked = with_ones(queries) if euclidean else queries
    parts = torch.split(columns, MEMORY_CHUNK, dim=1)
    nearest = []
    for chunk in torch.split(asked, QUERY_CHUNK):
        best = [(chunk @ part).amax(dim=1) for part in parts]
        nearest.append(torch.stack(best).amax(dim=0))  # (chunk,)
    return to_distance(torch.cat(nearest), queries if euclidean else None)


def to_distance(products: Tensor, queries: Tensor | None) -> Tensor:
    """(Q,) greatest products with a memory ``as_columns`` -> distances; Euclidean ones of
    ``queries`` (Q, C)."""
    if queries is None:
        return (1 - products).clamp_min(0)
    squares = torch.linalg.vector_norm(queries, dim=1).square()
    return (squares - 2 * products).clamp_min(0).sqrt()


def nearest_means(rows: Tensor, centres: Tensor, *, euclidean: bool) -> Tensor:
    """Of each of ``centres`` (M, C) the mean of those of ``rows`` (N, C) nearest to it; the centre
    itself where there are none. The first step of k-means.

    By Euclidean distance, or by direction of unit rows; the means of these are shorter.
    """
    halves = centres.square().sum(1) / 2 if euclidean else centres.new_zeros(len(centres))
    nearest = [
        torch.addmm(halves, chunk, centres.T, beta=-1).argmax(1)
        for chunk in torch.split(rows, QUERY_CHUNK)
    ]
    index = torch.cat(nearest)  # (N,)
    sums = torch.zeros_like(centres).index_add_(0, index, rows)
    counts = torch.bincount(index, minlength=len(centres))[:, None]
    return torch.where(counts > 0, sums / counts.clamp_min(1), centres)


def apart_distance(tokens: Tensor, reach: int, *, euclidean: bool) -> Tensor:
    """(h, w) distance of each of ``tokens`` (C, h, w) to the nearest on the same image that is more
    than ``reach`` cells away, along either side; to the nearest of all where none is so far.

    Euclidean, or 1 - cosine of unit tokens.
    """
    height, width = tokens.shape[1:]
    rows = tokens.flatten(1).T  # (h * w, C)
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    nearest = []
    for chunk, here in zip(
        torch.split(rows, QUERY_CHUNK), torch.split(places, QUERY_CHUNK), strict=True
    ):
        distance = torch.cdist(chunk, rows) if euclidean else 1 - chunk @ rows.T
        is_near = (here[:, None] - places).abs().amax(2) <= reach  # (chunk, h * w)
        is_near &= ~is_near.all(1, keepdim=True)
        nearest.append(distance.masked_fill(is_near, torch.inf).amin(1))
    return torch.cat(nearest).clamp_min(0).reshape(height, width)


def aligned_distance(query: Tensor, memory: Tensor, reach: int) -> Tensor:
    """(h, w) 1 - cosine of ``query`` (C, h, w) to the nearest of ``memory`` (K, C, h', w') within
    ``reach`` cells of the same place; both of unit length."""
    height, width = query.shape[1:]
    grids = torch.stack([fit_grid(grid, query.shape[1:]) for grid in memory])
    padded = F.pad(grids, (reach,) * 4, mode="replicate")  # (K, C, h + 2 reach, w + 2 reach)
    nearest = torch.full((height, width), -1.0)
    for down in range(2 * reach + 1):
        for right in range(2 * reach + 1):
            shifted = padded[:, :, down : down + height, right : right + width]
            nearest = torch.maximum(nearest, (shifted * query).sum(1).amax(0))
    return (1 - nearest).clamp_min(0)


def fit_grid(grid: Tensor, size: torch.Size) -> Tensor:
    """Resample (C, h, w) tokens to ``size``, unit length again; unchanged if it fits."""
    if grid.shape[1:] == size:
        return grid
    return F.normalize(F.interpolate(grid[None], tuple(size), mode="bilinear")[0], dim=0)


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
