"""The result for one image. Plain data without torch: reports and services share it.

What draws is imported when something is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from metaformer.io.images import Source

JPEG_QUALITY = 92
NOTEBOOK_RESOLUTION = 800
"""Pictures in notebooks have at most so many pixels squared; ``save`` has the image's own size."""


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


@dataclass(frozen=True, repr=False)
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
    read_pixels: Callable[[], NDArray[np.uint8]] | None = field(default=None, compare=False)
    """Reads the image again as (H, W, 3) uint8 RGB, for pictures; None if it was not kept. Of a
    file no pixels are held."""
    white_level: int | None = field(default=None, compare=False)
    """That 16-bit images are read with; None if not known."""

    def __repr__(self) -> str:
        from metaformer.detection.scoring.overlays import format_score, verdict

        height, width = self.anomaly_map.shape
        regions = f"{len(self.regions)} region{'' if len(self.regions) == 1 else 's'}"
        name = "" if self.path is None else f", {self.path!r}"
        return (
            f"Prediction({verdict(self.is_anomalous).lower()}, score {format_score(self.score)}, "
            f"p {self.p_value:.3g}, {regions}, {width} x {height} pixels{name})"
        )

    def _repr_png_(self) -> bytes | None:
        """The overlay as PNG, for notebooks; None if the image cannot be read again."""
        from metaformer.io.encoding import encode_picture
        from metaformer.io.images import shrink

        try:
            picture = self.overlay()
        except ValueError:
            return None
        return encode_picture(shrink(picture, NOTEBOOK_RESOLUTION))

    def overlay(
        self, image: Source | None = None, *, opacity: float = 0.6, caption: bool = True
    ) -> NDArray[np.uint8]:
        """Heat map, outlines of the defects and the verdict on the image, (H, W, 3) uint8 RGB.

        Args:
            image: the image that was predicted on, read with the detector's white level; read again
                from where it came from if None.
            opacity: of the heat map, in [0, 1].
            caption: write verdict and score into the top left corner.

        Raises:
            ImageError: the image cannot be read, any more for example.
            ValueError: it has another size, was not kept, or ``opacity`` is not in [0, 1].
        """
        from metaformer.detection.scoring.overlays import draw_overlay
        from metaformer.io.images import read_image

        if image is not None:
            pixels = read_image(image, white_level=self.white_level)
        elif self.read_pixels is not None:
            pixels = self.read_pixels()
        else:
            raise ValueError(
                "the image of this prediction was not kept. Give it: overlay(image), "
                "save(path, image)."
            )
        return draw_overlay(pixels, self, opacity=opacity, caption=caption)

    def save(
        self,
        path: Path | str,
        image: Source | None = None,
        *,
        opacity: float = 0.6,
        caption: bool = True,
    ) -> None:
        """Write ``overlay`` as a PNG or JPEG file, by the ending of ``path``.

        Raises:
            ValueError: another ending, or as ``overlay``.
            OSError: the file cannot be written.
        """
        from metaformer.io.atomic_files import write_bytes
        from metaformer.io.encoding import encode_photo, encode_picture

        suffix = Path(path).suffix.lower()
        if suffix not in (".png", ".jpg", ".jpeg"):
            raise ValueError(f"{path}: pictures are written as .png, .jpg or .jpeg. Name one so.")
        picture = self.overlay(image, opacity=opacity, caption=caption)
        is_png = suffix == ".png"
        write_bytes(
            path, encode_picture(picture) if is_png else encode_photo(picture, JPEG_QUALITY)
        )

    @property
    def largest_region(self) -> Region | None:
        """The region with the most pixels; None on a normal image."""
        return max(self.regions, key=lambda region: region.area, default=None)

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


def to_records(predictions: Iterable[Prediction]) -> list[dict[str, Any]]:
    """One flat dictionary an image, for ``pandas.DataFrame`` or a CSV writer.

    Columns as in ``scores.csv``: ``path, score, is_anomalous, p_value, raw_score, regions`` (how
    many) and of the largest region ``region_x, region_y, region_width, region_height,
    region_area`` in pixels, None on a normal image. Maps are not kept: thousands of images fit.
    """
    return [_record(prediction) for prediction in predictions]


def _record(prediction: Prediction) -> dict[str, Any]:
    largest = prediction.largest_region
    box = ("x", "y", "width", "height", "area")
    return {
        "path": prediction.path,
        "score": prediction.score,
        "is_anomalous": prediction.is_anomalous,
        "p_value": prediction.p_value,
        "raw_score": prediction.raw_score,
        "regions": len(prediction.regions),
        **{f"region_{name}": None if largest is None else getattr(largest, name) for name in box},
    }
