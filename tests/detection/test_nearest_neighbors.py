"""Nearest-neighbour distances, against slower ways to the same numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from metaformer.detection.nearest_neighbors import (
    BANK_CHUNK,
    QUERY_CHUNK,
    NeighborSearch,
    aligned_distance,
    as_columns,
    fit_grid,
    merge_samples,
    nearest_distance,
    spread_out,
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
    q, m = rows(QUERY_CHUNK + 3, 16, 0), rows(2 * BANK_CHUNK + 5, 16, 1)
    torch.testing.assert_close(
        euclidean(q, m), torch.cdist(q, m).min(dim=1).values, atol=1e-3, rtol=1e-4
    )
    q, m = F.normalize(q, dim=1), F.normalize(m, dim=1)
    whole = (1 - (q @ m.T).max(dim=1).values).clamp_min(0)
    torch.testing.assert_close(cosine(q, m), whole, atol=1e-6, rtol=0)


@given(st.integers(1, 40), seeds)
def test_all_that_a_query_has_outside_of_the_banks_directions_counts(queries, seed):
    """A bank in 3 of 7 dimensions: in as many directions, distances are exact."""
    plane = torch.linalg.qr(rows(7, 3, seed)).Q  # (7, 3)
    bank = rows(50, 3, seed + 1) @ plane.T
    q = rows(queries, 7, seed + 2)
    found = NeighborSearch(bank, euclidean=True, directions=3)(q)
    torch.testing.assert_close(found, euclidean(q, bank), atol=2e-3, rtol=1e-3)


def test_fewer_directions_shorten_distances_by_no_more_than_the_bank_has_outside():
    bank, q = rows(300, 12, 0) * torch.linspace(3, 0.1, 12), rows(40, 12, 1)
    search = NeighborSearch(bank, euclidean=True, directions=8)
    centred = bank - search.centre
    left = centred - centred @ search.basis @ search.basis.T
    exact, found = euclidean(q, bank), search(q)
    assert search.columns.shape == (9, 300)
    assert ((exact - found).abs() <= left.norm(dim=1).max() + 1e-3).all()
    assert float((exact - found).abs().max()) > 1e-4  # not the same thing


@settings(deadline=None)
@given(st.integers(1, 20), seeds)
def test_a_spread_out_sample_has_its_first_rows_no_row_twice_and_no_gaps(first, seed):
    cloud = rows(200, 3, seed)
    drawn = torch.randperm(200, generator=torch.Generator().manual_seed(seed))
    chosen = spread_out(cloud, drawn[:first], first + 30)
    assert chosen[:first].equal(drawn[:first])
    assert len(set(chosen.tolist())) == first + 30
    by_chance = drawn[: first + 30]
    farthest = [
        float(torch.cdist(cloud, cloud[kept]).amin(1).max()) for kept in (chosen, by_chance)
    ]
    assert farthest[0] <= farthest[1] + 1e-3


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
