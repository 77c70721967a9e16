"""Nearest-neighbour distances, against slower ways to the same numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from metaformer.detection.nearest_neighbors import (
    CHUNK,
    aligned_distance,
    as_columns,
    fit_grid,
    merge_samples,
    nearest_distance,
)

seeds = st.integers(0, 10**6)


def rows(count: int, channels: int, seed: int) -> torch.Tensor:
    return torch.randn(count, channels, generator=torch.Generator().manual_seed(seed))


def unit(count: int, channels: int, seed: int) -> torch.Tensor:
    return F.normalize(rows(count, channels, seed), dim=1)


def grid(seed: int, count: int = 1, height: int = 6, width: int = 9) -> torch.Tensor:
    """(count, 5, height, width), of unit length over channels."""
    cells = unit(count * height * width, 5, seed)
    return cells.reshape(count, height, width, 5).permute(0, 3, 1, 2)


def cosine(queries: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
    return nearest_distance(queries, as_columns(bank, euclidean=False), euclidean=False)


def euclidean(queries: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
    return nearest_distance(queries, as_columns(bank, euclidean=True), euclidean=True)


@given(st.integers(1, 60), st.integers(1, 60), seeds)
def test_cosine_distance_is_that_of_the_nearest(queries, bank, seed):
    q, m = unit(queries, 7, seed), unit(bank, 7, seed + 1)
    expected = (1 - F.cosine_similarity(q[:, None], m[None], dim=2)).min(dim=1).values
    found = cosine(q, m)
    torch.testing.assert_close(found, expected.clamp_min(0), atol=1e-5, rtol=1e-4)
    assert (found >= 0).all() and (found <= 2 + 1e-6).all()


@given(st.integers(1, 60), st.integers(1, 60), seeds)
def test_euclidean_distance_is_that_of_the_nearest(queries, bank, seed):
    q, m = rows(queries, 7, seed), rows(bank, 7, seed + 1)
    expected = torch.cdist(q, m).min(dim=1).values
    torch.testing.assert_close(euclidean(q, m), expected, atol=2e-3, rtol=1e-4)


def test_distances_in_chunks_are_the_same():
    """Of the queries and of the bank, the last chunk of each smaller than the others."""
    q, m = rows(CHUNK + 3, 16, 0), rows(2 * CHUNK + 5, 16, 1)
    torch.testing.assert_close(
        euclidean(q, m), torch.cdist(q, m).min(dim=1).values, atol=1e-3, rtol=1e-4
    )
    q, m = F.normalize(q, dim=1), F.normalize(m, dim=1)
    whole = (1 - (q @ m.T).max(dim=1).values).clamp_min(0)
    torch.testing.assert_close(cosine(q, m), whole, atol=1e-6, rtol=0)


@given(st.integers(0, 3), st.integers(1, 3), st.booleans(), st.integers(0, 1000))
def test_aligned_distance_is_that_of_the_nearest_within_reach(reach, count, by_length, seed):
    scale = 3.0 if by_length else 1.0
    query, support = scale * grid(seed, 2), grid(seed + 1, count)
    found = aligned_distance(query, support, reach, euclidean=by_length)
    assert found.shape == (2, 6, 9)
    for image in range(2):
        for row, column in ((0, 0), (2, 4), (5, 8)):
            near = support[
                :,
                :,
                max(0, row - reach) : row + reach + 1,
                max(0, column - reach) : column + reach + 1,
            ]
            asked = query[image, :, row, column]
            if by_length:
                each = (asked[None, :, None, None] - near).norm(dim=1)
            else:
                each = 1 - torch.einsum("c,kchw->khw", asked, near)
            expected = max(0.0, float(each.min()))
            assert float(found[image, row, column]) == pytest.approx(expected, abs=1e-5)


def test_fit_grid_resamples_to_the_sides_asked_for_and_leaves_what_fits():
    cells = grid(0, 2)
    assert fit_grid(cells, (6, 9)) is cells
    fitted = fit_grid(cells, (8, 4))
    assert fitted.shape == (2, 5, 8, 4)
    assert cells.min() <= fitted.min() and fitted.max() <= cells.max()


@settings(deadline=None)
@given(
    st.integers(1, 30),
    st.integers(0, 30),
    st.integers(1, 20),
    st.integers(0, 99),
    st.integers(0, 9),
)
def test_merged_samples_are_rows_of_both_within_the_cap(old, new, most, more, seed):
    old = min(old, most)
    numbers = torch.arange(old + new, dtype=torch.float32)[:, None]
    merged = merge_samples(
        numbers[:old],
        numbers[old:],
        stands_for=old + more,
        most=most,
        generator=torch.Generator().manual_seed(seed),
    )
    assert len(merged) <= min(most, old + new)
    assert len(set(merged[:, 0].tolist())) == len(merged) and bool((merged.diff(dim=0) > 0).all())
    if old + new <= most:
        assert torch.equal(merged, numbers)
    elif old == most:
        assert len(merged) == most


def test_a_merged_sample_is_fair():
    """Each row that a full bank stands for is as likely to stay as a new one."""
    counts = []
    for seed in range(300):
        merged = merge_samples(
            torch.zeros(50, 1),
            torch.ones(100, 1),
            stands_for=300,
            most=50,
            generator=torch.Generator().manual_seed(seed),
        )
        counts.append(float(merged.sum()))
    # 100 of 400; standard error 0.17
    assert sum(counts) / len(counts) == pytest.approx(12.5, abs=0.6)
