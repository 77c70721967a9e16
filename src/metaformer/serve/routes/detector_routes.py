"""The addresses of the service under ``/api``, with ``/health`` and ``/metrics``."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any, BinaryIO, TypeVar

from fastapi import APIRouter, HTTPException, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ValidationError

import metaformer
from metaformer.io.images import ImageError
from metaformer.serve.http.limits import busy, storing
from metaformer.serve.http.openapi import (
    DETECTORS_LISTED,
    JOB_ACCEPTED,
    errors,
    form_body,
    text_answer,
)
from metaformer.serve.http.schemas import (
    AdaptRequest,
    DetectorDetails,
    DetectorList,
    Health,
    Job,
    JobAccepted,
    NotScored,
    Predictions,
    Scored,
)
from metaformer.serve.http.uploads import Upload, receive_form, shown
from metaformer.serve.jobs import Addition, TooManyJobsError
from metaformer.serve.metrics import CONTENT_TYPE, Outcome
from metaformer.serve.scoring import MapKind, answer_in_time, score_uploads
from metaformer.serve.service import Open, Protected, Service

CHUNK = 2**20
"""Bytes of a detector file sent at once."""

UNSET_IF_EMPTY = ("resolution", "white_level")

BODY_ERRORS = (400, 401, 403, 408, 409, 413, 415, 422, 503)
UPLOAD_ERRORS = (*BODY_ERRORS, 429)


DetectorId = Annotated[
    str, Path(pattern="^[0-9a-f]{32}$", description="As the server gave it.", title="Detector")
]
JobId = Annotated[str, Path(pattern="^[0-9a-f]{32}$", description="As the server gave it.")]

M = TypeVar("M", bound=BaseModel)

router = APIRouter()


@router.get("/health", responses=errors(403), tags=["service"])
def health(service: Open) -> Health:
    """The service is up; needs no token."""
    return Health(version=metaformer.__version__, detectors=len(service.store))


@router.get(
    "/metrics",
    response_class=Response,
    responses={**text_answer("text/plain"), **errors(401, 403)},
    tags=["service"],
)
def metrics(service: Protected) -> Response:
    """Counts and times in the Prometheus text format."""
    return Response(service.metrics.text(), media_type=CONTENT_TYPE)


@router.get(
    "/api/detectors",
    responses={200: DETECTORS_LISTED, **errors(401, 403)},
    tags=["detectors"],
)
def list_detectors(service: Protected) -> DetectorList:
    """All detectors, newest first."""
    return DetectorList(detectors=service.store.summaries())


@router.post(
    "/api/detectors",
    status_code=202,
    responses={202: JOB_ACCEPTED, **errors(*UPLOAD_ERRORS)},
    openapi_extra=form_body(AdaptRequest.model_json_schema()),
    tags=["detectors"],
)
async def make_detector(request: Request, response: Response, service: Protected) -> JobAccepted:
    """Adapt to a product from images of good specimens. Answers at once; follow the job."""
    with service.gate.place():
        if service.store.is_full():
            raise HTTPException(409, f"the store holds {service.store.most} detectors.")
        async with receive_form(request, service.limits) as (texts, uploads):
            wanted = read_fields(AdaptRequest, texts)
            most = service.limits.resolution
            if wanted.resolution is not None and wanted.resolution > most:
                raise HTTPException(422, f"resolution: this server takes at most {most}.")
            return await submit(request, response, service, wanted, uploads)


async def submit(
    request: Request,
    response: Response,
    service: Service,
    wanted: AdaptRequest | Addition,
    uploads: list[Upload],
) -> JobAccepted:
    """Have the images adapted to; see ``Adaptations.submit``."""
    work = partial(service.adaptations.submit, wanted, uploads)
    try:
        with storing("the images"):
            job = await answer_in_time(request, service.limits.seconds, service.workers.run(work))
    except ImageError as error:
        raise HTTPException(422, f"{error}") from None
    except TooManyJobsError as error:
        raise busy(429, str(error)) from None
    response.headers["Location"] = f"/api/jobs/{job.id}"
    return JobAccepted(job=job)


def read_fields(model: type[M], texts: dict[str, str]) -> M:
    """Raises: HTTPException: 422, saying of each field what is wrong."""
    try:
        # A page's form sends an empty text for a number left out.
        given = {k: v for k, v in texts.items() if v or k not in UNSET_IF_EMPTY}
        return model.model_validate(given)
    except ValidationError as error:
        raise HTTPException(422, describe_errors(error.errors())) from None


def refuse_fields(texts: dict[str, str]) -> None:
    """Refuse text fields where only images are accepted: raises HTTPException 422."""
    if texts:
        raise HTTPException(422, f'the field "{shown(min(texts))}" means nothing here.')


def describe_errors(found: Any) -> str:
    """Pydantic's list as one line."""
    return "; ".join(
        f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in found
    )[:1000]


@router.get("/api/jobs/{id}", responses=errors(401, 403, 404, 422), tags=["detectors"])
def get_job(id: JobId, service: Protected) -> Job:
    """How far an adaptation is; the last 200 are remembered until the server stops."""
    job = service.adaptations.get(id)
    if job is None:
        raise HTTPException(404, f"no job has the id {id}.")
    return job


@router.get("/api/detectors/{id}", responses=errors(401, 403, 404, 409, 422), tags=["detectors"])
def get_detector(id: DetectorId, service: Protected) -> DetectorDetails:
    """One detector and how it was made."""
    summary = service.store.summary(id)
    return DetectorDetails(**summary.model_dump(), info=service.store.get(id).info())


@router.delete(
    "/api/detectors/{id}",
    status_code=204,
    responses=errors(401, 403, 404, 422),
    tags=["detectors"],
)
def delete_detector(id: DetectorId, service: Protected) -> None:
    """Forget a detector for good, with the marks of its photos."""
    service.store.delete(id)
    service.marks.forget(id)
    service.metrics.forget(id)


@router.get(
    "/api/detectors/{id}/file",
    response_class=StreamingResponse,
    responses={
        200: {
            "content": {
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
            },
            "description": "The detector file, for `metaformer predict`.",
        },
        **errors(401, 403, 404, 422),
    },
    tags=["detectors"],
)
def download_detector(id: DetectorId, service: Protected) -> StreamingResponse:
    """The detector file: what `metaformer adapt` writes."""
    size = service.store.summary(id).bytes
    return StreamingResponse(
        read_chunks(service.store.open(id)),
        media_type="application/octet-stream",
        headers={
            "Content-Disposition": f'attachment; filename="{id}.metaformer"',
            "Content-Length": str(size),
        },
    )


def read_chunks(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while chunk := file.read(CHUNK):
            yield chunk


@router.post(
    "/api/detectors/{id}/predict",
    responses=errors(*UPLOAD_ERRORS, 404),
    openapi_extra=form_body({}),
    tags=["scoring"],
)
async def predict(
    request: Request,
    id: DetectorId,
    service: Protected,
    kind: Annotated[
        MapKind, Query(alias="map", description="Pictures to send back with the scores.")
    ] = "none",
) -> Predictions:
    """Score images. A file that cannot be read gets an entry with its error beside the others."""
    with service.gate.place():
        service.store.summary(id)
        async with receive_form(request, service.limits) as (texts, uploads):
            refuse_fields(texts)

            async def load_and_score() -> list[Scored | NotScored]:
                detector = await service.workers.run(partial(service.store.get, id))
                return await score_uploads(service.workers, detector, uploads, kind, service.limits)

            entries = await answer_in_time(request, service.limits.seconds, load_and_score())
    count_outcomes(service, id, entries)
    return Predictions(predictions=entries)


def count_outcomes(service: Service, id: str, entries: list[Scored | NotScored]) -> None:
    product = service.store.name_of(id)
    if product is None:  # deleted meanwhile
        return
    for entry in entries:
        if isinstance(entry, NotScored):
            service.metrics.count(id, product, "unreadable")
        else:
            outcome: Outcome = "anomalous" if entry.is_anomalous else "normal"
            service.metrics.count(id, product, outcome, entry.score)
