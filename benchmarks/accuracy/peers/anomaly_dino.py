"""AnomalyDINO's matching (Damm et al. 2025) without DINO: the same steps on our backbone.

Published: tokens of DINOv2 at a shorter side of 448 pixels; supports turned in eight steps of 45
degrees; cosine distance to the nearest token; image score the mean of the highest hundredth of
the distances; map enlarged bilinearly and blurred with sigma 4. Only the tokens are others here:
DINOv2's weights cannot be had offline. Its foreground mask is left out: it is a threshold on
DINOv2's own first component, and the authors switch it on and off by product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.accuracy.baselines.features import patch_features
from benchmarks.accuracy.baselines.imaging import blur, to_image_size
from metaformer.io.images import resize_image

Image = NDArray[np.uint8]
QUERY_CHUNK = 256
"""Query tokens compared at once; a turned support has tens of thousands of tokens."""


@dataclass(frozen=True)
class AnomalyDino:
    """Published settings but for the backbone."""

    resolution: int = 448
    """Pixels of the shorter side; the aspect is kept."""
    strides: tuple[int, ...] = (16,)
    """One level, as published: of 14 pixels there, of 16 here."""
    rotations: int = 8
    """Turned copies of each support image, in equal steps; 1 for the image alone."""
    score_share: float = 0.01
    sigma: float = 4.0
    """Gaussian blur of the map, in pixels of the image."""
    name: str = "anomaly-dino"

    @property
    def settings(self) -> dict[str, Any]:
        return asdict(self) | {"strides": list(self.strides), "backbone": "efficientnet_lite0"}

    def fit(self, support: Sequence[Image], seed: int) -> FittedAnomalyDino:
        views = (turned for image in support for turned in self._turned(image))
        return FittedAnomalyDino(self, torch.cat([self._tokens(view)[0] for view in views]))

    def _turned(self, image: Image) -> list[Image]:
        height, width = image.shape[:2]
        angles = [360 / self.rotations * i for i in range(self.rotations)]
        matrices = [cv2.getRotationMatrix2D((width / 2, height / 2), a, 1.0) for a in angles]
        turned = [
            cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101)
            for matrix in matrices
        ]
        return [np.asarray(view, dtype=np.uint8) for view in turned]

    def _tokens(self, image: Image) -> tuple[Tensor, tuple[int, int]]:
        """One image -> (h * w, C) of unit length, and (h, w)."""
        height, width = image.shape[:2]
        scale = self.resolution / min(height, width)
        multiple = max(self.strides)
        sides = [max(1, round(side * scale / multiple)) * multiple for side in (height, width)]
        resized = resize_image(image, (sides[0], sides[1]))
        batch = torch.from_numpy(resized).permute(2, 0, 1)[None].float() / 255
        features = patch_features(batch, self.strides, pooling=1)  # (1, C, h, w)
        tokens = F.normalize(features[0].flatten(1).T, dim=1)
        return tokens.contiguous(), (features.shape[2], features.shape[3])


@dataclass(frozen=True)
class FittedAnomalyDino:
    method: AnomalyDino
    memory: Tensor  # (M, C), unit length

    def score(self, images: Sequence[Image]) -> list[tuple[float, NDArray[np.float32]]]:
        results = []
        for image in images:
            tokens, grid = self.method._tokens(image)
            chunks = torch.split(tokens, QUERY_CHUNK)
            nearest = torch.cat([(chunk @ self.memory.T).amax(dim=1) for chunk in chunks])
            distance = (1 - nearest).clamp_min(0)  # (h * w,)
            count = max(1, int(self.method.score_share * len(distance)))
            score = float(distance.topk(count).values.mean())
            anomaly_map = to_image_size(distance.reshape(grid).numpy(), image)
            results.append((score, blur(anomaly_map, self.method.sigma)))
        return results
