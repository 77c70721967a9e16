"""PaDiM (Defard et al. 2021) on EfficientNet-Lite0: a Gaussian at every position."""

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
class PaDiM:
    """Published settings but for the backbone and its levels."""

    resolution: int = 224
    strides: tuple[int, ...] = (8, 16)
    """The paper has a stride of 4 too. On this backbone that costs four times the positions and
    is worse with one image (MVTec bottle: image AUROC 0.94 against 1.00; 60 images, one seed)."""
    dimensions: int = 100
    """Feature channels kept, drawn at random once a fit."""
    regularisation: float = 0.01
    """Added to the diagonal of each covariance. With one image it is all there is."""
    name: str = "padim"

    @property
    def settings(self) -> dict[str, Any]:
        return asdict(self) | {"strides": list(self.strides), "backbone": "efficientnet_lite0"}

    def fit(self, support: Sequence[NDArray[np.uint8]], seed: int) -> FittedPaDiM:
        first = self._features(support[0])
        generator = torch.Generator().manual_seed(seed)
        channels = torch.randperm(first.shape[2], generator=generator)[: self.dimensions]
        features = torch.stack(
            [self._features(image)[:, :, channels] for image in support]
        )  # (K, h, w, D)
        count, height, width, dimensions = features.shape
        mean = features.mean(dim=0)  # (h, w, D)
        centred = (features - mean).permute(1, 2, 3, 0).reshape(-1, dimensions, count)
        covariance = centred @ centred.mT / max(count - 1, 1)  # (h * w, D, D)
        covariance += self.regularisation * torch.eye(dimensions)
        # Of A = L L^T, L^-1 turns Mahalanobis distance into Euclidean.
        factor = torch.linalg.cholesky(covariance)
        return FittedPaDiM(self, channels, mean.reshape(-1, dimensions), factor, (height, width))

    def _features(self, image: NDArray[np.uint8]) -> Tensor:
        """One image -> (h, w, C)."""
        features = patch_features(to_batch([image], self.resolution), self.strides, pooling=1)
        return features[0].permute(1, 2, 0)


@dataclass(frozen=True)
class FittedPaDiM:
    method: PaDiM
    channels: Tensor  # (D,)
    mean: Tensor  # (h * w, D)
    factor: Tensor  # (h * w, D, D), lower triangular
    grid: tuple[int, int]

    def score(self, images: Sequence[NDArray[np.uint8]]) -> list[tuple[float, NDArray[np.float32]]]:
        results = []
        for image in images:
            features = self.method._features(image)[:, :, self.channels].flatten(0, 1)
            gap = (features - self.mean)[:, :, None]  # (h * w, D, 1)
            whitened = torch.linalg.solve_triangular(self.factor, gap, upper=False)
            distance = torch.linalg.vector_norm(whitened[:, :, 0], dim=1)  # (h * w,)
            anomaly_map = smooth_map(distance.reshape(self.grid), self.method.resolution)
            results.append((float(anomaly_map.max()), to_image_size(anomaly_map, image)))
        return results
