"""One line of the scores: what is kept of a prediction."""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields
from typing import Any

from metaformer.detection.scoring.prediction import Prediction


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


COLUMNS = tuple(field.name for field in fields(ScoreRow))


def score_row(prediction: Prediction, p_value_kind: str, map_file: str) -> ScoreRow:
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
    )


def to_text(row: ScoreRow) -> tuple[Any, ...]:
    """The line as CSV shows it."""
    values = dict(zip(COLUMNS, astuple(row), strict=True))
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
    row = dict(zip(COLUMNS, values, strict=True))
    if row["is_anomalous"] not in ("true", "false"):
        raise ValueError(f"is_anomalous is {row['is_anomalous']!r}")
    return ScoreRow(
        path=row["path"],
        score=float(row["score"]),
        is_anomalous=row["is_anomalous"] == "true",
        p_value=float(row["p_value"]),
        p_value_kind=row["p_value_kind"],
        raw_score=float(row["raw_score"]),
        regions=int(row["regions"]),
        largest_region_box=row["largest_region_box"],
        largest_region_area=int(row["largest_region_area"]),
        map=row["map"],
    )
