"""Which engine computes a detector's maps, where a user or a folder of images decides."""

from __future__ import annotations

import copy

from metaformer.detection.detector import Detector
from metaformer.detection.engines.engine import (
    ENGINES,
    MOST_PIXELS,
    check_engine,
    make_engine,
    usual_engine,
)
from metaformer.io.images import pixels_of
from metaformer.io.sources.shards import Files, Sources, images_in, shards

LEAST_IMAGES = 50
"""Images from which on tracing a detector pays, which takes more than a second."""


def with_engine(detector: Detector, name: str) -> Detector:
    """The same detector, computed by ``name``; ``auto`` is ONNX Runtime.

    ``auto`` never fails where PyTorch works: if ONNX Runtime cannot be had, or its results are not
    PyTorch's, PyTorch computes, with a warning.

    Raises:
        MissingExtraError: the engine is not installed.
        EngineError: its results are not those of PyTorch.
        UnsupportedExportError: the detector cannot leave PyTorch.
        ValueError: no such engine.
    """
    if name == "auto":
        engine = usual_engine(detector, may_trace=True)
    else:
        chosen = next((known for known in ENGINES if known == name), None)
        if chosen is None:
            raise ValueError(f'no engine "{name}": choose auto, {", ".join(ENGINES)}.')
        engine = make_engine(detector, chosen)
        if chosen != "torch":
            check_engine(detector, engine)
    same = copy.copy(detector)
    same.engine = engine
    return same


def pays_off(detector: Detector, sources: Sources) -> bool:
    """Whether another engine takes less time for these images than it takes to make.

    Where the detector has to be traced it does from ``LEAST_IMAGES`` on, unless the first is a file
    above ``MOST_PIXELS``. Of what cannot be counted beforehand (tar archives) many are expected.
    """
    if detector.adapted.graph is not None:
        return False  # nothing has to be traced: it computes with that engine already
    count = 0
    for number, shard in enumerate(shards(sources)):
        if number == 0 and isinstance(shard, Files) and pixels_of(shard.paths[0]) > MOST_PIXELS:
            return False
        found = images_in(shard)
        count += LEAST_IMAGES if found is None else found
        if count >= LEAST_IMAGES:
            return True
    return False
