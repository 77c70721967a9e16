"""What a detector says about one image. Plain data, no torch: reports and services share it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Region:
    """One connected group of defective pixels, in pixels of the original image."""

    x: int
    """Left edge of the bounding box."""
    y: int
    """Top edge of the bounding box."""
    width: int
    height: int
    area: int
    """Number of defective pixels in the region."""
    peak: float
    """Highest value of the anomaly map inside the region (0.5 is the pixel threshold)."""
    peak_x: int
    peak_y: int


@dataclass(frozen=True)
class Prediction:
    """The verdict on one image of height H and width W."""

    score: float
    """Calibrated image score in (0, 1): 0.5 exactly at the threshold, same ranking as
    ``raw_score``, comparable across products. Never clamped."""
    raw_score: float
    """Image score before calibration, in the units of the preset."""
    p_value: float
    """Share of normal images expected to score at least this high, in (0, 1]."""
    is_anomalous: bool
    """``score >= 0.5``."""
    anomaly_map: NDArray[np.float32]
    """(H, W), calibrated like ``score``: 0.5 is the pixel threshold."""
    mask: NDArray[np.bool_]
    """(H, W), ``anomaly_map >= 0.5`` on an anomalous image, all False on a normal one."""
    regions: tuple[Region, ...]
    """Connected regions of ``mask``, highest peak first."""
    path: str | None = None
    """Where the image came from, if it was a file."""

    def to_dict(self) -> dict[str, Any]:
        """Everything but the two arrays, ready for JSON."""
        return {
            "path": self.path,
            "score": self.score,
            "raw_score": self.raw_score,
            "p_value": self.p_value,
            "is_anomalous": self.is_anomalous,
            "regions": [asdict(region) for region in self.regions],
        }
