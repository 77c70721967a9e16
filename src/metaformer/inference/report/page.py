"""The report's page: ``templates/report.html.j2`` with its style sheet and scripts put inside.

The page asks the network for nothing and runs no script but its own: its content security policy
names both by their hash, so that a hostile file name stays text.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from metaformer.detection.scoring.overlays import format_score, heat_colours, verdict
from metaformer.inference.report.histogram import draw_histogram
from metaformer.inference.report.thumbnails import Picture
from metaformer.io.encoding import data_address

THRESHOLD = 0.5
"""Calibrated scores put the detector's threshold here."""
SLIDER_STEPS = 200
"""Positions of the threshold slider from 0 to 1; counts by truth are known at each."""
FALSE_ALARM_SETTING = "false-alarm rate asked"
"""This line of the settings is repeated in the summary at the top."""
SCRIPTS = ("report_maps.js", "report_zoom.js", "report.js", "report_viewer.js")


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the ranking."""

    name: str
    score: float
    p_value: float
    is_defective: bool | None = None
    """The truth, if it is known."""
    kind: str = ""
    """Kind of defect, or "good"."""

    @property
    def is_wrong(self) -> bool:
        """A missed defect or a false alarm, at the detector's threshold."""
        return self.is_defective is not None and self.is_defective != (self.score >= THRESHOLD)


@dataclass(frozen=True)
class PageContent:
    """Content of a report for ``render_page``."""

    settings: dict[str, Any]
    lines: list[Line]
    """By falling score."""
    pictured: dict[int, Picture]
    """Place in ``lines`` -> picture."""
    scores: NDArray[np.float64]
    """All scores, of images without a line too, in any order."""
    truths: NDArray[np.int8]
    """Of each score: 1 defective, 0 good, -1 unknown."""
    failures: list[tuple[str, str]]
    failed: int
    folder: Path | None
    """Where the page will lie; None for nowhere yet."""


def render_page(content: PageContent) -> str:
    """The page as text."""
    lines, settings, scores = content.lines, content.settings, content.scores
    support = sorted({round(score, 4) for score in settings.get("support_scores", [])})
    style = Markup(
        read_template("look.css") + read_template("report.css") + page_variables(content.pictured)
    )
    script = Markup("".join(read_template(name) for name in SCRIPTS))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["score"] = format_score
    environment.filters["data_address"] = data_address
    known = content.truths >= 0
    return environment.from_string(read_template("report.html.j2")).render(
        title=settings.get("title", "Inspection report"),
        style=style,
        script=script,
        style_hash=content_hash(style),
        script_hash=content_hash(script),
        lines=lines,
        pictured=content.pictured,
        links={rank: image_link(lines[rank].name, content.folder) for rank in content.pictured},
        flagged=sum(line.score >= THRESHOLD for line in lines),
        in_all=len(scores),
        flagged_in_all=int((scores >= THRESHOLD).sum()),
        histogram=draw_histogram(scores_by_truth(scores, content.truths), support),
        has_truth=bool(known.any()),
        unknown=int((~known).sum()),
        has_outlines=any(picture.outline for picture in content.pictured.values()),
        support_count=len(settings.get("support_scores", [])),
        false_alarm_rate=settings.get(FALSE_ALARM_SETTING),
        settings=list(setting_rows(settings)),
        failures=content.failures,
        failed=content.failed,
        threshold=THRESHOLD,
        step=1 / SLIDER_STEPS,
        words={flag: verdict(flag) for flag in (True, False)},
        data=page_data(content),
    )


def scores_by_truth(
    scores: NDArray[np.float64], truths: NDArray[np.int8]
) -> dict[str, NDArray[np.float64]]:
    """Rows of the histogram: one where no truth is known, else one for each truth there is."""
    if not (truths >= 0).any():
        return {"": scores}
    titles = {0: "truly good", 1: "truly defective", -1: "truth not known"}
    return {
        title: scores[truths == truth] for truth, title in titles.items() if (truths == truth).any()
    }


def page_data(content: PageContent) -> Markup:
    """Data for the page's script, as JSON that cannot close its script element."""
    lines, pictured = content.lines, content.pictured
    goods = {picture.good for picture in pictured.values() if picture.good is not None}
    shown_goods = {good: i for i, good in enumerate(sorted(goods))}
    data = {
        "threshold": THRESHOLD,
        "names": [line.name for line in lines],
        "scores": [line.score for line in lines],
        "p_values": [round(line.p_value, 4) for line in lines],
        "support": list(content.settings.get("support_scores", [])),
        "heat": base64.b64encode(heat_colours().tobytes()).decode(),
        "words": {"bad": verdict(True), "good": verdict(False)},
        "goods": [[good.name, data_address(good.jpeg, "jpeg")] for good in shown_goods],
        "cards": {
            rank: {
                "size": picture.size,
                "regions": [
                    (r.x, r.y, r.width, r.height, round(r.peak, 4)) for r in picture.regions
                ],
            }
            | ({"truth": picture.outline} if picture.outline else {})
            | ({"good": shown_goods[picture.good]} if picture.good else {})
            for rank, picture in pictured.items()
        },
    }
    if (content.truths >= 0).any():
        data["truths"] = [line.is_defective for line in lines]
        # Of all images, listed or not: how many are at or above each position of the slider.
        data["above"] = {
            word: count_above(content.scores[content.truths == truth])
            for word, truth in (("good", 0), ("defective", 1))
        }
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def count_above(scores: NDArray[np.float64]) -> list[int]:
    """Number of scores at or above each position of the slider, 0 to 1."""
    cuts = np.arange(SLIDER_STEPS + 1) / SLIDER_STEPS
    return (len(scores) - np.searchsorted(np.sort(scores), cuts, side="left")).tolist()


def image_link(name: str, folder: Path | None) -> str | None:
    """Relative address of an image file from ``folder``; None if the name is no file here."""
    try:
        if folder is None or not Path(name).is_file():
            return None
        path = Path(name).absolute()
    except (OSError, ValueError):  # a name that no file could have
        return None
    try:
        relative = Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # on another drive of Windows
        return path.as_uri()
    # The dot keeps a name with a colon from being taken for a scheme.
    return f"./{quote(os.fsencode(relative))}"


def as_text(name: str) -> str:
    """The name with bytes that are no text, which file names may hold, written as escapes."""
    return name.encode(errors="backslashreplace").decode()


def read_template(name: str) -> str:
    """A file of the folder ``templates``."""
    return (
        resources.files("metaformer.inference.report")
        .joinpath("templates", name)
        .read_text(encoding="utf-8")
    )


def content_hash(text: str) -> str:
    """Hash of an inline script or style for the content security policy."""
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
