"""Connected regions of a mask."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from metaformer.detection.scoring.prediction import Region
from metaformer.detection.scoring.regions import find_regions

MAPS = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=2, max_dims=2, max_side=12),
    elements=st.floats(0, 1, width=32),
)


def flood(mask: np.ndarray) -> list[set[tuple[int, int]]]:
    """8-connected groups of (row, column), found the slow way."""
    left = {(int(r), int(c)) for r, c in np.argwhere(mask)}
    groups = []
    while left:
        group, front = set(), [left.pop()]
        while front:
            r, c = front.pop()
            group.add((r, c))
            near = {(r + i, c + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            front.extend(near)
        groups.append(group)
    return groups


@given(MAPS)
def test_regions_are_those_of_a_flood_fill(anomaly_map):
    mask = anomaly_map >= 0.5
    groups = {
        (
            min(c for _, c in group),
            min(r for r, _ in group),
            max(c for _, c in group) - min(c for _, c in group) + 1,
            max(r for r, _ in group) - min(r for r, _ in group) + 1,
            len(group),
            max(float(anomaly_map[p]) for p in group),
        )
        for group in flood(mask)
    }
    regions = find_regions(mask, anomaly_map)
    assert len(regions) == len(flood(mask))
    assert {(r.x, r.y, r.width, r.height, r.area, r.peak) for r in regions} == groups
    for region in regions:
        assert anomaly_map[region.peak_y, region.peak_x] == region.peak
        assert mask[region.peak_y, region.peak_x]
    assert sum(region.area for region in regions) == mask.sum()


@given(MAPS, st.integers(1, 20))
def test_small_regions_are_left_out_and_the_rest_stay_in_order(anomaly_map, min_area):
    every = find_regions(anomaly_map >= 0.5, anomaly_map)
    kept = find_regions(anomaly_map >= 0.5, anomaly_map, min_area=min_area)
    assert kept == tuple(region for region in every if region.area >= min_area)
    assert [r.peak for r in kept] == sorted((r.peak for r in kept), reverse=True)


def test_corners_connect():
    mask = np.eye(5, dtype=bool)
    assert [region.area for region in find_regions(mask, np.ones((5, 5), np.float32))] == [5]


def test_a_peak_in_the_box_but_outside_the_region_does_not_count():
    mask = np.zeros((5, 5), dtype=bool)
    mask[0, :] = mask[:, 0] = True  # an L whose box is the whole image
    anomaly_map = np.where(mask, 0.6, 0.9).astype(np.float32)
    anomaly_map[0, 3] = 0.7
    (region,) = find_regions(mask, anomaly_map)
    assert region == Region(0, 0, 5, 5, 9, float(np.float32(0.7)), 3, 0)


def test_a_clean_mask_has_no_regions():
    assert find_regions(np.zeros((3, 4), bool), np.ones((3, 4), np.float32)) == ()


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"\(3, 4\).*\(4, 3\)"):
        find_regions(np.zeros((3, 4), bool), np.zeros((4, 3), np.float32))


@pytest.mark.parametrize("side", [600, 10])  # more regions than 16 bits can number, and fewer
def test_any_number_of_regions_is_told_apart(side):
    mask = np.zeros((side, side), bool)
    mask[::2, ::2] = True
    values = np.arange(mask.size, dtype=np.float32).reshape(mask.shape) / mask.size
    regions = find_regions(mask, values)
    assert len(regions) == (side // 2) ** 2
    assert {region.area for region in regions} == {1}
    assert (regions[0].peak_x, regions[0].peak_y) == (side - 2, side - 2)
    assert len({(region.x, region.y) for region in regions}) == len(regions)
