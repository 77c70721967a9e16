"""One line of the scores: what is kept of a prediction."""

from __future__ import annotations

import re
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

from metaformer.data.datasets.category import Sample
from metaformer.detection.scoring.prediction import Prediction
from metaformer.io.sources.naming import UNKNOWN, Version, version_digest

FORMULA = re.compile(r"'*[=+\-@\t\r]")
"""How a text begins that a spreadsheet would run, or that has the mark against that."""


class OutputFolderError(ValueError):
    """The output folder holds results of another run."""


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """The columns, in their order; documented in ``docs/scale.md``."""

    path: str
    score: float
    is_anomalous: bool
    p_value: float
    p_value_kind: str
    raw_score: float
    regions: int
    largest_region_box: str
    largest_region_area: int
    map: str
    """Path of the heat map inside the output folder, with slashes; empty if none was written."""
    size: int = 0
    """Bytes of the file, or of the archive or video, when it was scored; 0 if not known."""
    mtime_ns: int = 0
    """When that was last changed, in nanoseconds since 1970; 0 if not known."""
    truth: str = ""
    """``good`` or a kind of defect, as ``--labels`` reads it; empty if not known."""


COLUMNS = tuple(field.name for field in fields(ScoreRow))

COUNTS = (len(COLUMNS), 12, 10)
"""How many of the columns a line has: all, or those of versions without ``truth``, or without
``size`` and what follows it, either."""


def row_digest(row: ScoreRow) -> bytes:
    """Digest that identifies a version of an image."""
    return version_digest(row.path, row.size, row.mtime_ns)


def is_current(row: ScoreRow, version: Version) -> bool:
    """Whether the image is still as it was when it was scored, as far as that is known."""
    return (row.size, row.mtime_ns) in (version, UNKNOWN) or version == UNKNOWN


def score_row(
    prediction: Prediction, p_value_kind: str, map_file: str, version: Version = UNKNOWN
) -> ScoreRow:
    """The line of an image, ``prediction.path`` being its name."""
    largest = prediction.largest_region
    return ScoreRow(
        path=prediction.path or "",
        score=prediction.score,
        is_anomalous=prediction.is_anomalous,
        p_value=prediction.p_value,
        p_value_kind=p_value_kind,
        raw_score=prediction.raw_score,
        regions=len(prediction.regions),
        largest_region_box=(
            f"{largest.x} {largest.y} {largest.width} {largest.height}" if largest else ""
        ),
        largest_region_area=largest.area if largest else 0,
        map=map_file,
        size=version[0],
        mtime_ns=version[1],
    )


def with_truth(row: ScoreRow, known: Sample | None) -> ScoreRow:
    """The line with what is known of its image; what an earlier run knew stays if nothing is."""
    return row if known is None else replace(row, truth=known.kind)


def truth_of(row: ScoreRow) -> Sample | None:
    """Truth of the row's image, without masks."""
    if not row.truth:
        return None
    return Sample(Path(row.path), row.truth != "good", (), row.truth)


def to_text(row: ScoreRow) -> tuple[Any, ...]:
    """The line as CSV shows it."""
    values = dict(zip(COLUMNS, astuple(row), strict=True))
    values["path"] = guarded(row.path)
    values["truth"] = guarded(row.truth)
    values["score"] = f"{row.score:.6f}"
    values["is_anomalous"] = "true" if row.is_anomalous else "false"
    values["p_value"] = f"{row.p_value:.4f}"
    values["raw_score"] = f"{row.raw_score:.8g}"
    return tuple(values.values())


def from_text(values: list[str]) -> ScoreRow:
    """A line of CSV.

    Raises:
        ValueError: not as ``to_text`` writes it.
    """
    if len(values) not in COUNTS:
        raise ValueError(f"{len(values)} columns")
    row = dict(zip(COLUMNS, values, strict=False))
    if row["is_anomalous"] not in ("true", "false"):
        raise ValueError(f"is_anomalous is {row['is_anomalous']!r}")
    return ScoreRow(
        path=unguarded(row["path"]),
        score=float(row["score"]),
        is_anomalous=row["is_anomalous"] == "true",
        p_value=float(row["p_value"]),
        p_value_kind=row["p_value_kind"],
        raw_score=float(row["raw_score"]),
        regions=int(row["regions"]),
        largest_region_box=row["largest_region_box"],
        largest_region_area=int(row["largest_region_area"]),
        map=row["map"],
        size=int(row.get("size", 0)),
        mtime_ns=int(row.get("mtime_ns", 0)),
        truth=unguarded(row.get("truth", "")),
    )


def guarded(text: str) -> str:
    """``text`` with a mark in front if a spreadsheet would take it for a formula and run it.

    ``unguarded`` takes the mark away; the web page's own CSV has it, too.
    """
    return f"'{text}" if FORMULA.match(text) else text


def unguarded(text: str) -> str:
    """The inverse of ``guarded``."""
    return text[1:] if text.startswith("'") and FORMULA.match(text) else text
