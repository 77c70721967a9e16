"""Find defects in images when all you have is a handful of good ones.

>>> from metaformer import Metaformer
>>> detector = Metaformer.from_pretrained().adapt("photos/good")
>>> detector.predict("photos/new/0017.jpg").is_anomalous
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import metaformer.io.forking  # noqa: F401  # from now on forked workers can compute

if TYPE_CHECKING:
    from metaformer.detection.detector import Detector
    from metaformer.detection.detector_file import DetectorFileError
    from metaformer.detection.metaformer import Metaformer
    from metaformer.detection.scoring.prediction import Prediction, Region, to_records
    from metaformer.detection.support.given_images import PassedOverWarning, SkippedImageWarning
    from metaformer.detection.support.support_set import DuplicateSupportWarning, OddSupportWarning
    from metaformer.inference.allocator import keep_freed_memory
    from metaformer.io.images import WhiteLevelWarning
    from metaformer.io.pixels import ImageError

    __version__: str

__all__ = [
    "Detector",
    "DetectorFileError",
    "DuplicateSupportWarning",
    "ImageError",
    "Metaformer",
    "OddSupportWarning",
    "PassedOverWarning",
    "Prediction",
    "Region",
    "SkippedImageWarning",
    "WhiteLevelWarning",
    "__version__",
    "keep_freed_memory",
    "to_records",
]

_MODULES = {
    "Detector": "metaformer.detection.detector",
    "DetectorFileError": "metaformer.detection.detector_file",
    "DuplicateSupportWarning": "metaformer.detection.support.support_set",
    "ImageError": "metaformer.io.pixels",
    "Metaformer": "metaformer.detection.metaformer",
    "OddSupportWarning": "metaformer.detection.support.support_set",
    "PassedOverWarning": "metaformer.detection.support.given_images",
    "Prediction": "metaformer.detection.scoring.prediction",
    "Region": "metaformer.detection.scoring.prediction",
    "SkippedImageWarning": "metaformer.detection.support.given_images",
    "WhiteLevelWarning": "metaformer.io.images",
    "keep_freed_memory": "metaformer.inference.allocator",
    "to_records": "metaformer.detection.scoring.prediction",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: torch alone takes seconds to load."""
    if name == "__version__":
        from importlib.metadata import version

        return version("metaformer-ad")
    if name not in _MODULES:
        raise AttributeError(f"module 'metaformer' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
