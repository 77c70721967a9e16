"""An image prepared for the pixel preset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from metaformer.detection.pixel.config import PixelConfig
from metaformer.detection.pixel.encoder_output import (
    EncoderOutput,
    crop,
    to_encoder_output,
)
from metaformer.detection.pixel.universal_model import respond
from metaformer.networks.autoencoder import SIZE_MULTIPLE
from metaformer.networks.instance_prior import InstancePrior


@dataclass(frozen=True)
class PreparedImage:
    """An image at working size with its response map."""

    pixels: Tensor
    """(1, 3, H, W) in [-1, 1]; where it is to be rebuilt padded to multiples of 128."""
    response: Tensor | None
    """(1, 1, H, W) in [0, 1]; None where the transformer is not used."""
    height: int
    """Rows that are image; the rest is padding, on the bottom."""
    width: int

    def with_pixels(self, image: Tensor) -> PreparedImage:
        """Another image (1, 3, height, width) in [0, 1] of the same object: the response map
        stays."""
        return replace(self, pixels=padded(image * 2 - 1))


def prepare(config: PixelConfig, prior: InstancePrior, image: Tensor) -> PreparedImage:
    """Images (B, 3, H, W) in [0, 1], sides multiples of 16, as the autoencoder takes them; with the
    response map where the transformer is used."""
    pixels = image * 2 - 1
    response = None
    if config.corrects:
        found = respond(prior, pixels) if config.response else torch.ones_like(pixels[:, :1])
        response = padded(found)
    if config.rebuilds:
        pixels = padded(pixels)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    return PreparedImage(pixels, response, image.shape[2], image.shape[3])


def padded(image: Tensor) -> Tensor:
    """(1, C, H, W) with its last row and column repeated up to multiples of 128."""
    bottom, right = (-side % SIZE_MULTIPLE for side in image.shape[2:])
    image = F.pad(image, (0, right, 0, bottom), mode="replicate")
    return image.contiguous(memory_format=torch.channels_last)


def cropped_output(
    config: PixelConfig, image: PreparedImage, stages: Sequence[Tensor], rebuilt: Tensor | None
) -> EncoderOutput:
    """What the autoencoder's encoder stages and reconstruction say of one image, padding cut
    off."""
    if rebuilt is not None and not config.reconstruction:
        rebuilt = image.pixels
    encoded = to_encoder_output(image.pixels, stages, rebuilt, image.response)
    return crop(encoded, image.height, image.width)
