"""What is normal place by place, where a product has many normal images.

The nearest remembered token says whether something was seen anywhere. With many images there is
also enough to say how tokens vary at each place of the image: a Gaussian for every cell of a
fixed grid, as PaDiM has it (Defard et al. 2021), here of the pooled tokens of the learned metric.
The more images, the larger its share (``docs/decisions/06-position.md``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

GRID = (16, 16)
"""Cells that an image has, whatever its shape."""
RIDGE = 0.01
"""Added to the variances, as a share of the mean variance of all places: with fewer images than
channels the covariances could not be inverted without. Its size hardly matters (``06``)."""
MARKING = 0.25
"""In the map that marks pixels the share is so much of that in the score: outlines come from the
nearest tokens (``06``, ``05``)."""


@dataclass(frozen=True)
class Places:
    """Mean and covariance of tokens at each cell of the grid."""

    count: int
    """Images they are of. One alone has no variance: it counts once merged with others."""
    mean: Tensor
    """(P, C)."""
    covariances: Tensor
    """(P, C (C + 1) / 2): of each place the lower triangle, row by row."""

    @classmethod
    def of(cls, images: Sequence[Tensor]) -> Places:
        """Of the tokens (C, h, w) of images, with grids of any sizes."""
        tokens = torch.stack([on_places(image) for image in images], dim=1)  # (P, N, C)
        mean = tokens.mean(1)
        offsets = tokens - mean[:, None]
        covariance = offsets.transpose(1, 2) @ offsets / max(1, len(images) - 1)  # (P, C, C)
        rows, columns = torch.tril_indices(*covariance.shape[1:])
        return cls(len(images), mean, covariance[:, rows, columns])

    @cached_property
    def whitening(self) -> Tensor:
        """(P, C, C): offsets from the mean, as rows, times this have unit covariance."""
        channels = self.mean.shape[1]
        rows, columns = torch.tril_indices(channels, channels)
        covariance = self.mean.new_zeros(len(self.mean), channels, channels)
        covariance[:, rows, columns] = self.covariances
        covariance[:, columns, rows] = self.covariances
        typical = covariance.diagonal(dim1=1, dim2=2).mean()
        identity = torch.eye(channels, dtype=covariance.dtype)
        # Two images alike to the last bit have no variance at all.
        ridge = (RIDGE * typical).clamp_min(torch.finfo(covariance.dtype).eps)
        root = torch.linalg.cholesky(covariance + ridge * identity)
        inverse = torch.linalg.solve_triangular(root, identity.expand_as(root), upper=False)
        return inverse.transpose(1, 2).contiguous()

    def distance(self, tokens: Tensor) -> Tensor:
        """Tokens (C, h, w) of an image -> (GRID) Mahalanobis distance at each place, over the root
        of the channels: about 1 where normal images lie."""
        offsets = (on_places(tokens) - self.mean)[:, None]  # (P, 1, C)
        white = (offsets @ self.whitening)[:, 0]
        return white.square().mean(1).sqrt().reshape(GRID)

    def shares(self, maps: int) -> tuple[float, ...]:
        """Exponents of the distance at a place in the map that images are scored by, and in others;
        the rest of 1 is that of the distance to the nearest token. With as many images as channels,
        about when covariances begin to be known, both count as much."""
        share = self.count / (self.count + self.mean.shape[1])
        return (share, *[MARKING * share] * (maps - 1))

    def merged(self, other: Places) -> Places:
        """Of the images of both."""
        count = self.count + other.count
        apart = other.mean - self.mean
        mean = self.mean + apart * (other.count / count)
        rows, columns = torch.tril_indices(apart.shape[1], apart.shape[1])
        between = apart[:, rows] * apart[:, columns] * (self.count * other.count / count)
        within = self.covariances * (self.count - 1) + other.covariances * (other.count - 1)
        return Places(count, mean, (within + between) / (count - 1))


def on_places(tokens: Tensor) -> Tensor:
    """(C, h, w) -> (P, C)."""
    return F.interpolate(tokens[None], GRID, mode="bilinear")[0].flatten(1).T
