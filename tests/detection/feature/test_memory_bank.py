"""Descriptors, and the bank that keeps those of a support."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from metaformer.detection.feature.memory_bank import (
    POOLED,
    MemoryBank,
    Rows,
    describe,
    to_rows,
    total_rows,
)

counts = st.lists(st.integers(1, 40), min_size=1, max_size=5)
seeds = st.integers(0, 10**6)


def features(seed: int, count: int = 1) -> dict[int, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        8: 5 * torch.randn(count, 6, 8, 12, generator=generator),
        16: 5 * torch.randn(count, 10, 4, 6, generator=generator),
    }


def image_rows(image: int, count: int, *, names: tuple[str, ...] = ("8", POOLED)) -> Rows:
    """``count`` rows (image, number): each can be told from all others."""
    numbers = torch.arange(count, dtype=torch.float32)
    rows = torch.stack([torch.full((count,), float(image)), numbers], dim=1)
    return {name: rows.clone() for name in names}


def make(sizes: list[int], most: int, seed: int = 0) -> MemoryBank:
    return MemoryBank.of(
        [image_rows(i, size) for i, size in enumerate(sizes)],
        most=most,
        generator=torch.Generator().manual_seed(seed),
    )


def row_set(rows: torch.Tensor) -> set[tuple[float, ...]]:
    return {tuple(row) for row in rows.tolist()}


# Descriptors


def test_levels_are_of_unit_length_and_the_pooled_descriptor_keeps_lengths():
    found = describe(features(0, count=2), (8, 16), 0.2)
    assert {name: tuple(grid.shape) for name, grid in found.items()} == {
        "8": (2, 6, 8, 12),
        "16": (2, 10, 4, 6),
        POOLED: (2, 16, 8, 12),
    }
    for name in ("8", "16"):
        torch.testing.assert_close(found[name].norm(dim=1), torch.ones_like(found[name][:, 0]))
    doubled = {level: 2 * grid for level, grid in features(0, count=2).items()}
    twice = describe(doubled, (8, 16), 0.2)
    torch.testing.assert_close(twice["8"], found["8"])
    torch.testing.assert_close(twice[POOLED], 2 * found[POOLED])


def test_a_pooled_descriptor_is_the_mean_of_its_neighbourhood():
    """Zeros stand beyond the border."""
    given_ = features(3)
    found = describe(given_, (8, 16), 0.2)[POOLED]
    coarse = F.interpolate(given_[16], (8, 12), mode="bilinear")
    joined = torch.cat([given_[8], coarse], dim=1)[0]
    torch.testing.assert_close(found[0, :, 4, 5], joined[:, 3:6, 4:7].mean(dim=(1, 2)))
    torch.testing.assert_close(found[0, :, 0, 0], joined[:, :2, :2].sum(dim=(1, 2)) / 9)


def test_only_descriptors_with_a_share_are_made():
    assert list(describe(features(0), (8, 16), 0.0)) == [POOLED]
    assert list(describe(features(0), (8, 16), 1.0)) == ["8", "16"]
    assert list(describe(features(0), (8,), 0.5)) == ["8", POOLED]


def test_rows_are_cells_row_by_row():
    grid = features(0, count=2)[8]
    rows = to_rows(grid)
    assert rows.shape == (2 * 8 * 12, 6)
    assert torch.equal(rows[8 * 12 + 3 * 12 + 5], grid[1, :, 3, 5])


# The bank


@given(counts, st.integers(1, 250), seeds)
def test_a_bank_is_bounded_and_every_row_has_its_owner(sizes, most, seed):
    bank = make(sizes, most, seed)
    for name, rows in bank.rows.items():
        assert len(rows) == len(bank.owners[name]) == min(most, sum(sizes))
        assert len(row_set(rows)) == len(rows)  # none is kept twice
        assert torch.equal(rows[:, 0].long(), bank.owners[name])
        assert all(number < sizes[int(image)] for image, number in rows.tolist())


def test_a_bank_is_drawn_by_its_seed():
    first, again, other = (make([100, 100], 50, seed) for seed in (1, 1, 2))
    assert torch.equal(first.rows["8"], again.rows["8"])
    assert not torch.equal(first.rows["8"], other.rows["8"])


@given(counts, st.integers(1, 250), seeds)
def test_a_coreset_is_bounded_deterministic_and_of_the_banks_rows(sizes, most, seed):
    bank = make(sizes, 10**6, seed)
    coreset, again = bank.coreset(most, most), bank.coreset(most, most)
    for name, rows in coreset.rows.items():
        assert len(rows) == min(most, len(bank.rows[name]))
        assert row_set(rows) <= row_set(bank.rows[name]) and len(row_set(rows)) == len(rows)
        assert torch.equal(rows[:, 0].long(), coreset.owners[name])
        assert torch.equal(rows, again.rows[name])
    if most >= sum(sizes):
        assert all(torch.equal(coreset.rows[name], rows) for name, rows in bank.rows.items())


def test_a_coreset_is_of_all_images_alike():
    owners = make([1000] * 4, 10**6).coreset(400, 400).owners["8"]
    shares = torch.bincount(owners, minlength=4)
    assert (shares > 60).all() and (shares < 140).all()  # 100 each; standard deviation 8.2


@given(counts, st.integers(0, 6), st.integers(1, 250), seeds)
def test_without_removes_exactly_the_rows_of_one_image(sizes, image, most, seed):
    bank = make(sizes, most, seed)
    others = bank.without(image)
    for name, rows in bank.rows.items():
        kept = [row for row in rows.tolist() if row[0] != image]
        assert others.rows[name].tolist() == kept
        assert others.owners[name].tolist() == [int(row[0]) for row in kept]
    assert len(bank.rows["8"]) == min(most, sum(sizes))  # itself unchanged


@settings(max_examples=50)
@given(counts, counts, st.integers(1, 250), seeds)
def test_an_extended_bank_is_bounded_and_its_new_rows_have_new_owners(old, new, most, seed):
    bank = make(old, most, seed)
    added = [image_rows(len(old) + i, size) for i, size in enumerate(new)]
    extended = bank.extended(
        added, earlier=len(old), most=most, generator=torch.Generator().manual_seed(seed)
    )
    for name, rows in extended.rows.items():
        known = row_set(bank.rows[name]).union(*(row_set(image[name]) for image in added))
        assert len(rows) <= most
        assert rows.dtype == torch.float32 and extended.owners[name].dtype == torch.int64
        assert torch.equal(rows[:, 0].long(), extended.owners[name])
        assert row_set(rows) <= known and len(row_set(rows)) == len(rows)
        if sum(old) + sum(new) <= most:
            assert row_set(rows) == known


def test_an_extended_bank_stays_a_uniform_sample():
    """Three images by three, each patch of all nine as likely to be kept."""
    per_image, most = 60, 90
    kept = torch.zeros(9)
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        bank = MemoryBank.of(
            [image_rows(i, per_image) for i in range(3)], most=most, generator=generator
        )
        for first in (3, 6):
            bank = bank.extended(
                [image_rows(first + i, per_image) for i in range(3)],
                earlier=first,
                most=most,
                generator=generator,
            )
        assert len(bank.rows["8"]) == most
        kept += torch.bincount(bank.owners["8"], minlength=9)
    # 10 of each image; the standard error of a mean of 200 is 0.2.
    assert (kept / 200).tolist() == pytest.approx([most / 9] * 9, abs=1.0)


def test_total_rows_counts_every_descriptor():
    assert total_rows(image_rows(0, 7)) == 14
