"""Bodies of requests and answers, as pydantic models; the OpenAPI document is made from them."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
)
from pydantic.json_schema import SkipJsonSchema

from metaformer.detection.scoring.prediction import Prediction

NAME_LENGTH = 100
"""Longest name of a product, in characters."""


def check_name(name: str) -> str:
    """A name to show: something visible, nothing that moves the cursor or breaks a line."""
    if not name.strip():
        raise ValueError("the name is empty")
    if any(unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"} for c in name):
        raise ValueError("the name holds control characters")
    return name.strip()


def check_true_or_false(value: object) -> object:
    """The two words a form may send for a yes or no; pydantic would take on, y, 1 and more."""
    if value not in ("true", "false", True, False):
        raise ValueError('must be "true" or "false"')
    return value


def leave_out_default(schema: dict[str, Any]) -> None:
    """None is not a value that a client could send."""
    schema.pop("default", None)


# A form has no null: what is unset is left out.
WhiteLevel = Annotated[int, Field(ge=1, le=65535)] | SkipJsonSchema[None]


class AdaptRequest(BaseModel):
    """The text fields of a request for a new detector; the images come beside them."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, AfterValidator(check_name)] = Field(
        min_length=1,
        max_length=NAME_LENGTH,
        pattern=r"^[^\x00-\x1f\x7f-\x9f]*[^\x00-\x20\x7f-\xa0][^\x00-\x1f\x7f-\x9f]*$",
        description="What the product is called.",
        examples=["bracket, left"],
    )
    false_alarm_rate: float = Field(
        0.05, ge=1e-6, le=0.99, description="Share of good parts that may be flagged."
    )
    preset: Literal["feature", "pixel"] = Field(
        "feature", description="Which universal model to adapt."
    )
    resolution: Annotated[int, Field(ge=64, le=2048)] | SkipJsonSchema[None] = Field(
        None,
        description="Working size in pixels; the preset's own if left out.",
        json_schema_extra=leave_out_default,
    )
    aligned: Annotated[bool, BeforeValidator(check_true_or_false)] = Field(
        False,
        description="Parts stand in the same place on every image.",
    )
    white_level: WhiteLevel = Field(
        None,
        description="Value of 16-bit images that means white (12-bit cameras: 4095); guessed from "
        "the images if left out.",
        json_schema_extra=leave_out_default,
    )


class ExtendRequest(BaseModel):
    """What the form for adding good images holds beside the images."""

    model_config = ConfigDict(extra="forbid")

    white_level: WhiteLevel = Field(
        None,
        description="Value of 16-bit images that means white, where the detector's is not known.",
        json_schema_extra=leave_out_default,
    )


class DetectorSummary(BaseModel):
    """A detector in the store."""

    id: str = Field(pattern="^[0-9a-f]{32}$")
    name: str
    preset: Literal["feature", "pixel"]
    made: str = Field(description="When, ISO 8601, UTC.")
    support_count: int = Field(description="Normal images it was adapted to.")
    false_alarm_rate: float
    threshold: float = Field(description="Raw score from which an image is anomalous.")
    guarantee: str = Field(description="What the threshold promises, in words.")
    bytes: int = Field(description="Size of its file.")


class DetectorDetails(DetectorSummary):
    """A detector with all that is known of how it was made."""

    info: dict[str, Any] = Field(description="As `metaformer info` prints it.")


class DetectorList(BaseModel):
    """All detectors, newest first."""

    detectors: list[DetectorSummary]


class Job(BaseModel):
    """An adaptation on its way."""

    id: str = Field(pattern="^[0-9a-f]{32}$")
    kind: Literal["adapt", "extend"] = "adapt"
    state: Literal["waiting", "running", "done", "failed"]
    done: int = Field(description="Steps done.")
    total: int = Field(description="Steps in all; 0 until known.")
    detector: DetectorSummary | None = None
    warnings: list[str] = Field(
        default_factory=list,
        description="What to know about the images and the promise: copies left out, images "
        "unlike the others, a rate that is not guaranteed.",
    )
    error: str | None = Field(default=None, description="Why it failed.")


class JobAccepted(BaseModel):
    """A job has been taken on; ask for it by its id."""

    job: Job


class RegionFound(BaseModel):
    """One connected group of defective pixels, in pixels of the upright image."""

    box: tuple[int, int, int, int] = Field(description="x, y, width, height.")
    area: int = Field(description="Defective pixels in it.")
    peak: float = Field(description="Highest value of the map inside; 0.5 is the threshold.")


class GoodShown(BaseModel):
    """The good photo of the support that looks most like the scored one."""

    name: str = Field(max_length=1000)
    photo: str = Field(description="A small JPEG as a data URL.")


class PictureFound(BaseModel):
    """Pictures for a report, all as data URLs."""

    photo: str = Field(description="JPEG, its longer side at most 512 pixels.")
    heat: str = Field(description="Calibrated map as an 8-bit PNG; 128 is the pixel threshold.")
    thumbnail: tuple[int, int] = Field(description="Width and height of the JPEG.")
    crops: list[str] = Field(description="JPEGs of the first regions, from the original pixels.")
    good: GoodShown | None = None


class Scored(BaseModel):
    """The result for one image."""

    index: int = Field(description="Place among the images of the request, from 0.")
    name: str = Field(description="The file's name as sent, without folders.")
    score: float = Field(description="Calibrated, in (0, 1): 0.5 is the threshold.")
    raw_score: float
    p_value: float = Field(description="Share of normal images expected to score this high.")
    p_value_kind: str = Field(description="What it was ranked among; see docs/scale.md.")
    is_anomalous: bool
    sha256: str = Field(description="Of the bytes sent; marks are kept under it.")
    width: int
    height: int
    regions: list[RegionFound]
    map: str | None = Field(
        description="A data URL: with `png` the map in 8 bits at the image's own size, with "
        "`overlay` a JPEG view of the image with heat map and outlines."
    )
    picture: PictureFound | None = Field(None, description="With `map=report`.")
    warnings: list[str] = Field(
        default_factory=list,
        description="Doubts about the result: a 16-bit image, and the detector does not know "
        "which value is white.",
    )
    error: None = None

    @classmethod
    def of(
        cls,
        index: int,
        name: str,
        prediction: Prediction,
        *,
        sha256: str,
        p_value_kind: str,
        map: str | None = None,
        picture: PictureFound | None = None,
        warnings: Sequence[str] = (),
    ) -> Scored:
        height, width = prediction.anomaly_map.shape
        return cls(
            index=index,
            name=name,
            score=prediction.score,
            raw_score=prediction.raw_score,
            p_value=prediction.p_value,
            p_value_kind=p_value_kind,
            sha256=sha256,
            picture=picture,
            warnings=list(warnings),
            is_anomalous=prediction.is_anomalous,
            width=width,
            height=height,
            regions=[
                RegionFound(box=(r.x, r.y, r.width, r.height), area=r.area, peak=r.peak)
                for r in prediction.regions
            ],
            map=map,
        )


class NotScored(BaseModel):
    """An image that could not be read."""

    index: int
    name: str
    error: str


class Predictions(BaseModel):
    """Predictions in the order of the request's images."""

    predictions: list[Scored | NotScored]
    threshold: float = Field(
        default=0.5, description="Calibrated score from which an image is anomalous."
    )


class Health(BaseModel):
    """The service answers."""

    status: Literal["ok"] = "ok"
    version: str
    detectors: int


class Error(BaseModel):
    """Why a request was not carried out."""

    detail: str
