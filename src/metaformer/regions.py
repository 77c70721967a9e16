"""From marked pixels to defect regions."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from metaformer.results import Region


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
    if not mask.any():
        return ()
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        np.ascontiguousarray(mask).view(np.uint8), connectivity=8
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
        regions.append(Region(x, y, width, height, area, peak, x + column, y + row))
    return tuple(sorted(regions, key=lambda region: -region.peak))
