"""From marked pixels to defect regions."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from metaformer.detection.scoring.prediction import Region

RUN_ROWS = 256
"""Rows whose runs are counted at a time; bounds memory."""


def find_regions(
    mask: NDArray[np.bool_], anomaly_map: NDArray[np.float32], *, min_area: int = 1
) -> tuple[Region, ...]:
    """Connected regions (8 neighbours) of ``mask``, highest peak first.

    Args:
        mask: (H, W), True on defective pixels.
        anomaly_map: (H, W), read for the peaks.
        min_area: smaller regions, in pixels, are left out.

    Raises:
        ValueError: the shapes differ.
    """
    if mask.shape != anomaly_map.shape:
        raise ValueError(f"mask {mask.shape} and map {anomaly_map.shape} differ in shape.")
    left, top, width, height = cv2.boundingRect(np.ascontiguousarray(mask).view(np.uint8))
    if not width:
        return ()
    # Of a large photo it is a small part, as a rule.
    marked = (slice(top, top + height), slice(left, left + width))
    mask, anomaly_map = mask[marked], anomaly_map[marked]
    # Half the memory where it can be: on a large photo, labels are the largest array of all.
    label_type = cv2.CV_16U if count_runs(mask) < 2**16 else cv2.CV_32S
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        np.ascontiguousarray(mask).view(np.uint8), connectivity=8, ltype=label_type
    )
    regions = []
    for label in range(1, count):  # 0 is the background
        x, y, width, height, area = (int(value) for value in stats[label])
        if area < min_area:
            continue
        window = (slice(y, y + height), slice(x, x + width))
        # Not a copy of the map with the rest blanked out: a region may be all of a large photo.
        inside = (labels[window] == label).view(np.uint8)
        _, peak, _, (column, row) = cv2.minMaxLoc(anomaly_map[window], inside)
        x, y = left + x, top + y
        regions.append(Region(x, y, width, height, area, peak, x + column, y + row))
    return tuple(sorted(regions, key=lambda region: -region.peak))


def count_runs(mask: NDArray[np.bool_]) -> int:
    """Horizontal runs of True in ``mask``: at least as many as it has regions."""
    runs = 0
    for row in range(0, len(mask), RUN_ROWS):
        rows = mask[row : row + RUN_ROWS]
        # A run starts where a row begins with True, or where True follows False.
        starts = np.count_nonzero(rows[:, 0]) + np.count_nonzero(rows[:, 1:] > rows[:, :-1])
        runs += int(starts)
    return runs
