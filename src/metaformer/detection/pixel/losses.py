"""Losses of an anomaly map against a mask, shared by meta-training and fine-tuning."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

FOCUS = 2.0
"""Exponent of the focal loss (Lin et al. 2017)."""
LEAST_SHARE = 0.01
"""The focal loss is divided by the defective share of the cells, and this at least."""
SCORE_SHARE = 0.01
"""An image's score is the mean of this share of the largest values of its map."""


def location_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Focal and dice loss of logits (Q, h, w) against a target in [0, 1] of the same shape."""
    plain = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    miss = (logits.sigmoid() - target).abs()
    focal = (miss**FOCUS * plain).mean() / target.mean().clamp_min(LEAST_SHARE)
    return focal + dice_loss(logits.sigmoid(), target)


def dice_loss(probability: Tensor, target: Tensor) -> Tensor:
    """1 - 2 |A B| / (|A| + |B|) over all queries together, so that clean ones count too."""
    shared = (probability * target).sum()
    return 1 - (2 * shared + 1) / (probability.sum() + target.sum() + 1)


def image_logits(logits: Tensor) -> Tensor:
    """(Q, h, w) -> (Q,): mean of the largest values, as an image is scored."""
    flat = logits.flatten(1)
    return flat.topk(max(1, round(SCORE_SHARE * flat.shape[1])), dim=1).values.mean(1)


def ranking_loss(scores: Tensor, is_defective: Tensor) -> Tensor:
    """Mean over pairs of a defective and a clean query of softplus(clean - defective)."""
    difference = scores[~is_defective][:, None] - scores[is_defective][None]
    return F.softplus(difference).mean() if difference.numel() else scores.sum() * 0
