"""The networks as ONNX nodes: EfficientNet-Lite0, and A in two parts."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from metaformer.export.onnx.graph import Graph, Value
from metaformer.networks.autoencoder import (
    BOTTLENECK_POOL,
    PADDING,
    Autoencoder,
    Moments,
    SupportNorm,
)
from metaformer.networks.efficientnet import Block, EfficientNetLite0, Pointwise, SameConv


def backbone(graph: Graph, images: Value, net: EfficientNetLite0) -> dict[int, Value]:
    """(N, 3, H, W) in [0, 1], sides multiples of the deepest stride -> stride -> features."""
    x = graph.op("Sub", images, graph.constant(net.mean))
    x = graph.op("Div", x, graph.constant(net.std))
    x = relu6(graph, same_conv(graph, x, net.stem))
    features: dict[int, Value] = {}
    for block, tap in zip(net.blocks, net.taps, strict=True):
        assert isinstance(block, Block)
        y = x if block.expand is None else relu6(graph, same_conv(graph, x, block.expand))
        y = relu6(graph, same_conv(graph, y, block.depthwise))
        y = same_conv(graph, y, block.project)
        x = graph.op("Add", x, y) if block.has_skip else y
        if tap:
            features[tap] = x
    return features


def same_conv(graph: Graph, x: Value, layer: SameConv | Pointwise) -> Value:
    """At sides that the stride divides, "same" padding does not depend on the size."""
    conv = layer.conv
    missing = conv.kernel_size[0] - conv.stride[0]
    before = missing // 2
    after = missing - before
    assert conv.bias is not None
    return graph.op(
        "Conv",
        x,
        graph.constant(conv.weight),
        graph.constant(conv.bias),
        pads=[before, before, after, after],
        strides=list(conv.stride),
        group=conv.groups,
    )


def relu6(graph: Graph, x: Value) -> Value:
    return graph.op("Clip", x, graph.numbers(0), graph.numbers(6))


def encoder(
    graph: Graph, pixels: Value, net: Autoencoder, moments: Moments, count: int
) -> list[Value]:
    """(N, 3, H, W) in [-1, 1], sides multiples of 2^count -> outputs of A's first ``count`` encoder
    stages.

    Raises:
        ValueError: A is not the published default (support norm, bilinear).
    """
    if net.config.norm != "support" or net.config.upsample != "bilinear":
        raise ValueError(
            f"only A with support moments and bilinear upsampling can be exported, found "
            f"{net.config}."
        )
    slope = net.config.slope
    x = pixels
    stages = []
    for i, conv in enumerate(net.encoder_convs[:count]):
        assert isinstance(conv, nn.Conv2d)
        weight, bias = fold(conv.weight, None, net.encoder_norms[i], moments[f"encoder.{i}"])
        x = graph.op(
            "MaxPool", plain_conv(graph, x, weight, bias), kernel_shape=[2, 2], strides=[2, 2]
        )
        x = graph.op("LeakyRelu", x, alpha=slope)
        stages.append(x)
    return stages


def decoder(graph: Graph, deepest: Value, net: Autoencoder, moments: Moments) -> Value:
    """Output of the last encoder stage -> reconstruction (N, 3, H, W)."""
    slope, size = net.config.slope, [BOTTLENECK_POOL] * 2
    x = graph.op("AveragePool", deepest, kernel_shape=size, strides=size)
    # (N, 512, H / 128, W / 128)
    for i, conv in enumerate(net.decoder_convs):
        assert isinstance(conv, nn.ConvTranspose2d)
        # A transposed convolution at stride 1 is a convolution with mirrored, swapped weights.
        mirrored = conv.weight.flip(2, 3).transpose(0, 1)
        x = upsample(graph, x, 8 if i == 0 else 2)
        if i == len(net.decoder_norms):  # the last layer is linear
            return plain_conv(graph, x, mirrored, conv.bias)
        weight, bias = fold(mirrored, conv.bias, net.decoder_norms[i], moments[f"decoder.{i}"])
        x = graph.op("LeakyRelu", plain_conv(graph, x, weight, bias), alpha=slope)
    return x


@torch.no_grad()
def fold(
    weight: Tensor, bias: Tensor | None, norm: nn.Module, moments: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Weights and bias of a convolution that normalises its output by fixed moments."""
    assert isinstance(norm, SupportNorm)
    mean, variance = moments
    scale = norm.weight * torch.rsqrt(variance + norm.eps)  # (C,)
    shift = norm.bias - mean * scale
    return weight * scale[:, None, None, None], shift if bias is None else shift + bias * scale


def plain_conv(graph: Graph, x: Value, weight: Tensor, bias: Tensor | None) -> Value:
    biases = () if bias is None else (graph.constant(bias),)
    return graph.op("Conv", x, graph.constant(weight), *biases, pads=[PADDING] * 4)


def upsample(graph: Graph, x: Value, factor: int) -> Value:
    scales = graph.constant(np.array([1, 1, factor, factor], np.float32))
    return graph.op(
        "Resize", x, "", scales, mode="linear", coordinate_transformation_mode="half_pixel"
    )
