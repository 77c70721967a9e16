"""Our detector as the evaluation harness sees any method."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from metaformer.detection.detector import Detector
from metaformer.detection.metaformer import Metaformer
from metaformer.detection.presets import PresetName, PresetOptions
from metaformer.detection.support.support_set import OddSupportWarning
from metaformer.io.workers import ordered_map

Image = NDArray[np.uint8]


class DetectorMethod:
    """A preset, adapted to each support with everything a user gets: calibration included.

    Args:
        preset: its name, or a universal model made otherwise: an ablation, a control.
        name: in the results; the preset's if None.
        workers: images scored at once.
        without: parts that are left out, to see what they are worth: ``detection.preset.PARTS``.
        options: as ``Metaformer.from_pretrained``, for a preset given by its name.

    Raises:
        ValueError: as ``Metaformer.from_pretrained``, or the preset has no such part.
    """

    def __init__(
        self,
        preset: PresetName | Metaformer,
        *,
        name: str | None = None,
        workers: int = 1,
        without: Sequence[str] = (),
        **options: Unpack[PresetOptions],
    ) -> None:
        universal = preset
        if not isinstance(universal, Metaformer):
            universal = Metaformer.from_pretrained(universal, **options)
        self.name = name or universal.preset
        self.workers = workers
        self.without = list(dict.fromkeys(without))
        if self.without:
            universal = Metaformer(universal.model.without(self.without), universal.preset)
            self.name += f" without {' and '.join(self.without)}"
        self.universal = universal

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
