"""PatchCore (Roth et al. 2022) on EfficientNet-Lite0: distance to the nearest normal patch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.accuracy.baselines.features import patch_features
from benchmarks.accuracy.baselines.imaging import smooth_map, to_batch, to_image_size


@dataclass(frozen=True)
class PatchCore:
    """Published settings but for the backbone and for keeping every patch of a small support."""

    resolution: int = 224
    strides: tuple[int, ...] = (8, 16)
    """The backbone's second and third level, as published."""
    pooling: int = 3
    coreset: float = 0.1
    """Share of the patches kept, by greedy farthest-point choice..."""
    coreset_above: int = 10_000
    """...when there are more than this many; a few images are cheaper kept whole."""
    projection: int = 64
    """Dimensions of the random projection in which the coreset is chosen."""
    neighbours: int = 9
    """Normal patches around the nearest one that reweight the image score (equation 7); 0 for
    the plain distance of the worst patch, as the authors' own code has it."""
    standardise: bool = False
    """Divide each channel by its deviation over the support. Not in the paper."""
    trained: bool = True
    """With the backbone's ImageNet weights; otherwise with random ones."""
    name: str = "patchcore"

    @property
    def settings(self) -> dict[str, Any]:
        settings = asdict(self) | {"strides": list(self.strides), "backbone": "efficientnet_lite0"}
        if self.trained:
            del settings["trained"]  # as in results from before there was a choice
        return settings

    def fit(self, support: Sequence[NDArray[np.uint8]], seed: int) -> FittedPatchCore:
        # One image at a time: a support of hundreds fits in memory as features, not as a batch.
        patches = torch.cat([self._patches(image)[0] for image in support])  # (K * h * w, C)
        scale = patches.std(dim=0) + 1e-6 if self.standardise else torch.ones(patches.shape[1])
        patches /= scale
        if len(patches) > self.coreset_above:
            generator = torch.Generator().manual_seed(seed)
            size = int(self.coreset * len(patches))
            patches = patches[greedy_coreset(patches, size, self.projection, generator)]
        return FittedPatchCore(self, patches, scale)

    def _patches(self, image: NDArray[np.uint8]) -> tuple[Tensor, tuple[int, int]]:
        """One image -> (h * w, C) and (h, w)."""
        batch = to_batch([image], self.resolution)
        features = patch_features(
            batch, self.strides, self.pooling, trained=self.trained
        )  # (1, C, h, w)
        height, width = features.shape[2:]
        return features[0].flatten(1).T.contiguous(), (height, width)


@dataclass(frozen=True)
class FittedPatchCore:
    method: PatchCore
    memory: Tensor  # (M, C)
    scale: Tensor  # (C,)

    def score(self, images: Sequence[NDArray[np.uint8]]) -> list[tuple[float, NDArray[np.float32]]]:
        results = []
        for image in images:
            patches, grid = self.method._patches(image)
            patches = patches / self.scale  # (h * w, C)
            distance, nearest = torch.cdist(patches, self.memory).min(dim=1)
            worst = int(distance.argmax())
            score = float(distance[worst])
            if self.method.neighbours:
                score *= self._weight(patches[worst], int(nearest[worst]))
            anomaly_map = smooth_map(distance.reshape(grid), self.method.resolution)
            results.append((score, to_image_size(anomaly_map, image)))
        return results

    def _weight(self, patch: Tensor, nearest: int) -> float:
        """Equation 7: below 1 the more, the likelier the nearest normal patch is itself rare."""
        count = min(self.method.neighbours, len(self.memory))
        around = torch.cdist(self.memory[nearest][None], self.memory)[0].topk(count, largest=False)
        distances = torch.linalg.vector_norm(self.memory[around.indices] - patch, dim=1)
        to_nearest = torch.linalg.vector_norm(self.memory[nearest] - patch)
        # exp(d*) / sum exp(d), with the largest exponent taken out against overflow.
        peak = distances.max()
        return float(1 - (to_nearest - peak).exp() / (distances - peak).exp().sum())


def greedy_coreset(
    patches: Tensor, size: int, dimensions: int, generator: torch.Generator
) -> Tensor:
    """Indices (size,) of patches (N, C), each the farthest from those before it.

    Distances are measured after a random projection to ``dimensions``, as published.
    """
    directions = torch.randn(patches.shape[1], dimensions, generator=generator)
    points = patches @ directions / dimensions**0.5  # (N, dimensions)
    square_norms = points.square().sum(dim=1)
    chosen = torch.empty(size, dtype=torch.long)
    chosen[0] = torch.randint(len(points), (1,), generator=generator)
    gap = torch.full((len(points),), float("inf"))  # squared distance to the nearest chosen one
    for i in range(1, size):
        last = points[chosen[i - 1]]
        to_last = square_norms - 2 * (points @ last) + last.square().sum()
        gap = torch.minimum(gap, to_last)
        chosen[i] = gap.argmax()
    return chosen
