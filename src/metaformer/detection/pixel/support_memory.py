"""The memory of a support: features to compare with, and the scale of their distances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metaformer.detection.nearest_neighbors import as_columns, nearest_distance
from metaformer.detection.pixel.encoder_output import (
    FINE,
    LEVELS,
    TOKEN_CHANNELS,
    EncoderOutput,
    main_gap,
)
from metaformer.networks.pixel_transformer import (
    grid_positions,
)

LEAST_SCALE = 0.01
"""Added to the units that distance and gap are measured in, near zero on a flat support."""
SCALE_QUERIES, SCALE_MEMORY = 320, 8192
"""Where the support is compared with itself, this many tokens of an image stand for all of it, and
this many for all other images together; evenly spread."""


@dataclass(frozen=True)
class SupportMemory:
    """What the model stores of the support images."""

    tokens: Tensor
    """(M, TOKEN_CHANNELS) for the transformer's attention; none, M = 0, where the transformer is
    not to be asked."""
    positions: Tensor
    """(M, 2)."""
    response: Tensor
    """(M,)."""
    features: dict[int, Tensor]
    """Stride -> (N, C), unit length."""
    distance_scale: Tensor
    """(levels + 1,): mean distance of one support image to the others, and mean gap: the units
    that distance and gap are measured in. (levels,) where the gap has no share in the map."""
    images: int
    """How many images the support has."""
    templates: tuple[Tensor, ...] = ()
    """Support images (3, H, W) in [-1, 1] to compare with pixel by pixel, where that is asked."""


def build_memory(
    support: Sequence[EncoderOutput], distance_scale: Tensor | None = None
) -> SupportMemory:
    """Keep a support, given as encoder outputs of one or more images each; differentiable.

    Args:
        distance_scale: units, as in ``SupportMemory``, where they are not to be this support's own.
    """
    features = {
        level: [
            image.flatten(1).T for encoded in support for image in encoded.features[level]
        ]  # of (h * w, C)
        for level in LEVELS
    }
    if distance_scale is None:
        units = [mean_distance_between(features[level]) for level in LEVELS]
        gaps = [main_gap(encoded).flatten() for encoded in support if encoded.gap is not None]
        if gaps:
            units.append(torch.cat(gaps).mean())
        distance_scale = torch.stack(units) + LEAST_SCALE
    tokens, positions, response = (
        [distance_scale.new_zeros(0, TOKEN_CHANNELS)],
        [distance_scale.new_zeros(0, 2)],
        [],
    )
    for encoded in support:
        if encoded.response is not None:
            tokens.append(encoded.tokens().flatten(0, 1))
            grid = grid_positions(*encoded.response.shape[1:]).to(distance_scale.device)
            positions.append(grid.repeat(len(encoded.response), 1))
            response.append(encoded.response.flatten())
    return SupportMemory(
        tokens=torch.cat(tokens),
        positions=torch.cat(positions),
        response=torch.cat([distance_scale.new_zeros(0), *response]),
        features={level: torch.cat(images) for level, images in features.items()},
        distance_scale=distance_scale,
        images=sum(len(encoded.features[FINE]) for encoded in support),
    )


def mean_distance_between(images: Sequence[Tensor]) -> Tensor:
    """Mean distance of each image's features (n, C) to the nearest of the others'.

    One image is compared with itself, one half with the other.
    """
    if len(images) == 1:
        half = len(images[0]) // 2
        images = [images[0][:half], images[0][half:]]
    distances, rows, start = [], torch.cat(list(images)), 0
    for image in images:
        others = spread(torch.arange(len(rows) - len(image)), SCALE_MEMORY)
        others = others + len(image) * (others >= start)  # this image's own rows are skipped
        distances.append(
            nearest_distance(
                spread(image, SCALE_QUERIES),
                as_columns(rows[others], euclidean=False),
                euclidean=False,
            )
        )
        start += len(image)
    return torch.cat(distances).mean()


def spread(rows: Tensor, most: int) -> Tensor:
    """At most ``most`` of the rows (n, C), evenly spread."""
    return rows[:: -(-len(rows) // most)]
