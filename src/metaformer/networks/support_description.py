"""What the transformer knows of a support: statistics of its features and distances, and keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FINE, COARSE = 8, 16
"""Strides that are rebuilt and read; the tokens of attention are those of ``COARSE``."""
MOST_KEYS = {FINE: 128, COARSE: 256}
"""Support patches that a query is rebuilt from, of all support images together."""
FLOOR = 1e-3
"""Added to distances before their logarithm."""
CLIP = 8.0
"""Standardised values beyond this many deviations count as this many."""


@dataclass(frozen=True)
class SupportDescription:
    """Statistics and keys of k support images, from ``describe_support``."""

    mean: Mapping[int, Tensor]
    """Stride -> (C,) of the support's features."""
    deviation: Mapping[int, Tensor]
    """Stride -> (C,)."""
    keys: Mapping[int, Tensor]
    """Stride -> (k, m, C) standardised features, m patches of each support image."""
    log_mean: Tensor
    """(D + 1,) of the logarithms of each distance and of the core's map on left-out images."""
    log_deviation: Tensor
    """(D + 1,)."""
    loudest: Tensor
    """() mean over the left-out images of the largest logarithm of the core's map."""

    def to(self, device: torch.device) -> SupportDescription:
        def moved(tensors: Mapping[int, Tensor]) -> dict[int, Tensor]:
            return {stride: tensor.to(device) for stride, tensor in tensors.items()}

        return SupportDescription(
            moved(self.mean),
            moved(self.deviation),
            moved(self.keys),
            self.log_mean.to(device),
            self.log_deviation.to(device),
            self.loudest.to(device),
        )


def describe_support(
    features: Sequence[Mapping[int, Tensor]],
    distances: Sequence[Tensor],
    cores: Sequence[Tensor],
    *,
    seed: int = 0,
) -> SupportDescription:
    """Describe a support.

    Args:
        features: of each support image, stride -> (C, h, w); strides beyond 8 and 16 are ignored.
        distances: of support images, each against the others (of a lone one, against its own
            patches farther away): (D, h, w) on the grid of stride 8, not negative.
        cores: the core's maps of the same, (1, h, w) each, positive.
        seed: of the draw of patches where there are more than ``MOST_KEYS``.
    """
    mean, deviation, keys = {}, {}, {}
    for stride in (FINE, COARSE):
        rows = [image[stride].flatten(1).T for image in features]  # (h * w, C) each
        everything = torch.cat(rows)
        mean[stride] = everything.mean(0)
        deviation[stride] = everything.std(0, correction=0).clamp_min(1e-4)
        count = min(max(1, MOST_KEYS[stride] // len(rows)), *(len(r) for r in rows))
        generator = torch.Generator().manual_seed(seed)
        drawn = []
        for some in rows:  # the same number of each image, so that images can be compared
            order = torch.randperm(len(some), generator=generator)[:count].sort().values
            kept = some[order.to(some.device)]
            drawn.append(standardised(kept, mean[stride], deviation[stride]))
        keys[stride] = torch.stack(drawn)
    logs = torch.cat(
        [
            (torch.cat([d, c]).clamp_min(0) + FLOOR).log().flatten(1)
            for d, c in zip(distances, cores, strict=True)
        ],
        dim=1,
    )  # (D + 1, cells of all left-out images)
    loudest = torch.stack([(c + FLOOR).log().amax() for c in cores]).mean()
    return SupportDescription(
        mean, deviation, keys, logs.mean(1), logs.std(1, correction=0).clamp_min(0.05), loudest
    )


def standardised(x: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """(..., C) standardised by the support's mean and deviation, clipped to ``CLIP``."""
    return ((x - mean) / deviation).clamp(-CLIP, CLIP)
