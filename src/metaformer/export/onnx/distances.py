"""Distances of tokens as ONNX nodes: to the nearest remembered, to what is normal at a place, to
what is elsewhere on the image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from metaformer.detection.feature.position_gaussian import GRID, Places
from metaformer.detection.feature.self_similarity import EVERY, FAR, MOST_A_SIDE, REACH
from metaformer.detection.nearest_neighbors import MEMORY_CHUNK
from metaformer.export.onnx.graph import Graph, Value
from metaformer.networks.patch_metric import EUCLIDEAN


def nearest_distance(graph: Graph, tokens: Value, memory: Tensor) -> Value:
    """(N, 1, h, w) 1 - cosine of unit tokens (N, C, h, w) to the nearest of memory (M, C)."""
    return to_distance(graph, most_alike(graph, tokens, memory, torch.zeros(len(memory))))


def euclidean_distance(graph: Graph, tokens: Value, memory: Tensor) -> Value:
    """(N, 1, h, w) Euclidean distance of tokens (N, C, h, w) to the nearest of memory (M, C)."""
    alike = most_alike(graph, tokens, memory, -memory.square().sum(1) / 2)
    squares = graph.op("ReduceSum", graph.op("Mul", tokens, tokens), graph.integers(1), keepdims=1)
    twice = graph.op("Mul", alike, graph.numbers(2))
    return graph.op("Sqrt", graph.op("Relu", graph.op("Sub", squares, twice)))


def most_alike(graph: Graph, tokens: Value, memory: Tensor, offsets: Tensor) -> Value:
    """(N, 1, h, w) greatest product of tokens (N, C, h, w) with one of memory (M, C), offsets (M,)
    added."""
    channels = memory.shape[1]
    rows = graph.op("Transpose", tokens, perm=[0, 2, 3, 1])  # (N, h, w, C)
    queries = graph.op("Reshape", rows, graph.integers(-1, channels))  # (N * h * w, C)
    best = []
    for chunk, offset in zip(
        torch.split(memory, MEMORY_CHUNK), torch.split(offsets, MEMORY_CHUNK), strict=True
    ):
        product = graph.op("MatMul", queries, graph.constant(chunk.T))  # (N * h * w, chunk)
        if offset.any():
            product = graph.op("Add", product, graph.constant(offset))
        best.append(graph.op("ReduceMax", product, graph.integers(1), keepdims=0))
    nearest = graph.op("Max", *best) if len(best) > 1 else best[0]
    shape = graph.op(
        "Concat",
        graph.side(tokens, 0),
        graph.integers(1),
        graph.side(tokens, 2),
        graph.side(tokens, 3),
        axis=0,
    )
    return graph.op("Reshape", nearest, shape)


def aligned_distance(graph: Graph, tokens: Value, memory: Tensor, reach: int) -> Value:
    """(N, 1, h, w) 1 - cosine of ``tokens`` (N, C, h, w) to the nearest of ``memory``
    (K, C, h', w') within ``reach`` cells of the same place."""
    return distance_to_any(graph, cosines_around(graph, tokens, memory, reach))


def distance_to_any(graph: Graph, cosines: Sequence[Value]) -> Value:
    """(N, 1, h, w) 1 - the greatest of ``cosines``, each (N, h, w, 1, K)."""
    best = [graph.op("ReduceMax", x, graph.integers(4), keepdims=0) for x in cosines]
    nearest = graph.op("Max", *best) if len(best) > 1 else best[0]  # (N, h, w, 1)
    return to_distance(graph, graph.op("Transpose", nearest, perm=[0, 3, 1, 2]))


def product_shown(graph: Graph, cosines: Sequence[Value], products: Sequence[int]) -> Value:
    """(N, 1, 1, 1) number of the product of the image that an image is most like, as
    ``SamePlace.product_of``.

    Args:
        cosines: (N, h, w, 1, K) of each step around the place.
        products: (K,).
    """
    best = graph.op("Max", *cosines)  # (N, h, w, 1, K)
    alike = graph.op("ReduceMean", best, graph.integers(1, 2), keepdims=0)  # (N, 1, K)
    image = graph.op("ArgMax", alike, axis=2, keepdims=1)  # (N, 1, 1)
    shown = graph.op("Gather", graph.constant(np.array(products, np.int64)), image)
    return graph.op("Unsqueeze", shown, graph.integers(3))


def cosines_around(graph: Graph, tokens: Value, memory: Tensor, reach: int) -> list[Value]:
    """(N, h, w, 1, K) of ``tokens`` (N, C, h, w) with ``memory`` (K, C, h', w'), of each step of at
    most ``reach`` cells around the same place."""
    height, width = graph.side(tokens, 2), graph.side(tokens, 3)
    grids = graph.unit_length(graph.resize(graph.constant(memory), height, width))
    margin = [0, 0, reach, reach] * 2
    padded = graph.op("Pad", grids, graph.integers(*margin), mode="edge")
    padded = graph.op("Transpose", padded, perm=[2, 3, 1, 0])  # (rows, columns, C, K)
    query = graph.op("Transpose", tokens, perm=[0, 2, 3, 1])
    query = graph.op("Unsqueeze", query, graph.integers(3))  # (N, h, w, 1, C)
    sides = graph.op("Concat", height, width, axis=0)
    cosines = []
    for down in range(2 * reach + 1):
        for right in range(2 * reach + 1):
            start = graph.integers(down, right)
            window = graph.cut(padded, start, graph.op("Add", start, sides), (0, 1))
            cosines.append(graph.op("MatMul", query, window))  # (N, h, w, 1, K)
    return cosines


def distance_in_place(graph: Graph, features: Value, memory: Tensor) -> Value:
    """(N, 1, h, w) Euclidean distance of ``features`` (N, C, h, w) to the nearest of ``memory``
    (K, C, h', w') at the same place."""
    height, width = graph.side(features, 2), graph.side(features, 3)
    grids = graph.resize(graph.constant(memory), height, width)
    query = graph.op("Unsqueeze", features, graph.integers(1))  # (N, 1, C, h, w)
    offsets = graph.op("Sub", query, grids)
    squares = graph.op(
        "ReduceSum", graph.op("Mul", offsets, offsets), graph.integers(2), keepdims=0
    )
    return graph.op("Sqrt", graph.op("ReduceMin", squares, graph.integers(1), keepdims=1))


def place_distance(graph: Graph, tokens: Value, places: Places) -> Value:
    """Tokens (N, C, h, w) -> (N, 1, *GRID), as ``Places.distance``."""
    cells, channels = places.mean.shape
    grid = graph.resize(tokens, *(graph.integers(side) for side in GRID))
    rows = graph.op("Reshape", grid, graph.integers(-1, channels, cells, 1))
    rows = graph.op("Transpose", rows, perm=[0, 2, 3, 1])  # (N, P, 1, C)
    offsets = graph.op("Sub", rows, graph.constant(places.mean[:, None]))
    white = graph.op("MatMul", offsets, graph.constant(places.whitening))
    squares = graph.op("Mul", white, white)
    mean = graph.op("ReduceMean", squares, graph.integers(3), keepdims=0)  # (N, P, 1)
    shape = graph.integers(-1, 1, *GRID)
    return graph.op("Reshape", graph.op("Sqrt", mean), shape)


def elsewhere(graph: Graph, tokens: Value, reading: str) -> Value:
    """(N, 1, h, w) distance of tokens (N, C, h, w) of ``reading`` to the nearest elsewhere on the
    image, as ``own_image.elsewhere``."""
    height, width = graph.side(tokens, 2), graph.side(tokens, 3)
    area = graph.cast(graph.op("Mul", height, width), np.float32)
    side = graph.op("Sqrt", area)
    every = graph.cast(
        graph.op("Ceil", graph.op("Div", side, graph.numbers(MOST_A_SIDE))), np.int64
    )
    every = graph.op("Max", every, graph.integers(EVERY[reading]))
    sides = graph.op("Concat", height, width, axis=0)
    steps = graph.op("Concat", every, every, axis=0)
    kept = graph.op("Slice", tokens, graph.integers(0, 0), sides, graph.integers(2, 3), steps)
    batch, channels = graph.side(tokens, 0), graph.side(tokens, 1)
    shape = graph.op("Concat", batch, channels, graph.integers(-1), axis=0)
    rows = graph.op("Reshape", tokens, shape)  # (N, C, h * w)
    others = graph.op("Reshape", kept, shape)  # (N, C, M)
    queries = graph.op("Transpose", rows, perm=[0, 2, 1])
    alike = graph.op("MatMul", queries, others)  # (N, h * w, M)

    def half_squares(x: Value) -> Value:
        squares = graph.op("ReduceSum", graph.op("Mul", x, x), graph.integers(1), keepdims=1)
        return graph.op("Mul", squares, graph.numbers(0.5))  # (N, 1, ...)

    if reading in EUCLIDEAN:
        alike = graph.op("Sub", alike, half_squares(others))
    is_near = around(graph, height, width, side, every)  # (1, h * w, M)
    alike = graph.op("Where", is_near, graph.numbers(FAR), alike)
    best = graph.op("ReduceMax", alike, graph.integers(2), keepdims=0)  # (N, h * w)
    grid = graph.op("Concat", batch, graph.integers(1), height, width, axis=0)
    best = graph.op("Reshape", best, grid)
    if reading not in EUCLIDEAN:
        return to_distance(graph, best)
    halves = graph.op("Relu", graph.op("Sub", half_squares(tokens), best))
    return graph.op("Sqrt", graph.op("Mul", halves, graph.numbers(2)))


def around(graph: Graph, height: Value, width: Value, side: Value, every: Value) -> Value:
    """(1, h * w, M) whether one of the tokens compared with is not elsewhere.

    Args:
        side: root of the cells.
        every: one token in so many is compared with, along either side.
    """
    reach = graph.op("Round", graph.op("Mul", side, graph.numbers(REACH)))
    zero, one = (graph.constant(np.array(n, np.int64)) for n in (0, 1))
    step = graph.op("Squeeze", every, graph.integers(0))
    near = []
    for length in (height, width):
        end = graph.op("Squeeze", length, graph.integers(0))
        places = graph.op("Range", zero, end, one)
        kept = graph.op("Range", zero, end, step)
        apart = graph.op("Sub", graph.op("Unsqueeze", places, graph.integers(1)), kept)
        distance = graph.cast(graph.op("Abs", apart), np.float32)
        near.append(graph.op("LessOrEqual", distance, reach))  # (length, length / every)
    down = graph.op("Unsqueeze", near[0], graph.integers(1, 3))  # (h, 1, h / every, 1)
    right = graph.op("Unsqueeze", near[1], graph.integers(0, 2))  # (1, w, 1, w / every)
    both = graph.op("And", down, right)
    cells = graph.op("Mul", height, width)
    shape = graph.op("Concat", graph.integers(1), cells, graph.integers(-1), axis=0)
    return graph.op("Reshape", both, shape)


def to_distance(graph: Graph, cosine: Value) -> Value:
    return graph.op("Relu", graph.op("Sub", graph.numbers(1), cosine))
