"""Puts the service together: routes, error answers, and what happens around each request."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import metaformer
from metaformer.detection.detector_file import DetectorFileError
from metaformer.io.extras import need
from metaformer.serve.http.limits import Gate, Limits
from metaformer.serve.http.openapi import fit_document
from metaformer.serve.http.security import ANSWER_POLICY, refusal
from metaformer.serve.jobs import Adaptations
from metaformer.serve.marks import MarksFileError, MarksFullError, MarkStore
from metaformer.serve.metrics import Metrics
from metaformer.serve.routes import api_docs, detector_routes, review_routes, static_files
from metaformer.serve.scoring import ClientGone, Workers
from metaformer.serve.service import Service
from metaformer.serve.store import (
    DetectorStore,
    NoSuchDetectorError,
    ServeEngine,
    StoreFullError,
)

CLIENT_GONE = 499
"""Counted, never seen: there is nobody left to see it. The number is the usual one for this."""


def create_app(
    folder: Path | str,
    *,
    detectors: tuple[Path, ...] = (),
    limits: Limits | None = None,
    token: str | None = None,
    workers: int | None = None,
    allowed_hosts: frozenset[str] | None = None,
    engine: ServeEngine = "auto",
) -> FastAPI:
    """The service over the detectors in ``folder``, ready for any ASGI server.

    Args:
        folder: where detectors are kept; made if it is not there. One service at a time uses it.
        detectors: files to take into the folder first.
        limits: what clients may ask for.
        token: what they must send as a bearer token; None for an open server.
        workers: images scored at once; one a processor, at most 4, if None.
        allowed_hosts: names the server goes by (in lower case, without port); None for any.
        engine: what computes, on as many threads as PyTorch.

    Raises:
        MissingExtraError: the engine is not installed.
        StoreError: another service uses the folder.
        DetectorFileError: one of ``detectors`` is no detector.
        OSError: the folder cannot be made or written to.
    """
    limits = limits or Limits()
    if engine == "onnxruntime":
        for package in ("onnx", "onnxruntime"):
            need(package)  # now, not at the first request
    store = DetectorStore(Path(folder), most=limits.detectors, loaded=limits.loaded, engine=engine)
    try:
        for path in detectors:
            store.take_in(path)
    except BaseException:
        store.close()
        raise
    service = Service(
        store=store,
        marks=MarkStore(store.folder),
        adaptations=Adaptations(store, limits),
        workers=Workers(workers or min(4, os.cpu_count() or 1)),
        limits=limits,
        gate=Gate(limits.requests),
        metrics=Metrics(),
        token=token,
    )
    service.metrics.watch("detectors", "Detectors in the store.", lambda: len(store))
    service.metrics.watch("uploads", "Uploads being worked on.", lambda: service.gate.inside)
    service.metrics.watch("waiting", "Tasks without a thread.", lambda: service.workers.waiting)
    counts = service.adaptations.counts
    service.metrics.watch("jobs_waiting", "Adaptations waiting.", lambda: counts()["waiting"])
    service.metrics.watch("jobs_running", "Adaptations running.", lambda: counts()["running"])

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.stop()

    app = DescribedApp(
        title="Metaformer",
        summary="Find defects in images when all you have is a handful of good ones.",
        version=metaformer.__version__,
        # FastAPI's own would load scripts from elsewhere; see api_docs.
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.service = service
    app.include_router(detector_routes.router)
    app.include_router(review_routes.router)
    app.include_router(api_docs.router)
    app.include_router(static_files.router)
    add_error_answers(app)
    app.add_middleware(AroundRequests, metrics=service.metrics, allowed_hosts=allowed_hosts)
    return app


class DescribedApp(FastAPI):
    """With its own limits in the OpenAPI document."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            service: Service = self.state.service
            fit_document(super().openapi(), service.limits, has_token=service.token is not None)
        assert self.openapi_schema is not None
        return self.openapi_schema


def add_error_answers(app: FastAPI) -> None:
    """Every error answer is ``{"detail": "..."}``."""

    def answer(status: int, detail: str, headers: Any = None) -> JSONResponse:
        # Half a surrogate pair in a client's text has no UTF-8.
        speakable = detail.encode(errors="replace").decode()
        return JSONResponse({"detail": speakable}, status, headers=headers)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        if error.status_code == 405:
            # The router knows only the first route at the address.
            fitting = [r for r in app.routes if r.matches(request.scope)[0] is not Match.NONE]
            methods = {m for route in fitting for m in getattr(route, "methods", None) or ()}
            headers["Allow"] = ", ".join(sorted(methods))
        return answer(error.status_code, str(error.detail), headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return answer(422, detector_routes.describe_errors(error.errors()))

    @app.exception_handler(NoSuchDetectorError)
    async def missing(request: Request, error: NoSuchDetectorError) -> Response:
        return answer(404, str(error))

    @app.exception_handler(DetectorFileError)
    @app.exception_handler(StoreFullError)
    @app.exception_handler(MarksFullError)
    @app.exception_handler(MarksFileError)
    async def conflict(request: Request, error: ValueError) -> Response:
        return answer(409, str(error))

    @app.exception_handler(ClientGone)
    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_GONE)


class AroundRequests:
    """Refuses strangers, adds headers that keep browsers careful, counts and times."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, allowed_hosts: frozenset[str] | None
    ) -> None:
        self.app = app
        self.metrics = metrics
        self.allowed_hosts = allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.setdefault("Content-Security-Policy", ANSWER_POLICY)
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
            await send(message)

        try:
            reason = refusal(Headers(scope=scope), self.allowed_hosts)
            if reason is None:
                await self.app(scope, receive, send_on)
            else:
                await JSONResponse({"detail": reason}, 403)(scope, receive, send_on)
        finally:
            # The template of the route, not the address: ids would make endless series.
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(scope["method"], route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - started)
