"""State of a running service, shared by its routes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials

from metaformer.serve.http.limits import Gate, Limits
from metaformer.serve.http.security import bearer, check_token
from metaformer.serve.jobs import Adaptations
from metaformer.serve.marks import MarkStore
from metaformer.serve.metrics import Metrics
from metaformer.serve.scoring import Workers
from metaformer.serve.store import DetectorStore


@dataclass(frozen=True)
class Service:
    """Everything behind the routes; made once, when the server starts."""

    store: DetectorStore
    marks: MarkStore
    adaptations: Adaptations
    workers: Workers
    limits: Limits
    gate: Gate
    metrics: Metrics
    token: str | None

    def stop(self) -> None:
        self.adaptations.stop()
        self.workers.stop()
        self.store.close()

    def is_at_work(self) -> bool:
        """After ``stop``: whether a job is in the middle of a long step."""
        return self.adaptations.counts()["running"] > 0


def find_service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def authorise(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
) -> Service:
    """The service, for requests that carry the token."""
    service = find_service(request)
    check_token(service.token, credentials)
    return service


Open = Annotated[Service, Depends(find_service)]
"""A parameter of routes that anybody may call."""
Protected = Annotated[Service, Depends(authorise)]
"""A parameter of routes that need the token."""
