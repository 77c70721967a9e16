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
    graph: Graph,
    images: Value,
    height: Value,
    width: Value,
    resolution: Value,
    multiple: int,
) -> Value:
    """(N, H, W, 3) uint8 -> (N, 3, h, w) in [0, 1] at ``working_size``, as ``to_tensor``."""
    tall, wide = graph.cast(height, np.float32), graph.cast(width, np.float32)
    aspect = graph.op("Div", tall, wide)
    aspect = graph.op("Clip", aspect, graph.numbers(1 / MAX_ASPECT), graph.numbers(MAX_ASPECT))
    root = graph.op("Sqrt", aspect)
    steps = graph.op("Div", resolution, graph.numbers(multiple))

    def to_multiple(side: Value) -> Value:
        counted = graph.op("Max", graph.op("Round", side), graph.numbers(1))
        return graph.op("Mul", counted, graph.numbers(multiple))

    h, w = (to_multiple(graph.op(kind, steps, root)) for kind in ("Mul", "Div"))
    rows, columns = Side(graph, tall, h, used=h), Side(graph, wide, w, used=w)
    area_before = graph.op("Mul", rows.before, columns.before)
    area_after = graph.op("Mul", rows.after, columns.after)
    shrinks = graph.op("Less", area_after, area_before)
    by_area = graph.op("And", rows.does_not_grow(), columns.does_not_grow())
    by_area = graph.op("And", shrinks, by_area)
    # All rows of the result are computed in one way, none in the other.
    averaged = graph.op("Mul", h, graph.cast(by_area, np.float32))
    mixed = graph.op("Sub", h, averaged)

    sides = graph.op(
        "Concat", graph.integers(0, 0), graph.op("Mul", width, graph.integers(3)), axis=0
    )
    flat = graph.op("Reshape", images, sides)  # (N, H, W * 3): never transposed while large
    split = graph.op("Concat", graph.integers(0, 0), width, graph.integers(3), axis=0)

    def planes(x: Value) -> Value:
        """(N, h, W * 3) -> (N, 3, h, W) float32."""
        x = graph.op("Reshape", graph.cast(x, np.float32), split)
        return graph.op("Transpose", x, perm=[0, 3, 1, 2])

    def average() -> Value:
        x = weighted_sum(flat, *covered(replace(rows, used=averaged)))  # (N, h, W * 3)
        x = graph.op("Transpose", graph.op("Reshape", x, split), perm=[0, 2, 1, 3])
        x = graph.op("Reshape", x, graph.integers(0, 0, -1))  # (N, W, h * 3)
        x = weighted_sum(x, *covered(columns))  # (N, w, h * 3)
        x = graph.op("Reshape", x, graph.integers(0, 0, -1, 3))
        x = graph.op("Transpose", x, perm=[0, 3, 2, 1])
        halves = graph.op("And", rows.is_halved(), columns.is_halved())
        nudge = graph.op("Where", halves, graph.numbers(TIES_UP), graph.numbers(0))
        return graph.op("Round", graph.op("Add", x, nudge))

    def weighted_sum(x: Value, places: Value, weights: Value) -> Value:
        """(N, L, M) -> (N, l, M) float32, by the places and weights (l, K) of each output."""
        taps = graph.cast(graph.op("Gather", x, places, axis=1), np.float32)  # (N, l, K, M)
        weights = graph.op("Unsqueeze", weights, graph.integers(1))  # (l, 1, K)
        return graph.op("Squeeze", graph.op("MatMul", weights, taps), graph.integers(2))

    def mix() -> Value:
        across = transposed(graph, linear_weights(columns, shrinks))  # (W, w)
        first, share = places(replace(rows, used=mixed), shrinks)
        last = graph.op("Sub", rows.before, graph.numbers(1))
        terms = []
        for step, weight in ((0, graph.op("Sub", graph.numbers(1), share)), (1, share)):
            row = graph.op("Add", first, graph.numbers(step))
            row = graph.op("Min", graph.op("Max", row, graph.numbers(0)), last)
            chosen = graph.op("Gather", flat, graph.cast(row, np.int64), axis=1)
            x = graph.op("MatMul", planes(chosen), across)  # (N, 3, h, w)
            x = graph.op("Floor", graph.op("Div", x, graph.numbers(16)))
            weight = graph.op("Unsqueeze", fixed_point(graph, weight), graph.integers(1))  # (h, 1)
            terms.append(
                graph.op("Floor", graph.op("Div", graph.op("Mul", x, weight), graph.numbers(65536)))
            )
        total = graph.op("Add", graph.op("Add", *terms), graph.numbers(2))
        return graph.op("Floor", graph.op("Div", total, graph.numbers(4)))

    x = graph.op("Concat", average(), mix(), axis=2)
    return graph.op("Div", x, graph.numbers(255))


@dataclass(frozen=True)
class Side:
    """One side of an image: how many pixels ``before`` and ``after``, float32 vectors of one."""

    graph: Graph
    before: Value
    after: Value
    used: Value
    """How many of those after, from the first, are computed: all or none."""

    def does_not_grow(self) -> Value:
        return self.graph.op("LessOrEqual", self.after, self.before)

    def is_halved(self) -> Value:
        twice = self.graph.op("Mul", self.after, self.graph.numbers(2))
        return self.graph.op("Equal", self.before, twice)

    def count(self, length: Value) -> Value:
        """0, 1, ... up to ``length``, float32."""
        graph = self.graph
        return graph.op("Range", graph.numbers(0), graph.op("Squeeze", length), graph.numbers(1))

    def grid(self) -> tuple[Value, Value]:
        """Outputs (used, 1) and inputs (1, before), counted."""
        graph = self.graph
        i = graph.op("Unsqueeze", self.count(self.used), graph.integers(1))
        j = graph.op("Unsqueeze", self.count(self.before), graph.integers(0))
        return i, j


def transposed(graph: Graph, matrix: Value) -> Value:
    return graph.op("Transpose", matrix, perm=[1, 0])


def fixed_point(graph: Graph, weights: Value) -> Value:
    return graph.op("Round", graph.op("Mul", weights, graph.numbers(UNIT)))


def covered(side: Side) -> tuple[Value, Value]:
    """The inputs that each output covers, (used, K), and their shares in it, rows summing to 1.

    Output i covers [i, i + 1] * before, input j covers [j, j + 1] * after, in one unit: all
    numbers are whole, and exact in float32. K is that of the output that covers most.
    """
    graph, one = side.graph, side.graph.numbers(1)
    most = graph.op("Ceil", graph.op("Div", side.before, side.after))
    i = graph.op("Unsqueeze", side.count(side.used), graph.integers(1))  # (used, 1)
    k = side.count(graph.op("Add", most, one))  # (K,)
    first = graph.op("Floor", graph.op("Div", graph.op("Mul", i, side.before), side.after))
    j = graph.op("Add", first, k)  # (used, K)
    end = graph.op(
        "Min",
        graph.op("Mul", graph.op("Add", i, one), side.before),
        graph.op("Mul", graph.op("Add", j, one), side.after),
    )
    start = graph.op("Max", graph.op("Mul", i, side.before), graph.op("Mul", j, side.after))
    shares = graph.op("Div", graph.op("Relu", graph.op("Sub", end, start)), side.before)
    last = graph.op("Sub", side.before, one)
    return graph.cast(graph.op("Min", j, last), np.int64), shares


def places(side: Side, shrinks: Value) -> tuple[Value, Value]:
    """For each output the first of the two inputs it mixes, which may lie one outside, and the
    share in [0, 1) of the second; (used,) each."""
    graph, one, half = side.graph, side.graph.numbers(1), side.graph.numbers(0.5)
    i = side.count(side.used)
    centre = graph.op("Div", graph.op("Mul", graph.op("Add", i, half), side.before), side.after)
    centre = graph.op("Sub", centre, half)
    linear_first = graph.op("Floor", centre)
    linear_share = graph.op("Sub", centre, linear_first)
    # In between area and linear: two inputs are mixed only where an output straddles them.
    first = graph.op("Floor", graph.op("Div", graph.op("Mul", i, side.before), side.after))
    ratio = graph.op("Div", side.after, side.before)
    share = graph.op("Mul", graph.op("Add", first, one), ratio)
    share = graph.op("Relu", graph.op("Sub", graph.op("Add", i, one), share))
    share = graph.op("Sub", share, graph.op("Floor", share))
    return (
        graph.op("Where", shrinks, first, linear_first),
        graph.op("Where", shrinks, share, linear_share),
    )


def linear_weights(side: Side, shrinks: Value) -> Value:
    """(used, before) weights in units of 1 / 2048, two in a row; outside is the outermost."""
    graph, one = side.graph, side.graph.numbers(1)
    first, share = places(side, shrinks)
    place = graph.op("Max", graph.op("Add", first, share), graph.numbers(0))
    place = graph.op("Min", place, graph.op("Sub", side.before, one))
    place = graph.op("Unsqueeze", place, graph.integers(1))
    _, j = side.grid()
    hat = graph.op("Sub", one, graph.op("Abs", graph.op("Sub", place, j)))
    return fixed_point(graph, graph.op("Relu", hat))
