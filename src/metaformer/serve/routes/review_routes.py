"""Routes for review: marks, more good photos, another false-alarm rate, the report."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, HTTPException, Path, Query, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import ValidationError

from metaformer.detection.detector import Detector
from metaformer.serve.http.limits import storing
from metaformer.serve.http.openapi import JOB_ACCEPTED, errors, form_body, json_body, text_answer
from metaformer.serve.http.review_schemas import (
    Mark,
    MarkList,
    MarkRequest,
    Rate,
    RateRequest,
    ReportRequest,
)
from metaformer.serve.http.schemas import DetectorSummary, ExtendRequest, JobAccepted
from metaformer.serve.http.security import REPORT_POLICY
from metaformer.serve.http.uploads import receive_form, receive_json
from metaformer.serve.jobs import Addition
from metaformer.serve.reports import PictureError, make_report
from metaformer.serve.routes.detector_routes import (
    BODY_ERRORS,
    UPLOAD_ERRORS,
    DetectorId,
    M,
    describe_errors,
    read_fields,
    submit,
)
from metaformer.serve.scoring import answer_in_time
from metaformer.serve.service import Protected, Service
from metaformer.serve.store import NoSuchDetectorError

SMALL_BODY = 64 * 2**10
"""Bytes of a body that holds some words and numbers."""

Digest = Annotated[
    str, Path(pattern="^[0-9a-f]{64}$", description="SHA-256 of the photo's bytes, in hex.")
]
router = APIRouter()


async def read_body(
    request: Request, service: Service, model: type[M], most: int | None = None
) -> M:
    """Raises: HTTPException: as ``receive_json``; 422, saying of each field what is wrong."""
    body = await receive_json(request, service.limits, most)
    try:
        return await service.workers.run(partial(model.model_validate_json, body))
    except ValidationError as error:
        raise HTTPException(422, describe_errors(error.errors())) from None


@router.post(
    "/api/detectors/{id}/extend",
    status_code=202,
    responses={202: JOB_ACCEPTED, **errors(*UPLOAD_ERRORS, 404)},
    openapi_extra=form_body(ExtendRequest.model_json_schema()),
    tags=["review"],
)
async def extend_detector(
    request: Request, response: Response, id: DetectorId, service: Protected
) -> JobAccepted:
    """Add good photos to what a detector knows; it keeps its id. Answers at once; follow the job.

    Photos it knows already are left out. `info.additions` says how the threshold was made anew.
    """
    with service.gate.place():
        service.store.summary(id)
        async with receive_form(request, service.limits) as (texts, uploads):
            wanted = read_fields(ExtendRequest, texts)
            addition = Addition(id, wanted.white_level)
            return await submit(request, response, service, addition, uploads)


@router.get("/api/detectors/{id}/rate", responses=errors(401, 403, 404, 409, 422), tags=["review"])
def get_rate(
    id: DetectorId,
    service: Protected,
    score: Annotated[float, Query(gt=0, lt=1, description="Calibrated score, 0.5 by default.")],
) -> Rate:
    """The false-alarm rate of the threshold at a score; nothing is changed."""
    calibration = service.store.get(id).calibration
    other = calibration.with_false_alarm_rate(calibration.rate_at(score))
    return Rate(false_alarm_rate=other.false_alarm_rate, guarantee=other.guarantee)


@router.patch(
    "/api/detectors/{id}",
    responses=errors(*BODY_ERRORS, 404),
    openapi_extra=json_body(RateRequest),
    tags=["review"],
)
async def set_rate(request: Request, id: DetectorId, service: Protected) -> DetectorSummary:
    """Keep another false-alarm rate, or that of a threshold tried out; scores change with it."""
    service.store.summary(id)
    wanted = await read_body(request, service, RateRequest, SMALL_BODY)

    def change(detector: Detector) -> Detector:
        rate = wanted.false_alarm_rate
        if wanted.score is not None:
            rate = detector.calibration.rate_at(wanted.score)
        assert rate is not None
        return detector.with_false_alarm_rate(rate)

    with storing("the detector"):
        return await service.workers.run(partial(service.store.change, id, change))


@router.get("/api/detectors/{id}/marks", responses=errors(401, 403, 404, 409, 422), tags=["review"])
def list_marks(id: DetectorId, service: Protected) -> MarkList:
    """What reviewers said of photos scored by this detector, newest first."""
    service.store.summary(id)
    return MarkList(marks=service.marks.all(id))


@router.get(
    "/api/detectors/{id}/marks.csv",
    response_class=Response,
    responses={**text_answer("text/csv"), **errors(401, 403, 404, 409, 422)},
    tags=["review"],
)
def export_marks(id: DetectorId, service: Protected) -> Response:
    """All marks as a table, which `metaformer predict --labels` reads."""
    service.store.summary(id)
    headers = {"Content-Disposition": f'attachment; filename="{id}-marks.csv"'}
    return Response(service.marks.as_csv(id), media_type="text/csv", headers=headers)


@router.put(
    "/api/detectors/{id}/marks/{sha256}",
    responses=errors(*BODY_ERRORS, 404),
    openapi_extra=json_body(MarkRequest),
    tags=["review"],
)
async def set_mark(request: Request, id: DetectorId, sha256: Digest, service: Protected) -> Mark:
    """Say that a photo is good or defective; takes the place of an earlier mark."""
    service.store.summary(id)
    wanted = await read_body(request, service, MarkRequest, SMALL_BODY)
    with storing("the mark"):
        mark = await service.workers.run(partial(service.marks.put, id, sha256, wanted))
    try:
        service.store.summary(id)
    except NoSuchDetectorError:  # deleted meanwhile, and its marks with it
        service.marks.forget(id)
        raise
    return mark


@router.delete(
    "/api/detectors/{id}/marks/{sha256}",
    status_code=204,
    responses=errors(401, 403, 404, 409, 422),
    tags=["review"],
)
def remove_mark(id: DetectorId, sha256: Digest, service: Protected) -> None:
    """Take back what was said of a photo."""
    service.store.summary(id)
    if not service.marks.remove(id, sha256):
        raise HTTPException(404, "there is no mark of this photo.")


@router.post(
    "/api/detectors/{id}/report",
    response_class=Response,
    responses={**text_answer("text/html"), **errors(*UPLOAD_ERRORS, 404)},
    openapi_extra=json_body(ReportRequest),
    tags=["review"],
)
async def report(request: Request, id: DetectorId, service: Protected) -> Response:
    """The report of scored photos: one HTML file, from answers of `predict` with `map=report`."""
    with service.gate.place():
        service.store.summary(id)
        wanted = await read_body(request, service, ReportRequest)

        async def load_and_make() -> str:
            detector = await service.workers.run(partial(service.store.get, id))
            return await service.workers.run(partial(make_report, detector, wanted))

        try:
            page = await answer_in_time(request, service.limits.seconds, load_and_make())
        except PictureError as error:
            raise HTTPException(422, str(error)) from None
    return HTMLResponse(page, headers={"Content-Security-Policy": REPORT_POLICY})
