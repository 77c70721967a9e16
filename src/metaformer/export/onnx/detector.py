"""A whole detector as one ONNX model: camera pixels in, calibrated scores and maps out."""

from __future__ import annotations

from typing import Any

import numpy as np

from metaformer.detection.detector import Detector
from metaformer.detection.feature.config import FeatureConfig
from metaformer.detection.scoring.calibration import Calibration
from metaformer.export.onnx.anomaly_maps import raw_maps
from metaformer.export.onnx.graph import Graph, Value
from metaformer.export.onnx.resize import enlarged, to_working_size


def map_model(detector: Detector) -> Any:
    """From the working size to the raw maps, for use inside the package.

    ``images`` (N, 3, H, W) float32 in [0, 1], as ``preprocess.to_tensor`` makes them ->
    ``raw_maps`` (N, M, h, w), the first to score by, the last to mark pixels.
    """
    graph = Graph()
    grids = raw_maps(graph, "images", detector.adapted)
    joined = graph.op("Concat", *grids, axis=1) if len(grids) > 1 else grids[0]
    return graph.model(
        {"images": (np.float32, ("N", 3, "H", "W"))},
        [(joined, "raw_maps", np.float32, ("N", len(grids), "h", "w"))],
    )


def full_model(detector: Detector) -> Any:
    """From pixels to verdicts, for use anywhere.

    ``images`` (N, H, W, 3) uint8 RGB, any N, H and W -> ``raw_score`` (N), ``score`` (N) in (0, 1)
    with 0.5 at the threshold, ``is_anomalous`` (N) bool, ``anomaly_map`` (N, H, W) in (0, 1) with
    0.5 at the pixel threshold.
    """
    graph = Graph()
    config = detector.model.config
    height, width = graph.side("images", 1), graph.side("images", 2)
    resolution = graph.numbers(config.resolution)
    if isinstance(config, FeatureConfig) and config.usual_side is not None:
        times = enlarged(
            graph, height, width, config.usual_side, config.size_kept, config.shared_areas
        )
        resolution = graph.op("Mul", resolution, times)
    multiple = detector.model.size_multiple
    working = to_working_size(graph, "images", height, width, resolution, multiple)
    grids = raw_maps(graph, working, detector.adapted)  # (N, 1, h, w) each
    raw_score = image_score(graph, grids[0], config.score_share)

    calibration = detector.calibration
    score = calibrate(graph, raw_score, calibration.threshold, calibration)
    # The smallest float32 not below the threshold: comparing with it is comparing with the double.
    threshold = np.float32(calibration.threshold)
    if float(threshold) < calibration.threshold:  # numpy would round the double first
        threshold = np.nextafter(threshold, np.float32(np.inf))
    is_anomalous = graph.op("GreaterOrEqual", raw_score, graph.constant(threshold))
    full = graph.op("Squeeze", graph.resize(grids[-1], height, width), graph.integers(1))
    anomaly_map = calibrate(graph, full, calibration.pixel_threshold, calibration)
    return graph.model(
        {"images": (np.uint8, ("N", "H", "W", 3))},
        [
            (raw_score, "raw_score", np.float32, ("N",)),
            (score, "score", np.float32, ("N",)),
            (is_anomalous, "is_anomalous", np.bool_, ("N",)),
            (anomaly_map, "anomaly_map", np.float32, ("N", "H", "W")),
        ],
    )


def image_score(graph: Graph, grid: Value, share: float) -> Value:
    """(N, 1, h, w) -> (N,) mean of the highest ``share`` of cells (``preprocess.image_score``)."""
    cells = graph.op("Mul", graph.side(grid, 2), graph.side(grid, 3))
    count = graph.op("Mul", graph.cast(cells, np.float32), graph.numbers(share))
    count = graph.op("Max", graph.op("Round", count), graph.numbers(1))
    flat = graph.op("Flatten", grid)  # (N, h * w)
    highest = graph.new_name("highest")
    graph.nodes.append(
        graph.onnx.helper.make_node(
            "TopK", [flat, graph.cast(count, np.int64)], [highest, f"{highest}_places"], axis=1
        )
    )
    return graph.op("ReduceMean", highest, graph.integers(1), keepdims=0)


def calibrate(graph: Graph, raw: Value, threshold: float, calibration: Calibration) -> Value:
    """``Calibration.score`` and ``.map``: a soft sign of the distance to the threshold."""
    distance = graph.op("Sub", raw, graph.numbers(threshold))
    distance = graph.op("Div", distance, graph.numbers(calibration.spread))
    size = graph.op("Add", graph.op("Abs", distance), graph.numbers(1))
    soft = graph.op("Mul", graph.op("Div", distance, size), graph.numbers(0.5))
    return graph.op("Add", soft, graph.numbers(0.5))
