"""What the transformer is asked for within an episode: pixels, the order of images, and little
where all is good.

Levels are relative to what the support shows of itself, since a product has no level of its own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.detection.scoring.anomaly_map import smooth

SIGMA = 1.2
"""Of the map's blur in cells of stride 4."""
ANOMALOUS, NORMAL = 0.3, 0.001
"""A cell counts as anomalous above, as normal below these shares; between them it is not used."""
LOUD_SHARE = 0.02
"""Share of an image's normal cells that counts as the loudest."""
STEEPNESS = 6.0
"""Of the ranking, for logarithms of ratios."""


class LevelLogit(nn.Module):
    """Logarithm of the map over the support's loudest -> logit, by two learned numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(4.0))
        self.offset = nn.Parameter(torch.tensor(0.0))

    def forward(self, level: Tensor) -> Tensor:
        logit: Tensor = self.slope * level + self.offset
        return logit


def pixel_loss(logits: Tensor, shares: Tensor) -> Tensor:
    """Mean over images of the loss on their anomalous cells, so that a small defect counts as much
    as a large one, and of that on normal cells, the loudest counted again.

    Args:
        logits: (q, h, w).
        shares: (q, h, w) share of each cell that is anomalous.
    """
    positive, negative = [], []
    for logit, share in zip(logits, shares, strict=True):
        is_bad, is_good = share > ANOMALOUS, share < NORMAL
        if not bool(is_bad.any()) and bool((share > 0).any()):
            is_bad = share >= share.max()  # smaller than a cell
        if bool(is_bad.any()) and not bool(is_bad.all()):  # of a whole image there is no order
            positive.append(F.softplus(-logit[is_bad]).mean())
        if bool(is_good.any()):
            losses = F.softplus(logit[is_good])
            loudest = losses.topk(max(1, round(LOUD_SHARE * len(losses)))).values
            negative.append(0.5 * losses.mean() + 0.5 * loudest.mean())
    total = torch.zeros((), device=logits.device)
    for some in (positive, negative):
        if some:
            total = total + torch.stack(some).mean()
    return total


def image_loss(log_scores: Tensor, is_clean: Tensor) -> Tensor:
    """Defective above clean: ``softplus`` of the margins of all pairs; logarithms (q,)."""
    margins = log_scores[~is_clean][:, None] - log_scores[is_clean][None]
    return F.softplus(-STEEPNESS * margins).mean()


def image_scores(maps: Tensor) -> Tensor:
    """(q, h, w) maps -> (q,) image scores: the maximum of each blurred map."""
    return smooth(maps, SIGMA).flatten(1).amax(1)
