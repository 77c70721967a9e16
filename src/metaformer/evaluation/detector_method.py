"""Our detector as the evaluation harness sees any method."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaformer.detection.detector import Detector
from metaformer.detection.feature.config import SHIPPED
from metaformer.detection.metaformer import Metaformer
from metaformer.detection.pixel.config import Mode
from metaformer.detection.presets import PresetName
from metaformer.detection.support.support_set import OddSupportWarning
from metaformer.io.workers import ordered_map

Image = NDArray[np.uint8]


class DetectorMethod:
    """A preset, adapted to each support with everything a user gets: calibration included.

    Args:
        without: parts that are left out, to see what they are worth: ``detection.preset.PARTS``.

    Raises:
        ValueError: as ``Metaformer.from_pretrained``, or the preset has no such part.
    """

    def __init__(
        self,
        preset: PresetName,
        *,
        resolution: int | None = None,
        aligned: bool = False,
        backbone: str = SHIPPED,
        backbone_weights: Path | None = None,
        download: bool = False,
        mode: Mode = "fast",
        universal_weights: Path | None = None,
        device: str = "cpu",
        name: str | None = None,
        workers: int = 1,
        without: Sequence[str] = (),
    ) -> None:
        self.universal = Metaformer.from_pretrained(
            preset,
            resolution=resolution,
            aligned=aligned,
            backbone=backbone,
            backbone_weights=backbone_weights,
            download=download,
            mode=mode,
            universal_weights=universal_weights,
            device=device,
        )
        self.without = list(dict.fromkeys(without))
        self._name: str = name or preset
        if self.without:
            self.universal = Metaformer(self.universal.model.without(self.without), preset)
            self._name += f" without {' and '.join(self.without)}"
        self.workers = workers
        """Images scored at once."""

    @classmethod
    def of(cls, universal: Metaformer, name: str) -> DetectorMethod:
        """A universal model made otherwise than by its preset: an ablation, a control."""
        method = cls.__new__(cls)
        method.universal = universal
        method._name = name
        method.workers = 1
        method.without = []
        return method

    @property
    def name(self) -> str:
        return self._name

    @property
    def settings(self) -> dict[str, Any]:
        config: Any = self.universal.model.config  # a dataclass of either preset
        return asdict(config) | {"without": self.without}

    def fit(self, support: Sequence[Image], seed: int) -> FittedDetector:
        with warnings.catch_warnings():
            # Support draws are fixed by the protocol; advice about them has no reader here.
            warnings.simplefilter("ignore", OddSupportWarning)
            return FittedDetector(self.universal.adapt(support, seed=seed), self.workers)


class FittedDetector:
    """Scores by raw values: calibration keeps their order, and in sets of pairs raw values are
    what different detectors share."""

    def __init__(self, detector: Detector, workers: int = 1) -> None:
        self.detector = detector
        self.workers = workers
        self.threshold = detector.calibration.threshold

    def score(self, images: Sequence[Image]) -> list[tuple[float, NDArray[np.float32]]]:
        workers = min(self.workers, max(1, len(images)))
        return list(ordered_map(self.detector.score_pixels, images, workers))
