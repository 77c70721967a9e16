"""Limits on requests, and the count of requests in progress."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

from fastapi import HTTPException

RETRY_SECONDS = 2
"""What a client is told to wait when the service is busy."""


@dataclass(frozen=True)
class Limits:
    """Bounds on memory and time, all of them ours; each is an option of ``metaformer serve``."""

    body_bytes: int = 256 * 2**20
    """Largest body of a request."""
    pixels: int = 25_000_000
    """Largest height times width of an image; scoring takes up to 20 bytes of memory a pixel."""
    images: int = 64
    """Most images in one request."""
    resolution: int = 1024
    """Highest working resolution of a new detector; time grows with its square or faster."""
    requests: int = 64
    """Most uploads at work at once, the one being received included; more are told 429."""
    seconds: float = 60
    """Longest time from a received request to its answer; then 503."""
    upload_seconds: float = 120
    """Longest time a body may take to arrive; then 408."""
    jobs: int = 4
    """Most adaptations waiting; one runs at a time."""
    detectors: int = 1000
    """Most detectors in the store."""
    loaded: int = 8
    """Most detectors held in memory; the least recently used is let go."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) <= 0:
                raise ValueError(f"the limit {field.name} must be above 0.")


class Gate:
    """Lets a number of requests in at once and turns the others away.

    Used from the event loop alone, so a plain number is enough.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.inside = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Raises: HTTPException: 429, with a time to try again, when all places are taken."""
        if self.inside >= self.most:
            raise busy(429, f"{self.most} requests are being worked on. Try again in a moment.")
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1


def busy(status: int, detail: str) -> HTTPException:
    """An answer that asks to come again."""
    return HTTPException(status, detail, {"Retry-After": str(RETRY_SECONDS)})


@contextmanager
def storing(what: str) -> Iterator[None]:
    """Raises: HTTPException: 503, when the disk does not take it."""
    try:
        yield
    except OSError as error:
        raise busy(503, f"{what} cannot be stored ({error.strerror}).") from error
