"""What the encoder gives of images: features, reconstruction gap and response map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from metaformer.detection.pixel.reconstruction_error import GAP_CHANNELS, gap_channels
from metaformer.networks.autoencoder import ENCODER_CHANNELS

LEVELS = (4, 8, 16)
"""Strides of the encoder stages that are compared with the support's."""
STAGES = (2, 4, 8, 16, 32)
"""Strides of the autoencoder's encoder stages."""
CELL = 8
"""Pixels along the side of a token of the transformer."""
FINE = 4
"""Pixels along the side of a value of the map."""
COMPARED_STAGES = STAGES.index(max(LEVELS)) + 1
"""Stages that the comparison with the support needs, from the first."""
LEVEL_CHANNELS = dict(zip(STAGES, ENCODER_CHANNELS[1:], strict=True))
TOKEN_CHANNELS = sum(LEVEL_CHANNELS[level] for level in LEVELS) + GAP_CHANNELS * (CELL // FINE) ** 2


@dataclass(frozen=True)
class EncoderOutput:
    """Features, reconstruction gap and response map of B images of one size."""

    features: dict[int, Tensor]
    """Stride -> (B, C, h, w), unit length over C."""
    gap: Tensor | None
    """(B, GAP_CHANNELS, H / 4, W / 4), see ``gap_channels``; where the transformer is not to be
    asked, the absolute difference alone, (B, 3, H / 4, W / 4); None where it has no share in the
    map."""
    rebuilt: Tensor | None
    """(B, 3, H, W) in [-1, 1]; None where the gap is."""
    response: Tensor | None
    """(B, H / 8, W / 8): the response map in [0, 1]; None where the transformer is not to be
    asked."""
    images: Tensor | None = None
    """(B, 3, H, W) in [-1, 1]: what was read."""

    def tokens(self) -> Tensor:
        """(B, N, TOKEN_CHANNELS), N = H / 8 * W / 8, row by row.

        Raises:
            ValueError: the images were read without the response map.
        """
        if self.response is None or self.gap is None:
            raise ValueError(
                "The transformer needs the response map and all of the gap: read the images with a "
                "response."
            )
        size = self.response.shape[1:]
        parts = [
            F.interpolate(grid, size, mode="area" if level < CELL else "bilinear")
            * grid.shape[1] ** 0.5  # entries about 1, whatever the number of channels
            for level, grid in self.features.items()
        ]
        parts.append(F.pixel_unshuffle(self.gap, CELL // FINE))
        return torch.cat(parts, dim=1).flatten(2).transpose(1, 2)


def to_encoder_output(
    images: Tensor, stages: Sequence[Tensor], rebuilt: Tensor | None, response: Tensor | None
) -> EncoderOutput:
    """Put together what the autoencoder and the prior say; what only the transformer reads is left
    out without ``response``.

    Args:
        images: (B, 3, H, W) in [-1, 1].
        stages: the autoencoder's encoder stages, (B, C, H / 2^(i+1), W / 2^(i+1));
            ``COMPARED_STAGES`` or more.
        rebuilt: (B, 3, H, W), or None if the gap is to have no share.
        response: the response map, (B, 1, H, W) in [0, 1], or None.
    """
    features = {
        stride: F.normalize(stage.float(), dim=1)
        for stride, stage in zip(STAGES, stages, strict=False)
        if stride in LEVELS
    }
    if rebuilt is None:
        return EncoderOutput(features, None, None, None, images)
    rebuilt = rebuilt.float()
    if response is None:
        gap = F.avg_pool2d((images - rebuilt).abs(), FINE)
        return EncoderOutput(features, gap, rebuilt, None, images)
    gap = F.avg_pool2d(gap_channels(images, rebuilt), FINE)
    return EncoderOutput(features, gap, rebuilt, F.avg_pool2d(response.float(), CELL)[:, 0], images)


def crop(encoded: EncoderOutput, height: int, width: int) -> EncoderOutput:
    """Without what was padded at the bottom and on the right; multiples of 16 are left."""
    return EncoderOutput(
        {
            stride: grid[:, :, : height // stride, : width // stride]
            for stride, grid in encoded.features.items()
        },
        None if encoded.gap is None else encoded.gap[:, :, : height // FINE, : width // FINE],
        None if encoded.rebuilt is None else encoded.rebuilt[:, :, :height, :width],
        None
        if encoded.response is None
        else encoded.response[:, : height // CELL, : width // CELL],
        None if encoded.images is None else encoded.images[:, :, :height, :width],
    )


def main_gap(encoded: EncoderOutput) -> Tensor:
    """(B, H / 4, W / 4): mean absolute difference of image and reconstruction."""
    assert encoded.gap is not None
    difference = encoded.gap if encoded.response is None else encoded.gap[:, 6:9]
    return difference.mean(1)
