"""Bodies of requests and answers of a review: rates, marks, reports."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from metaformer.serve.http.schemas import PictureFound, RegionFound


class RateRequest(BaseModel):
    """A new false-alarm rate, given as a rate or as the score to put the threshold at."""

    model_config = ConfigDict(extra="forbid")

    false_alarm_rate: Annotated[float, Field(ge=1e-6, le=0.99)] | None = None
    score: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="Calibrated score, 0.5 at the threshold so far."
    )

    @model_validator(mode="after")
    def check_one(self) -> RateRequest:
        if (self.false_alarm_rate is None) == (self.score is None):
            raise ValueError("give either false_alarm_rate or score")
        return self


class Rate(BaseModel):
    """The false-alarm rate of a threshold."""

    false_alarm_rate: float
    guarantee: str = Field(description="What that threshold would promise, in words.")


Verdict = Literal["good", "defective"]


class MarkRequest(BaseModel):
    """What a reviewer says of a photo."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=1000, description="The photo's file name, for people.")
    verdict: Verdict
    note: str = Field("", max_length=2000)
    score: float | None = Field(None, description="Score at the time of the mark.")


class Mark(MarkRequest):
    """A mark as it is kept."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="Of the photo's bytes.")
    marked: str = Field(description="When, ISO 8601, UTC.")


class MarkList(BaseModel):
    """All marks of a detector, newest first."""

    marks: list[Mark]


class ReportEntry(BaseModel):
    """One scored photo of a report: what the answer said of it, and what is known to be true."""

    name: str = Field(max_length=1000, description="The photo's path, for people.")
    score: float = Field(ge=0, le=1)
    p_value: float = Field(ge=0, le=1)
    is_anomalous: bool
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    regions: list[RegionFound] = Field(default_factory=list)
    picture: PictureFound | None = None
    truth: Verdict | None = None
    kind: str = Field("", max_length=200, description="Kind of the true defect.")
    outline: list[list[int]] = Field(
        default_factory=list,
        max_length=10_000,
        description="Where it is truly defective: polygons x, y, x, y ... in pixels of the photo.",
    )


class ReportFailure(BaseModel):
    """A photo that was not scored."""

    name: str = Field(max_length=1000)
    reason: str = Field(max_length=4000)


class ReportRequest(BaseModel):
    """What a report shall hold."""

    entries: list[ReportEntry] = Field(min_length=1, max_length=20_000)
    failures: list[ReportFailure] = Field(default_factory=list, max_length=20_000)
