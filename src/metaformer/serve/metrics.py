"""Counts and times in the Prometheus text format."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Literal

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

Outcome = Literal["normal", "anomalous", "unreadable"]
OUTCOMES: tuple[Outcome, ...] = ("normal", "anomalous", "unreadable")
SCORES = (0.1, 0.2, 0.25, 0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8, 0.9, 1)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """The numbers of one running service; memory and processor time of the process among them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "metaformer_requests_total",
            "Requests answered.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "metaformer_request_seconds",
            "Time from the first line of a request to the end of its answer.",
            ("route",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.images = Counter(
            "metaformer_images_total",
            "Images received for scoring, by detector and outcome: normal, anomalous, unreadable.",
            ("detector", "product", "outcome"),
            registry=self.registry,
        )
        self.scores = Histogram(
            "metaformer_score",
            "Calibrated scores by detector; 0.5 is the threshold.",
            ("detector", "product"),
            buckets=SCORES,
            registry=self.registry,
        )
        self._products: dict[str, str] = {}

    def count(self, id: str, product: str, outcome: Outcome, score: float | None = None) -> None:
        """One image scored, or found to be unreadable, by the detector ``id``."""
        self._products[id] = product
        self.images.labels(id, product, outcome).inc()
        if score is not None:
            self.scores.labels(id, product).observe(score)

    def forget(self, id: str) -> None:
        """Drop the series of a detector that is deleted."""
        product = self._products.pop(id, None)
        if product is None:
            return
        for outcome in OUTCOMES:
            with suppress(KeyError):
                self.images.remove(id, product, outcome)
        with suppress(KeyError):
            self.scores.remove(id, product)

    def watch(self, name: str, help: str, read: Callable[[], float]) -> None:
        """A gauge that is read when it is asked for."""
        Gauge(f"metaformer_{name}", help, registry=self.registry).set_function(read)

    def text(self) -> bytes:
        return generate_latest(self.registry)
