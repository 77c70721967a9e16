"""The package's EfficientNet-Lite0 weights in timm's network, for peers that are built on timm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metaformer.networks.efficientnet import (
    INPUT_MEAN,
    INPUT_STD,
    STAGES,
    EfficientNetLite0,
    load_backbone,
)

TIMM_NAME = "tf_efficientnet_lite0"
TIMM_LAYERS = {4: "blocks.1", 8: "blocks.2", 16: "blocks.4", 32: "blocks.6"}
"""timm's name of the stage that leaves with each stride."""
BATCH_NORM_EPS = 1e-3
"""timm's, for networks that come from TensorFlow."""
TOLERANCE = 1e-4
"""Largest difference of any feature from ours, as a share of the largest feature."""


def load_shipped_weights(network: nn.Module, strides: tuple[int, ...]) -> None:
    """Put our weights into timm's ``tf_efficientnet_lite0`` made with ``features_only``.

    Ours have their batch normalisations folded in; timm's keep theirs, set to change nothing but
    add the folded bias.

    Args:
        network: gives a list of feature maps, one a stride, finest first.
        strides: those of the maps it gives.

    Raises:
        ValueError: a weight has no place in the network or the reverse, or the loaded network
            does not compute our features.
    """
    ours = load_backbone(deepest=32)
    published = ours.state_dict()
    wanted = network.state_dict()
    state: dict[str, Tensor] = {}
    for conv, norm, source in _names():
        bias = published[f"{source}.conv.bias"]
        state[f"{conv}.weight"] = unpadded(published[f"{source}.conv.weight"])
        state[f"{norm}.weight"] = torch.ones_like(bias)
        state[f"{norm}.bias"] = bias
        state[f"{norm}.running_mean"] = torch.zeros_like(bias)
        state[f"{norm}.running_var"] = torch.full_like(bias, 1 - BATCH_NORM_EPS)
    missing = {name for name in wanted if not name.endswith("num_batches_tracked")} - set(state)
    if missing:
        raise ValueError(f"{TIMM_NAME}: no weight of ours for {sorted(missing)[0]}.")
    kept = {name: tensor for name, tensor in state.items() if name in wanted}
    network.load_state_dict(kept, strict=False)
    network.eval().requires_grad_(False)
    _refuse_other_features(network, strides, ours)


def unpadded(kernel: Tensor) -> Tensor:
    """Without the row and column of zeros that ours have where a kernel is applied at stride 2."""
    is_padded = kernel.shape[2] > 1 and kernel.shape[2] % 2 == 0
    return kernel[:, :, 1:, 1:] if is_padded else kernel


def _names() -> list[tuple[str, str, str]]:
    """timm's names of each convolution and its normalisation, with ours."""
    names = [("conv_stem", "bn1", "stem")]
    position = 0
    for number, stage in enumerate(STAGES):
        convolutions = {"depthwise": "conv_dw", "project": "conv_pw"}
        if stage.expand > 1:
            convolutions = {"expand": "conv_pw", "depthwise": "conv_dw", "project": "conv_pwl"}
        for i in range(stage.blocks):
            theirs, ours = f"blocks.{number}.{i}", f"blocks.{position}"
            position += 1
            names += [
                (f"{theirs}.{convolution}", f"{theirs}.bn{k}", f"{ours}.{part}")
                for k, (part, convolution) in enumerate(convolutions.items(), 1)
            ]
    return names


@torch.no_grad()
def _refuse_other_features(
    network: nn.Module, strides: tuple[int, ...], ours: EfficientNetLite0
) -> None:
    """Raises: ValueError: on a test image the two networks' features differ."""
    image = torch.rand(1, 3, 96, 160, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(of_colours)[:, None, None] for of_colours in (INPUT_MEAN, INPUT_STD))
    standardised = (image - mean) / std
    expected = ours(image)
    for stride, features in zip(strides, network(standardised), strict=True):
        largest = expected[stride].abs().max()
        apart = float((features - expected[stride]).abs().max() / largest)
        if not apart < TOLERANCE:
            raise ValueError(
                f"{TIMM_NAME}: features at stride {stride} differ from ours by {apart:.1e} of the "
                f"largest; at most {TOLERANCE:.0e} is accepted."
            )
