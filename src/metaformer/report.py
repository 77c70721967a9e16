"""One self-contained HTML file: images ranked by score, their maps, a threshold to try out."""

from __future__ import annotations

import base64
import heapq
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray

from metaformer.files import write_text
from metaformer.results import Prediction, Region

THRESHOLD = 0.5
"""Calibrated scores put the detector's threshold here."""
JPEG_QUALITY = 82
BINS = 40
"""Bars of the histogram over scores 0 to 1."""


@dataclass(frozen=True)
class _Scored:
    """A line of the ranking."""

    name: str
    score: float
    p_value: float
    is_anomalous: bool


@dataclass(frozen=True)
class _Picture:
    """What a card of the report shows beside its line."""

    photo: str
    """JPEG as a data address."""
    heat: str
    """Calibrated map as an 8-bit PNG data address, 255 for a value of 1."""
    width: int
    height: int
    regions: tuple[Region, ...]


class ReportBuilder:
    """Collects predictions, in memory that does not grow with their number.

    Every score is kept; photos and maps only of the ``max_images`` highest scores.

    Args:
        settings: shown as a table; ``support_scores`` (calibrated scores of the normal images) is
            drawn into the histogram instead, ``title`` replaces the heading.
        max_images: pictures in the file.
        thumbnail: longer side of a picture in pixels.
    """

    def __init__(
        self, settings: dict[str, Any], *, max_images: int = 200, thumbnail: int = 512
    ) -> None:
        self.settings = settings
        self.max_images = max_images
        self.thumbnail = thumbnail
        self._scored: list[_Scored] = []
        self._pictures: list[tuple[float, int, _Picture]] = []  # heap by score
        self._failures: list[tuple[str, str]] = []

    def add(self, image: NDArray[np.uint8], prediction: Prediction) -> None:
        """Add an image (H, W, 3) uint8 RGB and what was found on it."""
        number = len(self._scored)
        name = prediction.path or f"image {number + 1}"
        self.add_scored(
            name,
            score=prediction.score,
            p_value=prediction.p_value,
            is_anomalous=prediction.is_anomalous,
        )
        if len(self._pictures) < self.max_images:
            entry = (prediction.score, number, self._picture(image, prediction))
            heapq.heappush(self._pictures, entry)
        elif self._pictures and prediction.score > self._pictures[0][0]:
            entry = (prediction.score, number, self._picture(image, prediction))
            heapq.heapreplace(self._pictures, entry)

    def add_scored(self, name: str, *, score: float, p_value: float, is_anomalous: bool) -> None:
        """Add an image scored earlier, of which only the line is known."""
        self._scored.append(_Scored(name, score, p_value, is_anomalous))

    def add_failure(self, path: str, reason: str) -> None:
        """Add a file that could not be read, and why."""
        self._failures.append((path, reason))

    def write(self, path: Path | str) -> Path:
        """Write the report in one step and return its path.

        Raises:
            OSError: the folder cannot be written to.
        """
        pictures = {number: picture for _, number, picture in self._pictures}
        ranking = sorted(range(len(self._scored)), key=lambda i: -self._scored[i].score)
        cards = [
            {
                "index": position,
                "line": self._scored[number],
                "short": _short_name(self._scored[number].name),
                "picture": pictures.get(number),
            }
            for position, number in enumerate(ranking)
        ]
        settings = {k: v for k, v in self.settings.items() if k not in ("support_scores", "title")}
        template = resources.files("metaformer").joinpath("templates/report.html.j2")
        environment = Environment(autoescape=True, undefined=StrictUndefined)
        html = environment.from_string(template.read_text(encoding="utf-8")).render(
            title=self.settings.get("title", "Inspection report"),
            cards=[card for card in cards if card["picture"]],
            lines=[card for card in cards if not card["picture"]],
            scores=json.dumps([line.score for line in self._scored]),
            histogram=histogram(
                [line.score for line in self._scored], self.settings.get("support_scores", [])
            ),
            flagged=sum(line.is_anomalous for line in self._scored),
            total=len(self._scored),
            settings=settings,
            failures=self._failures,
            threshold=THRESHOLD,
        )
        write_text(path, html)
        return Path(path)

    def _picture(self, image: NDArray[np.uint8], prediction: Prediction) -> _Picture:
        height, width = image.shape[:2]
        scale = min(1.0, self.thumbnail / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        photo = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
        heat = cv2.resize(prediction.anomaly_map, size, interpolation=cv2.INTER_AREA)
        levels = np.clip(np.rint(heat * 255), 0, 255).astype(np.uint8)
        return _Picture(
            photo=_encode(".jpg", photo[:, :, ::-1], cv2.IMWRITE_JPEG_QUALITY),
            heat=_encode(".png", levels, None),
            width=size[0],
            height=size[1],
            regions=prediction.regions[:8],
        )


def histogram(scores: list[float], support: list[float]) -> dict[str, Any]:
    """Bars and ticks for the template, in units of a 100 x 40 picture."""
    counts, _ = np.histogram(np.clip(scores, 0, 1), bins=BINS, range=(0, 1))
    top = max(1, int(counts.max(initial=0)))
    step = 100 / BINS
    bars = [
        {"x": round(i * step, 3), "height": round(36 * int(count) / top, 3), "count": int(count)}
        for i, count in enumerate(counts)
        if count
    ]
    return {"bars": bars, "width": step * 0.9, "ticks": [round(100 * s, 3) for s in support]}


def _short_name(name: str) -> str:
    """The file with its folder: enough to find it, short enough for a phone."""
    return "/".join(Path(name).parts[-2:])


def _encode(suffix: str, pixels: NDArray[np.uint8], quality_flag: int | None) -> str:
    flags = [] if quality_flag is None else [quality_flag, JPEG_QUALITY]
    is_encoded, content = cv2.imencode(suffix, pixels, flags)
    if not is_encoded:
        raise OSError(f"a picture for the report could not be encoded as {suffix}.")
    kind = "jpeg" if suffix == ".jpg" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(content.tobytes()).decode()}"
