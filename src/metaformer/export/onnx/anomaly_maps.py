"""A detector's raw anomaly maps as ONNX nodes: what the model and ``smooth`` compute."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metaformer.detection.adaptation import Adapted
from metaformer.detection.feature.adapted import AdaptedFeature
from metaformer.detection.feature.position_memory import REACH
from metaformer.detection.pixel.preset import AdaptedPixel
from metaformer.detection.pixel.universal_model import COMPARED_STAGES, FINE, STAGES
from metaformer.export.onnx.distances import (
    aligned_distance,
    cosines_around,
    distance_in_place,
    distance_to_any,
    elsewhere,
    euclidean_distance,
    nearest_distance,
    place_distance,
    product_shown,
)
from metaformer.export.onnx.graph import Graph, Value
from metaformer.export.onnx.networks import backbone, decoder, encoder
from metaformer.networks.autoencoder import SIZE_MULTIPLE
from metaformer.networks.efficientnet import EfficientNetLite0
from metaformer.networks.patch_metric import (
    COARSE,
    CONTEXT,
    CONTEXT_STRIDE,
    EUCLIDEAN,
    FLOOR,
    HERE,
    PART,
    PART_LENGTH,
    POOL,
    POOLED,
    POOLED_LENGTH,
    RAW,
    READINGS,
    WIDE,
    WIDE_LENGTHS,
    TokenMetric,
)
from metaformer.networks.patch_metric import FINE as FINE_TOKENS


class UnsupportedExportError(ValueError):
    """The detector has a part that cannot leave PyTorch."""


def raw_maps(graph: Graph, images: Value, adapted: Adapted) -> list[Value]:
    """(N, 3, H, W) in [0, 1], at a working size -> (N, 1, h, w) raw maps, blurred: the first to
    score by, the last to mark pixels.

    Raises:
        UnsupportedExportError: the detector's backbone is not the one inside the package, or it
            has a part that is not written as ONNX.
    """
    if isinstance(adapted, AdaptedFeature):
        grids = feature_maps(graph, images, adapted)
    else:
        grids = [pixel_map(graph, images, adapted)]
    return [blur(graph, grid, adapted.model.config.sigma) for grid in grids]


def feature_maps(graph: Graph, images: Value, adapted: AdaptedFeature) -> list[Value]:
    if adapted.model.transformer is not None:
        raise UnsupportedExportError(
            "a detector of the feature preset whose map T corrects (FeatureConfig(transformer="
            "True)) is not written as an ONNX or OpenVINO model. Compute with PyTorch, or leave T "
            "out, as is the default."
        )
    config = adapted.model.config
    net = adapted.model.backbone
    if not isinstance(net, EfficientNetLite0):
        raise UnsupportedExportError(
            f"this detector uses the backbone {config.backbone}; ONNX and OpenVINO models are made "
            f"of the backbone inside the package only. Compute with PyTorch."
        )
    tokens = feature_tokens(graph, backbone(graph, images, net), adapted)
    first = tokens[config.readings[0]]
    height, width = graph.side(first, 2), graph.side(first, 3)
    grids = {}
    for name, memory in adapted.compared.items():
        if config.aligned:
            reach = config.reach_cells(int(name))
            distance = aligned_distance(graph, tokens[name], memory, reach=reach)
        elif name in EUCLIDEAN:
            distance = euclidean_distance(graph, tokens[name], memory)
        else:
            distance = nearest_distance(graph, tokens[name], memory)
        grids[name] = graph.resize(distance, height, width)  # (N, 1, h, w)
    metric = adapted.model.metric
    if metric is None:
        weights = torch.tensor(config.level_weights) / sum(config.level_weights)
        return [weighted_sum(graph, [*grids.values()], weights)]
    same_place, product = adapted.same_place, None
    if same_place is not None:
        cosines = cosines_around(graph, tokens[FINE_TOKENS], same_place.fine, reach=REACH)
        grids[HERE] = distance_to_any(graph, cosines)
        grids[RAW] = distance_in_place(graph, tokens[RAW], same_place.raw)
        if len(same_place.alignments) > 1:
            product = product_shown(graph, cosines, same_place.products)
    weights, learned = metric.shares()
    cosine = weighted_sum(graph, [grids[FINE_TOKENS], grids[COARSE]], weights)
    cosine, euclidean = (above_zero(graph, x) for x in (cosine, grids[POOLED]))
    maps = []
    for of_products in zip(*adapted.shares, strict=True):  # for one map
        shares = of_products[0]
        directions = cosine
        if shares.context:
            parts = torch.tensor([1, shares.context]) / (1 + shares.context)
            directions = weighted_sum(graph, [cosine, above_zero(graph, grids[CONTEXT])], parts)
        exponent = float(learned) if shares.pooled is None else shares.pooled
        factors = [(directions, 1 - exponent - shares.wide - shares.part), (euclidean, exponent)]
        factors += [(above_zero(graph, grids[n]), share) for n, share in shares.unlearned.items()]
        rest = product_of_powers(graph, factors)
        placed = [one.placed for one in of_products]  # all that products differ in
        powers = [(rest, [1 - sum(of_product.values()) for of_product in placed])]
        for name in (HERE, RAW):
            exponents = [of_product.get(name, 0.0) for of_product in placed]
            if any(exponents):
                powers.append((above_zero(graph, grids[name]), exponents))
        maps.append(product_of_powers(graph, [(x, of(graph, e, product)) for x, e in powers]))
    places = adapted.places
    if places is not None:
        distance = graph.resize(place_distance(graph, tokens[POOLED], places), height, width)
        maps = [
            product_of_powers(graph, ((grid, 1 - share), (distance, share)))
            for grid, share in zip(maps, places.shares(len(maps)), strict=True)
        ]
    if config.has_own:
        own = [
            graph.resize(elsewhere(graph, tokens[reading], reading), height, width)
            for reading in READINGS
        ]
        remembered = [grids[reading] for reading in READINGS]
        joined = [join_as_learned(graph, kind, metric) for kind in (own, remembered)]
        ratio = graph.op("Min", graph.op("Div", *joined), graph.numbers(1))
        factor = graph.op("Pow", ratio, graph.numbers(config.own))
        maps = [graph.op("Mul", grid, factor) for grid in maps]
    return maps


def join_as_learned(graph: Graph, grids: Sequence[Value], metric: TokenMetric) -> Value:
    """``metric.join`` of the distances of ``READINGS``."""
    weights, learned = metric.shares()
    directions = above_zero(graph, weighted_sum(graph, grids[:2], weights))
    exponent = float(learned)
    pooled = above_zero(graph, grids[2])
    return product_of_powers(graph, [(directions, 1 - exponent), (pooled, exponent)])


def of(graph: Graph, values: Sequence[float], product: Value | None) -> Value:
    """The one of ``values``, of each product, that is of the product that each image shows,
    (N, 1, 1, 1); the only one where there is one."""
    if product is None:
        return graph.numbers(*values)
    return graph.op("Gather", graph.constant(np.array(values, np.float32)), product)


def product_of_powers(graph: Graph, factors: Sequence[tuple[Value, float | Value]]) -> Value:
    exponents = [x if isinstance(x, Value) else graph.numbers(x) for _, x in factors]
    powers = [graph.op("Pow", grid, x) for (grid, _), x in zip(factors, exponents, strict=True)]
    product = powers[0]
    for power in powers[1:]:  # Mul takes two
        product = graph.op("Mul", product, power)
    return product


def above_zero(graph: Graph, distances: Value) -> Value:
    return graph.op("Add", distances, graph.numbers(FLOOR))


def feature_tokens(
    graph: Graph, features: dict[int, Value], adapted: AdaptedFeature
) -> dict[str, Value]:
    """Reading -> (N, C, h, w) tokens, as ``FeatureModel.prepare`` makes them."""
    metric = adapted.model.metric
    if metric is None:
        levels = adapted.model.config.levels
        return {str(level): graph.unit_length(features[level]) for level in levels}
    height, width = graph.side(features[8], 2), graph.side(features[8], 3)
    coarse = graph.resize(features[16], height, width)
    both = graph.op("Concat", features[8], coarse, axis=1)
    both = graph.op("Div", both, graph.numbers(POOLED_LENGTH))
    window = {"kernel_shape": [POOL] * 2, "strides": [1, 1], "pads": [POOL // 2] * 4}
    learned = {
        FINE_TOKENS: graph.unit_length(features[8]),
        COARSE: graph.unit_length(features[16]),
        POOLED: graph.op("AveragePool", both, count_include_pad=1, **window),
    }
    tokens = {
        name: graph.op("Conv", x, graph.constant(metric.maps[name].weight[:, :, None, None]))
        for name, x in learned.items()
    }
    readings = adapted.model.config.readings
    if WIDE in readings:
        wide = pool_wide(graph, features)
        tokens[WIDE] = graph.op("Conv", wide, graph.constant(metric.wide[:, :, None, None]))
    if CONTEXT in readings:
        tokens[CONTEXT] = features[CONTEXT_STRIDE]
    if RAW in readings:
        tokens[RAW] = graph.op("Div", features[8], graph.numbers(WIDE_LENGTHS[8]))
    if PART in readings:
        length = graph.numbers(PART_LENGTH)
        tokens[PART] = graph.op("Div", features[CONTEXT_STRIDE], length)
    return {n: x if n in EUCLIDEAN else graph.unit_length(x) for n, x in tokens.items()}


def pool_wide(graph: Graph, features: dict[int, Value]) -> Value:
    """(N, 152, h / 2, w / 2), as ``metric.pool_wide``."""
    windows = {
        8: {"kernel_shape": [4, 4], "strides": [2, 2], "pads": [1] * 4},
        16: {"kernel_shape": [POOL] * 2, "strides": [1, 1], "pads": [POOL // 2] * 4},
    }
    means = []
    for stride, window in windows.items():
        scaled = graph.op("Div", features[stride], graph.numbers(WIDE_LENGTHS[stride]))
        means.append(graph.op("AveragePool", scaled, count_include_pad=1, **window))
    return graph.op("Concat", *means, axis=1)


def weighted_sum(graph: Graph, grids: Sequence[Value], shares: Tensor) -> Value:
    weighted = [
        graph.op("Mul", grid, graph.numbers(share))
        for grid, share in zip(grids, shares.tolist(), strict=True)
    ]
    return graph.op("Sum", *weighted)


def pixel_map(graph: Graph, images: Value, adapted: AdaptedPixel) -> Value:
    """The map before T, as ``UniversalModel.find`` makes it."""
    if adapted.config.corrects:
        raise UnsupportedExportError(
            "a detector of the pixel preset adapted in the long mode uses T, which is not written "
            "as an ONNX or OpenVINO model yet. Compute with PyTorch, or adapt in the fast mode."
        )
    if adapted.config.aligned:
        raise UnsupportedExportError(
            "a detector of the pixel preset adapted with --aligned compares with its support "
            "images pixel by pixel, which is not written as an ONNX or OpenVINO model yet. Compute "
            "with PyTorch, or take the feature preset."
        )
    known = adapted.known
    assert known is not None
    height, width = graph.side(images, 2), graph.side(images, 3)
    centred = graph.op("Sub", graph.op("Mul", images, graph.numbers(2)), graph.numbers(1))
    with_gap = adapted.config.gap
    pixels = pad_to_multiple(graph, centred, height, width) if with_gap else centred
    autoencoder, moments = adapted.universal.autoencoder, adapted.moments
    count = len(STAGES) if with_gap else COMPARED_STAGES
    stages = encoder(graph, pixels, autoencoder, moments, count)
    grids = []
    for level, memory in known.memory.items():  # the finest first
        stage = crop(graph, stages[STAGES.index(level)], height, width, level)
        grids.append(nearest_distance(graph, graph.unit_length(stage), memory))
    rows, columns = graph.side(grids[0], 2), graph.side(grids[0], 3)
    grids = [graph.resize(grid, rows, columns) for grid in grids]
    if with_gap:
        rebuilt = decoder(graph, stages[-1], autoencoder, moments)
        gap = graph.op("Abs", graph.op("Sub", pixels, rebuilt))
        gap = graph.op("ReduceMean", gap, graph.integers(1), keepdims=1)
        gap = crop(graph, gap, height, width, 1)  # (N, 1, H, W), the padding cut off
        cell = [FINE] * 2
        grids.append(graph.op("AveragePool", gap, kernel_shape=cell, strides=cell))
    shares = adapted.universal.mix[: len(grids)].softmax(0).tolist()
    parts = [
        doublings(graph, grid, unit, share)
        for grid, unit, share in zip(grids, known.typical.tolist(), shares, strict=True)
    ]
    return graph.op("Sum", *parts)  # (N, 1, H / 4, W / 4)


def doublings(graph: Graph, grid: Value, unit: float, share: float) -> Value:
    """``share * log2(1 + grid / unit)``."""
    ratio = graph.op("Div", grid, graph.numbers(unit))
    logarithm = graph.op("Log", graph.op("Add", ratio, graph.numbers(1)))
    return graph.op("Mul", logarithm, graph.numbers(share / float(np.log(2))))


def pad_to_multiple(graph: Graph, x: Value, height: Value, width: Value) -> Value:
    """Repeat the last row and column up to multiples of what A takes."""
    multiple = graph.integers(SIZE_MULTIPLE)
    bottom, right = (graph.op("Mod", graph.op("Neg", side), multiple) for side in (height, width))
    pads = graph.op("Concat", graph.integers(*[0] * 6), bottom, right, axis=0)
    return graph.op("Pad", x, pads, mode="edge")


def crop(graph: Graph, x: Value, height: Value, width: Value, stride: int) -> Value:
    """The cells of ``x`` (N, C, ...) at ``stride`` that show image and not padding."""
    sides = graph.op("Concat", height, width, axis=0)
    return graph.cut(
        x, graph.integers(0, 0), graph.op("Div", sides, graph.integers(stride)), (2, 3)
    )


def blur(graph: Graph, maps: Value, sigma: float) -> Value:
    """``preprocess.smooth`` of (N, 1, h, w)."""
    if sigma <= 0:
        return maps
    radius = int(np.ceil(3 * sigma))
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = F.normalize(kernel, p=1, dim=0)
    x = graph.op("Pad", maps, graph.integers(*[0, 0, radius, radius] * 2), mode="edge")
    x = graph.op("Conv", x, graph.constant(kernel[None, None, :, None]))
    return graph.op("Conv", x, graph.constant(kernel[None, None, None, :]))
