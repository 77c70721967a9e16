"""One self-contained HTML file: images ranked by score, their maps, a threshold to try out.

The page is ``templates/report.html.j2`` with the style sheet and scripts beside it put inside. It
asks the network for nothing and runs no script but its own: its content security policy names
both by their hash, so that a hostile file name stays text.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from metaformer.detection.scoring.overlays import format_score, heat_colours, verdict
from metaformer.detection.scoring.prediction import Prediction
from metaformer.inference.report.histogram import draw_histogram
from metaformer.inference.report.thumbnails import Picture, make_picture
from metaformer.io.atomic_files import write_text
from metaformer.io.encoding import data_address

THRESHOLD = 0.5
"""Calibrated scores put the detector's threshold here."""
NORMAL_SHARE = 10
"""One picture in ten is kept for normal images just under the threshold, however many defects."""
FALSE_ALARM_SETTING = "false-alarm rate asked"
"""This line of the settings is repeated in the summary at the top."""


@dataclass(frozen=True, slots=True)
class _Scored:
    """A line of the ranking."""

    name: str
    score: float
    p_value: float


class ReportBuilder:
    """Collects predictions, in memory that hardly grows with their number.

    Every score is kept, and every line unless ``max_lines`` limits them. Photos and maps are kept
    of ``max_images``: the highest scores, with a tenth of the places for normal images just under
    the threshold, where doubt is greatest.

    Args:
        settings: shown as a table. Two entries are used otherwise: ``title`` is the heading, and
            ``support_scores`` (calibrated scores of the normal images, each scored without itself,
            or of views of one image) is marked in the histogram.
        max_lines: list no more images than this, the highest scores (and those with a picture);
            the page then says how many there were in all, and its histogram shows all of them.
            None lists every image.
        max_images: most pictures in the file; 200 make 10 to 25 MB.
        thumbnail: longer side of a picture in pixels; smaller images are not enlarged.

    Raises:
        ValueError: ``max_images`` is negative, ``max_lines`` under 1 or ``thumbnail`` under 16.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        *,
        max_images: int = 200,
        thumbnail: int = 512,
        max_lines: int | None = None,
    ) -> None:
        if max_images < 0:
            raise ValueError(f"max_images must be 0 or more, got {max_images}.")
        if max_lines is not None and max_lines < 1:
            raise ValueError(f"max_lines must be 1 or more, or None for all, got {max_lines}.")
        if thumbnail < 16:
            raise ValueError(f"thumbnail must be 16 pixels or more, got {thumbnail}.")
        self.settings = settings
        self.max_images = max_images
        self.thumbnail = thumbnail
        self.max_lines = max_lines
        self._scores = array("d")
        # A heap by score, lowest first; of equal scores the later image is given up first.
        self._lines: list[tuple[float, int, _Scored]] = []
        # Two heaps by score, lowest first: the one to give up when the places run out.
        self._flagged: list[tuple[float, int, _Scored, Picture]] = []
        self._normal: list[tuple[float, int, _Scored, Picture]] = []
        self._failures: list[tuple[str, str]] = []
        self._failed = 0

    def add(self, image: NDArray[np.uint8], prediction: Prediction) -> None:
        """Add an image (H, W, 3) uint8 RGB and what was found on it.

        Raises:
            ValueError: image and map differ in size, or the score is not in [0, 1].
        """
        if image.shape[:2] != prediction.anomaly_map.shape:
            raise ValueError(
                f"image {image.shape} and map {prediction.anomaly_map.shape} differ in size."
            )
        number = len(self._scores)
        line = self._add_line(
            prediction.path or f"image {number + 1}",
            prediction.score,
            prediction.p_value,
            prediction.is_anomalous,
        )

        def entry() -> tuple[float, int, _Scored, Picture]:
            picture = make_picture(image, prediction, self.thumbnail)
            return prediction.score, number, line, picture

        heap = self._flagged if prediction.is_anomalous else self._normal
        if len(self._flagged) + len(self._normal) < self.max_images:
            heapq.heappush(heap, entry())
            return
        places_for_normal = self.max_images // NORMAL_SHARE
        normal = len(self._normal) + (not prediction.is_anomalous)
        loser = self._normal if normal > places_for_normal else self._flagged
        if loser is not heap and loser:
            heapq.heappop(loser)
            heapq.heappush(heap, entry())
        elif loser and prediction.score > loser[0][0]:
            heapq.heapreplace(loser, entry())

    def add_scored(self, name: str, *, score: float, p_value: float, is_anomalous: bool) -> None:
        """Add an image scored earlier, of which only the line is known.

        Raises:
            ValueError: the score is not in [0, 1].
        """
        self._add_line(name, score, p_value, is_anomalous)

    def _add_line(self, name: str, score: float, p_value: float, is_anomalous: bool) -> _Scored:
        if not 0 <= score <= 1:
            raise ValueError(f"{name}: a calibrated score lies in [0, 1], got {score}.")
        # A score read back from a file with few decimals may have been rounded over the threshold;
        # the verdict, which was not, is right.
        if is_anomalous:
            score = max(score, THRESHOLD)
        else:
            score = min(score, float(np.nextafter(THRESHOLD, 0)))
        line = _Scored(as_text(name), score, p_value)
        ranked = (score, -len(self._scores), line)
        self._scores.append(score)
        if self.max_lines is None:
            self._lines.append(ranked)
        elif len(self._lines) < self.max_lines:
            heapq.heappush(self._lines, ranked)
        else:
            heapq.heappushpop(self._lines, ranked)
        return line

    def add_failure(self, path: str, reason: str) -> None:
        """Add a file that could not be read, and why."""
        # Messages name the file first; beside its name that would be said twice.
        reason = reason.removeprefix(f"{path}: ")
        self._failed += 1
        if self.max_lines is None or len(self._failures) < self.max_lines:
            self._failures.append((as_text(path), as_text(reason)))

    def write(self, path: Path | str) -> Path:
        """Write the report in one step and return its path.

        Raises:
            OSError: the folder does not exist, cannot be written to, or the disk is full.
        """
        entries = [*self._flagged, *self._normal]
        pictures = {number: picture for _, number, _, picture in entries}
        listed = {-negative: line for _, negative, line in self._lines}
        listed |= {number: line for _, number, line, _ in entries}
        ranking = sorted(listed, key=lambda number: (-listed[number].score, number))
        lines = [listed[number] for number in ranking]
        pictured = {
            rank: pictures[number] for rank, number in enumerate(ranking) if number in pictures
        }
        support = sorted({round(score, 4) for score in self.settings.get("support_scores", [])})
        scores = np.array(self._scores, dtype=np.float64)
        style = Markup(read_template("report.css") + page_variables(pictured))
        script = Markup(read_template("report_maps.js") + read_template("report.js"))
        environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
        environment.filters["score"] = format_score
        environment.filters["data_address"] = data_address
        page = environment.from_string(read_template("report.html.j2")).render(
            title=self.settings.get("title", "Inspection report"),
            style=style,
            script=script,
            style_hash=content_hash(style),
            script_hash=content_hash(script),
            lines=lines,
            pictured=pictured,
            flagged=sum(line.score >= THRESHOLD for line in lines),
            in_all=len(scores),
            flagged_in_all=int((scores >= THRESHOLD).sum()),
            histogram=draw_histogram(scores, support),
            support_count=len(self.settings.get("support_scores", [])),
            false_alarm_rate=self.settings.get(FALSE_ALARM_SETTING),
            settings=list(setting_rows(self.settings)),
            failures=self._failures,
            failed=self._failed,
            threshold=THRESHOLD,
            words={flag: verdict(flag) for flag in (True, False)},
            data=self._page_data(lines, pictured),
        )
        write_text(path, page)
        return Path(path)

    def _page_data(self, lines: list[_Scored], pictured: dict[int, Picture]) -> Markup:
        """What the script needs, as JSON that cannot end the element it stands in."""
        content = {
            "threshold": THRESHOLD,
            "names": [line.name for line in lines],
            "scores": [line.score for line in lines],
            "p_values": [round(line.p_value, 4) for line in lines],
            "support": list(self.settings.get("support_scores", [])),
            "heat": base64.b64encode(heat_colours().tobytes()).decode(),
            "words": {"bad": verdict(True), "good": verdict(False)},
            "cards": {
                rank: {
                    "size": picture.size,
                    "regions": [
                        (r.x, r.y, r.width, r.height, round(r.peak, 4)) for r in picture.regions
                    ],
                }
                for rank, picture in pictured.items()
            },
        }
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def as_text(name: str) -> str:
    """The name with bytes that are no text, which file names may hold, written as escapes."""
    return name.encode(errors="backslashreplace").decode()


def read_template(name: str) -> str:
    return (
        resources.files("metaformer.inference.report")
        .joinpath("templates", name)
        .read_text(encoding="utf-8")
    )


def content_hash(text: str) -> str:
    """How a content security policy names an inline script or style."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def page_variables(pictured: dict[int, Picture]) -> str:
    """Style that depends on the content: the shape of the frames and the heat colours."""
    shapes = [picture.size[0] / picture.size[1] for picture in pictured.values()] or [1.0]
    aspect = float(np.clip(np.median(shapes), 0.75, 2))  # beyond, cards get out of hand
    stops = ",".join(f"rgb({r} {g} {b})" for r, g, b, _ in heat_colours()[::15].tolist())
    return f":root{{--aspect:{aspect:.3f};--heat:linear-gradient(90deg,{stops})}}"


def setting_rows(settings: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """(name, lines) of the settings table; what is nested is spelled out."""
    for key, value in settings.items():
        if key in ("title", "support_scores"):
            continue
        if isinstance(value, dict):
            yield key, [f"{name}: {readable_value(inner)}" for name, inner in value.items()]
        else:
            yield key, [readable_value(value)]


def readable_value(value: Any) -> str:
    """A setting as people write it."""
    match value:
        case None | [] | () | "":
            return "none"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.6g}"
        case list() | tuple():
            return ", ".join(readable_value(inner) for inner in value)
        case dict():
            return ", ".join(f"{name} {readable_value(inner)}" for name, inner in value.items())
    return str(value)
