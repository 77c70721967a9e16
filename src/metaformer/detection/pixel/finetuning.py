"""The ``long`` mode of the pixel preset: the transformer trained on synthetic defects of the
support images.

Each support image in turn is the query, with a defect drawn into it, and is compared with the
others; a lone image is compared with itself. The autoencoder and the prior stay as they are.
Training stops when defects that it was not trained on are found no better, and keeps the
transformer as it was at its best; only support images are ever seen. Ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from metaformer.data.synthetic.defects import draw_defect
from metaformer.detection.feature.adapted import AdaptedFeature
from metaformer.detection.feature.comparison import fuse
from metaformer.detection.feature.gap_correction import SupportView
from metaformer.detection.feature.memory_bank import describe
from metaformer.detection.pixel.fitting import train_watched
from metaformer.detection.pixel.losses import image_logits, location_loss, ranking_loss
from metaformer.detection.preprocessing import to_tensor
from metaformer.networks.feature_maps import Features

STEPS = 300
LEARNING_RATE = 2e-4
CHECK_EVERY = 25
PATIENCE = 3
"""Checks without a gain before training stops."""
CHECK_QUERIES = 8
RANK_WEIGHT = 0.5
MAP_STRIDE = 4
STEEPNESS = 4.0
"""Logit of a defect, for each 1 that the map's logarithm is above the highest of the support's."""


@dataclass(frozen=True)
class Query:
    """A support image, with or without a defect, as the transformer gets it."""

    features: Features
    distances: dict[str, Tensor]
    core: Tensor
    """(1, h, w) map before the correction."""
    view: SupportView | None


Example = tuple[Query, Query, Tensor]
"""A support image with a defect, the same without, and where the defect is: (1, h, w) in [0, 1] at
``MAP_STRIDE``."""


class Finetuning:
    """Draws examples from a support, and trains the transformer of ``adapted`` on them in place.

    Args:
        support: images (1, 3, H, W) in [0, 1].
        views: what the transformer knows of the support without each image.
    """

    def __init__(
        self,
        adapted: AdaptedFeature,
        support: Sequence[Tensor],
        views: Mapping[int, SupportView],
        *,
        seed: int,
    ) -> None:
        assert adapted.correction is not None
        self.adapted = adapted
        self.correction = adapted.correction
        self.support = support
        self.views = views
        self.rng = np.random.default_rng(seed)

    def train(self) -> list[float]:
        """The losses of the checks, the first untrained."""
        checks = [self.example() for _ in range(CHECK_QUERIES)]

        def check() -> float:
            with torch.no_grad():
                return float(torch.stack([self.loss(drawn) for drawn in checks]).mean())

        return train_watched(
            [*self.correction.network.parameters()],
            lambda: torch.autograd.backward(self.loss(self.example())),
            check,
            steps=STEPS,
            rate=LEARNING_RATE,
            check_every=CHECK_EVERY,
            patience=PATIENCE,
        )

    @torch.no_grad()
    def example(self) -> Example:
        """A random support image with a random defect."""
        index, other = (int(self.rng.integers(len(self.support))) for _ in range(2))
        pixels, donor = to_uint8(self.support[index]), to_uint8(self.support[other])
        defective, mask = draw_defect(pixels, self.rng, donor=donor)
        changed = to_tensor(defective, mask.shape)
        target = torch.from_numpy(mask)[None, None].float()
        return (
            self.query(changed, index),
            self.query(self.support[index], index),
            F.avg_pool2d(target, MAP_STRIDE)[:, 0],
        )

    def query(self, image: Tensor, index: int) -> Query:
        """An image compared with the support but for image ``index``."""
        adapted, config = self.adapted, self.adapted.config
        features = adapted.backbone(image)
        described = describe(features, config.levels, config.cosine_share)
        distances = adapted.distances(described, index if len(self.support) > 1 else None)
        return Query(features, distances, fuse(distances, config), self.views.get(index))

    def loss(self, drawn: Example) -> Tensor:
        """The defect is to be located, and to score above the image without it."""
        defective, good, target = drawn
        loudest = self.correction.view.description.loudest
        logits = []
        for query in (defective, good):
            marked = self.correction(query.core, query.features, query.distances, query.view)
            logits.append(STEEPNESS * (marked.log() - loudest))
        both = torch.cat(logits)
        located = location_loss(both, torch.cat([target, torch.zeros_like(target)]))
        ranked = ranking_loss(image_logits(both), torch.tensor([True, False]))
        return located + RANK_WEIGHT * ranked


def to_uint8(image: Tensor) -> NDArray[np.uint8]:
    """(1, 3, H, W) in [0, 1] -> (H, W, 3)."""
    pixels = image[0].permute(1, 2, 0) * 255
    return np.asarray(pixels.round().clamp(0, 255).numpy(), np.uint8)
