"""A whole detector as one ONNX model: camera pixels in, calibrated scores and maps out.

The adapted model is traced from its one definition in PyTorch. Around it stand two small graphs
written by hand: resizing that agrees with OpenCV to the bit, and calibration.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from metaformer.detection.detector import Detector
from metaformer.detection.engines.graph import graph_of
from metaformer.detection.scoring.calibration import Calibration
from metaformer.export.onnx.graph import Graph, Value
from metaformer.export.onnx.resize import to_working_size
from metaformer.io.extras import need


def full_model(detector: Detector) -> Any:
    """From pixels to verdicts, for use anywhere.

    ``images`` (N, H, W, 3) uint8 RGB, any N, H and W -> ``raw_score`` (N), ``score`` (N) in (0, 1)
    with 0.5 at the threshold, ``is_anomalous`` (N) bool, ``anomaly_map`` (N, H, W) in (0, 1) with
    0.5 at the pixel threshold.

    Raises:
        UnsupportedExportError: ONNX lacks an operation of the model; the message names it.
    """
    compose = need("onnx.compose")
    core = compose.add_prefix(graph_of(detector.adapted, detector.model.size_multiple), "core_")
    before, after = resizing(detector), calibrating(detector)
    joined = compose.merge_models(
        before,
        core,
        io_map=[("working", "core_images")],
        outputs=["core_raw_maps", "height", "width"],
    )
    joined = compose.merge_models(
        joined,
        after,
        io_map=[
            ("core_raw_maps", "raw_maps"),
            ("height", "given_height"),
            ("width", "given_width"),
        ],
    )
    joined.producer_name = "metaformer"
    del joined.opset_import[1:]  # merging lists the same one several times, which int8 refuses
    need("onnx").checker.check_model(joined, full_check=True)
    return joined


def resizing(detector: Detector) -> Any:
    """``images`` -> ``working`` (N, 3, h, w) in [0, 1], and their ``height`` and ``width``."""
    graph = Graph("resize_")
    images = graph.given("images")
    height, width = images.side(1), images.side(2)
    working = to_working_size(
        images, height, width, detector.model.config.resolution, detector.model.size_multiple
    )
    return graph.model(
        {"images": (np.uint8, ("N", "H", "W", 3))},
        [
            (working, "working", np.float32, ("N", 3, "working_h", "working_w")),
            (height, "height", np.int64, (1,)),
            (width, "width", np.int64, (1,)),
        ],
    )


def calibrating(detector: Detector) -> Any:
    """``raw_maps`` (N, M, h, w) and the sides of the image -> what ``full_model`` gives."""
    graph, calibration = Graph("calibrate_"), detector.calibration
    maps, first, second = graph.given("raw_maps"), graph.integers(0), graph.integers(1)
    scored = graph.op("Slice", maps, first, second, graph.integers(1))  # (N, 1, h, w)
    last, end = graph.integers(-1), graph.integers(2**62)
    marked = graph.op("Slice", maps, last, end, graph.integers(1))
    raw_score = image_score(graph, scored, detector.model.config.score_share)
    score = calibrate(raw_score, calibration.threshold, calibration)
    # The smallest float32 not below the threshold: comparing with it is comparing with the double.
    threshold = np.float32(calibration.threshold)
    if float(threshold) < calibration.threshold:  # numpy would round the double first
        threshold = np.nextafter(threshold, np.float32(np.inf))
    is_anomalous = graph.op("GreaterOrEqual", raw_score, graph.constant(np.array(threshold)))
    grid = graph.resize(marked, graph.given("given_height"), graph.given("given_width"))
    full = graph.op("Squeeze", grid, graph.integers(1))
    anomaly_map = calibrate(full, calibration.pixel_threshold, calibration)
    return graph.model(
        {
            "raw_maps": (np.float32, ("N", "M", "h", "w")),
            "given_height": (np.int64, (1,)),
            "given_width": (np.int64, (1,)),
        },
        [
            (raw_score, "raw_score", np.float32, ("N",)),
            (score, "score", np.float32, ("N",)),
            (is_anomalous, "is_anomalous", np.bool_, ("N",)),
            (anomaly_map, "anomaly_map", np.float32, ("N", "H", "W")),
        ],
    )


def image_score(graph: Graph, grid: Value, share: float) -> Value:
    """(N, 1, h, w) -> (N,) mean of the highest ``share`` of cells (``anomaly_map.image_score``)."""
    cells = grid.side(2) * grid.side(3)
    count = graph.op("Max", (cells.cast(np.float32) * share).round(), 1)
    flat = graph.op("Flatten", grid)  # (N, h * w)
    highest = graph.new_name("highest")
    graph.nodes.append(
        graph.onnx.helper.make_node(
            "TopK", [flat.name, count.cast(np.int64).name], [highest, f"{highest}_places"], axis=1
        )
    )
    return graph.op("ReduceMean", graph.given(highest), graph.integers(1), keepdims=0)


def calibrate(raw: Value, threshold: float, calibration: Calibration) -> Value:
    """``Calibration.score`` and ``.map``: a soft sign of the distance to the threshold."""
    distance = (raw - threshold) / calibration.spread
    size = raw.graph.op("Abs", distance) + 1
    return distance / size * 0.5 + 0.5
