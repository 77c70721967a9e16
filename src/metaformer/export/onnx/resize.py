"""Camera pixels to the working size as ONNX nodes: the numbers OpenCV gives, for any size.

Resizing is separable: rows are mixed, then columns, each by weights computed here from the sides.
OpenCV has three ways, and ``preprocessing.to_tensor`` comes by all of them:

* area: both sides shrink. Averages of what each output pixel covers, in float32.
* linear: the image grows. Two rows and two columns are mixed, in fixed-point numbers.
* in between: one side grows though the area shrinks. As linear, looking at other places.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from metaformer.detection.preprocessing import MAX_ASPECT
from metaformer.export.onnx.graph import Graph, Value

TIES_UP = 1e-3
"""OpenCV rounds halves up when it averages 2 x 2 pixels, and to even otherwise. Averages of four
are quarters, so this much added sends halves up and changes no other."""
UNIT = 2048
"""OpenCV's linear weights are whole multiples of 1 / 2048; between columns and rows it drops the
last 4 bits of the sum, and after the rows 16 more bits of each product (``resize.cpp``)."""


def to_working_size(
    images: Value, height: Value, width: Value, resolution: int, multiple: int
) -> Value:
    """(N, H, W, 3) uint8 -> (N, 3, h, w) in [0, 1] at ``working_size``, as ``to_tensor``."""
    graph, wanted = images.graph, images.graph.number(resolution)
    tall, wide = height.cast(np.float32), width.cast(np.float32)
    root = graph.op("Sqrt", graph.op("Clip", tall / wide, 1 / MAX_ASPECT, MAX_ASPECT))
    steps = wanted / multiple
    h, w = (graph.op("Max", side.round(), 1) * multiple for side in (steps * root, steps / root))
    rows, columns = Side(tall, h, used=h), Side(wide, w, used=w)
    area_before = rows.before * columns.before
    area_after = rows.after * columns.after
    shrinks = graph.op("Less", area_after, area_before)
    by_area = graph.op("And", rows.does_not_grow(), columns.does_not_grow())
    by_area = graph.op("And", shrinks, by_area)
    # All rows of the result are computed in one way, none in the other.
    averaged = h * by_area.cast(np.float32)
    mixed = h - averaged

    sides = graph.op("Concat", graph.integers(0, 0), width * graph.integers(3), axis=0)
    flat = graph.op("Reshape", images, sides)  # (N, H, W * 3): never transposed while large
    split = graph.op("Concat", graph.integers(0, 0), width, graph.integers(3), axis=0)

    def average() -> Value:
        x = weighted_sum(flat, *covered(replace(rows, used=averaged)))  # (N, h, W * 3)
        x = graph.op("Reshape", x, split).transpose(0, 2, 1, 3)
        x = graph.op("Reshape", x, graph.integers(0, 0, -1))  # (N, W, h * 3)
        x = weighted_sum(x, *covered(columns))  # (N, w, h * 3)
        x = graph.op("Reshape", x, graph.integers(0, 0, -1, 3)).transpose(0, 3, 2, 1)
        halves = graph.op("And", rows.is_halved(), columns.is_halved())
        return (x + graph.op("Where", halves, TIES_UP, 0)).round()

    def mix() -> Value:
        across = linear_weights(columns, shrinks).transpose(1, 0)  # (W, w)
        first, share = places(replace(rows, used=mixed), shrinks)
        last = rows.before - 1
        terms = []
        for step, weight in ((0, 1 - share), (1, share)):
            row = graph.op("Min", graph.op("Max", first + step, 0), last)
            chosen = graph.op("Gather", flat, row.cast(np.int64), axis=1).cast(np.float32)
            planes = graph.op("Reshape", chosen, split).transpose(0, 3, 1, 2)  # (N, 3, h, W)
            x = (graph.op("MatMul", planes, across) / 16).floor()  # (N, 3, h, w)
            terms.append((x * fixed_point(weight).unsqueeze(1) / 65536).floor())
        return ((terms[0] + terms[1] + 2) / 4).floor()

    return graph.op("Concat", average(), mix(), axis=2) / 255


@dataclass(frozen=True)
class Side:
    """One side of an image: how many pixels ``before`` and ``after``, float32 vectors of one."""

    before: Value
    after: Value
    used: Value
    """How many of those after, from the first, are computed: all or none."""

    @property
    def graph(self) -> Graph:
        return self.before.graph

    def does_not_grow(self) -> Value:
        return self.graph.op("LessOrEqual", self.after, self.before)

    def is_halved(self) -> Value:
        return self.graph.op("Equal", self.before, self.after * 2)


def count(length: Value) -> Value:
    """0, 1, ... up to ``length``, float32."""
    graph, start = length.graph, length.graph.number(0)
    return graph.op("Range", start, graph.op("Squeeze", length), 1)


def weighted_sum(x: Value, places: Value, weights: Value) -> Value:
    """(N, L, M) -> (N, l, M) float32, by the places and weights (l, K) of each output."""
    graph = x.graph
    taps = graph.op("Gather", x, places, axis=1).cast(np.float32)  # (N, l, K, M)
    total = graph.op("MatMul", weights.unsqueeze(1), taps)  # weights (l, 1, K)
    return graph.op("Squeeze", total, graph.integers(2))


def fixed_point(weights: Value) -> Value:
    return (weights * UNIT).round()


def covered(side: Side) -> tuple[Value, Value]:
    """The inputs that each output covers, (used, K), and their shares in it, rows summing to 1.

    Output i covers [i, i + 1] * before, input j covers [j, j + 1] * after, in one unit: all
    numbers are whole, and exact in float32. K is that of the output that covers most.
    """
    graph, one = side.graph, side.graph.number(1)
    most = graph.op("Ceil", side.before / side.after)
    i = count(side.used).unsqueeze(1)  # (used, 1)
    k = count(most + one)  # (K,)
    j = (i * side.before / side.after).floor() + k  # (used, K)
    end = graph.op("Min", (i + one) * side.before, (j + one) * side.after)
    start = graph.op("Max", i * side.before, j * side.after)
    shares = graph.op("Relu", end - start) / side.before
    last = side.before - one
    return graph.op("Min", j, last).cast(np.int64), shares


def places(side: Side, shrinks: Value) -> tuple[Value, Value]:
    """For each output the first of the two inputs it mixes, which may lie one outside, and the
    share in [0, 1) of the second; (used,) each."""
    graph, one, half = side.graph, side.graph.number(1), side.graph.number(0.5)
    i = count(side.used)
    centre = (i + half) * side.before / side.after - half
    linear_first = centre.floor()
    linear_share = centre - linear_first
    # In between area and linear: two inputs are mixed only where an output straddles them.
    first = (i * side.before / side.after).floor()
    ratio = side.after / side.before
    share = graph.op("Relu", i + one - (first + one) * ratio)
    share = share - share.floor()
    return (
        graph.op("Where", shrinks, first, linear_first),
        graph.op("Where", shrinks, share, linear_share),
    )


def linear_weights(side: Side, shrinks: Value) -> Value:
    """(used, before) weights in units of 1 / 2048, two in a row; outside is the outermost."""
    graph, one = side.graph, side.graph.number(1)
    first, share = places(side, shrinks)
    place = graph.op("Max", first + share, 0)
    place = graph.op("Min", place, side.before - one).unsqueeze(1)
    j = count(side.before).unsqueeze(0)
    return fixed_point(graph.op("Relu", one - graph.op("Abs", place - j)))
