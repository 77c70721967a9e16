"""A whole detector as one ONNX model: camera pixels in, calibrated scores and maps out."""

from __future__ import annotations

from typing import Any

import numpy as np

from metaformer.calibration import Calibration
from metaformer.detector import Detector
from metaformer.onnx_graph import Graph, Value
from metaformer.onnx_maps import raw_map
from metaformer.preprocess import MAX_ASPECT

TIES_UP = 1e-3
"""OpenCV rounds halves up when it averages 2 x 2 pixels, and to even otherwise. Averages of four
are quarters, so this much added sends halves up and changes no other."""
FIXED_POINT_LOSS = 0.125
"""Grey levels that OpenCV's bilinear resizing of bytes, in fixed-point numbers that it cuts off,
lies below the exact value on average (measured, 4.9 and 5.0)."""


def map_model(detector: Detector) -> Any:
    """From the working size to the raw map, for use inside the package.

    ``images`` (N, 3, H, W) float32 in [0, 1], as ``preprocess.to_tensor`` makes them ->
    ``raw_map`` (N, h, w).
    """
    graph = Graph()
    grid = graph.op("Squeeze", raw_map(graph, "images", detector.adapted), graph.integers(1))
    return graph.model(
        {"images": (np.float32, ("N", 3, "H", "W"))},
        [(grid, "raw_map", np.float32, ("N", "h", "w"))],
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
    working = shrink(
        graph, "images", height, width, config.resolution, detector.model.size_multiple
    )
    grid = raw_map(graph, working, detector.adapted)  # (N, 1, h, w)
    raw_score = image_score(graph, grid, config.score_share)

    calibration = detector.calibration
    score = calibrate(graph, raw_score, calibration.threshold, calibration)
    # The smallest float32 not below the threshold: comparing with it is comparing with the double.
    threshold = np.float32(calibration.threshold)
    if threshold < calibration.threshold:
        threshold = np.nextafter(threshold, np.float32(np.inf))
    is_anomalous = graph.op("GreaterOrEqual", raw_score, graph.constant(threshold))
    full = graph.op("Squeeze", graph.resize(grid, height, width), graph.integers(1))
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


def shrink(
    graph: Graph, images: Value, height: Value, width: Value, resolution: int, multiple: int
) -> Value:
    """(N, H, W, 3) uint8 -> (N, 3, h, w) in [0, 1] at ``working_size``, as ``to_tensor``.

    Resizing is linear and separable: a product with one matrix for the rows and one for the
    columns, both computed here from the sides.
    """
    tall, wide = graph.cast(height, np.float32), graph.cast(width, np.float32)
    aspect = graph.op(
        "Clip",
        graph.op("Div", tall, wide),
        graph.numbers(1 / MAX_ASPECT),
        graph.numbers(MAX_ASPECT),
    )
    root = graph.op("Sqrt", aspect)
    steps = graph.numbers(resolution / multiple)

    def to_multiple(side: Value) -> Value:
        counted = graph.op("Max", graph.op("Round", side), graph.numbers(1))
        return graph.op("Mul", counted, graph.numbers(multiple))

    rows = to_multiple(graph.op("Mul", steps, root))  # (1,) float
    columns = to_multiple(graph.op("Div", steps, root))
    shrinks = graph.op("Less", graph.op("Mul", rows, columns), graph.op("Mul", tall, wide))
    # OpenCV averages areas only if neither side grows.
    neither_grows = graph.op(
        "And",
        graph.op("LessOrEqual", rows, tall),
        graph.op("LessOrEqual", columns, wide),
    )
    by_area = graph.op("And", shrinks, neither_grows)
    down = resize_weights(graph, rows, tall, shrinks, by_area)  # (h, H)
    across = resize_weights(graph, columns, wide, shrinks, by_area)  # (w, W)

    # Rows first, on (N, H, W * 3): the large array is never transposed.
    flat = graph.op(
        "Reshape",
        images,
        graph.op("Concat", graph.integers(0, 0), graph.op("Mul", width, graph.integers(3)), axis=0),
    )
    x = graph.op("MatMul", down, graph.cast(flat, np.float32))  # (N, h, W * 3)
    x = graph.op(
        "Reshape", x, graph.op("Concat", graph.integers(0, 0), width, graph.integers(3), axis=0)
    )
    x = graph.op("Transpose", x, perm=[0, 3, 1, 2])  # (N, 3, h, W)
    x = graph.op("MatMul", x, graph.op("Transpose", across, perm=[1, 0]))  # (N, 3, h, w)

    two = graph.numbers(2)
    is_half = graph.op(
        "And",
        graph.op("Equal", tall, graph.op("Mul", rows, two)),
        graph.op("Equal", wide, graph.op("Mul", columns, two)),
    )
    nudge = graph.op("Where", is_half, graph.numbers(TIES_UP), graph.numbers(0))
    nudge = graph.op("Where", by_area, nudge, graph.numbers(-FIXED_POINT_LOSS))
    x = graph.op("Round", graph.op("Add", x, nudge))
    return graph.op("Div", x, graph.numbers(255))


def resize_weights(
    graph: Graph, after: Value, before: Value, shrinks: Value, by_area: Value
) -> Value:
    """(after, before) weights with which OpenCV's resizing sums pixels along one side.

    ``INTER_AREA`` where ``by_area``; what OpenCV puts in its place when only one side grows,
    where ``shrinks``; ``INTER_LINEAR`` otherwise. Lengths are multiplied out so that all numbers
    are whole, and exact in float32.
    """
    one = graph.numbers(1)

    def count(side: Value) -> Value:
        zero, step = graph.numbers(0), graph.numbers(1)
        return graph.op("Range", zero, graph.op("Squeeze", side), step)

    i = graph.op("Unsqueeze", count(after), graph.integers(1))  # (after, 1)
    j = graph.op("Unsqueeze", count(before), graph.integers(0))  # (1, before)
    # Output i covers [i, i + 1] * before, input j covers [j, j + 1] * after, in one unit.
    end = graph.op(
        "Min",
        graph.op("Mul", graph.op("Add", i, one), before),
        graph.op("Mul", graph.op("Add", j, one), after),
    )
    start = graph.op("Max", graph.op("Mul", i, before), graph.op("Mul", j, after))
    area = graph.op("Div", graph.op("Relu", graph.op("Sub", end, start)), before)

    # INTER_LINEAR looks at (i + 1/2) * before / after - 1/2.
    half = graph.numbers(0.5)
    centre = graph.op("Div", graph.op("Mul", graph.op("Add", i, half), before), after)
    linear = graph.op("Max", graph.op("Sub", centre, half), graph.numbers(0))
    # INTER_AREA with one growing side: mixes two inputs only where an output straddles them.
    first = graph.op("Floor", graph.op("Div", graph.op("Mul", i, before), after))
    ratio = graph.op("Div", after, before)
    share = graph.op(
        "Sub", graph.op("Add", i, one), graph.op("Mul", graph.op("Add", first, one), ratio)
    )
    share = graph.op("Relu", share)
    share = graph.op("Sub", share, graph.op("Floor", share))
    place = graph.op("Where", shrinks, graph.op("Add", first, share), linear)
    place = graph.op("Min", place, graph.op("Sub", before, one))
    hat = graph.op("Relu", graph.op("Sub", one, graph.op("Abs", graph.op("Sub", place, j))))
    return graph.op("Where", by_area, area, hat)


def image_score(graph: Graph, grid: Value, share: float) -> Value:
    """(N, 1, h, w) -> (N,) mean of the highest ``share`` of cells (``preprocess.image_score``)."""
    cells = graph.op("Mul", graph.side(grid, 2), graph.side(grid, 3))
    count = graph.op("Mul", graph.cast(cells, np.float32), graph.numbers(share))
    count = graph.op("Max", graph.op("Round", count), graph.numbers(1))
    flat = graph.op("Flatten", grid)  # (N, h * w)
    highest = f"highest_{len(graph.nodes)}"
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
