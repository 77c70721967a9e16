"""The outer loss of an episode: the autoencoder rebuilds what is normal, and its features are far
from the support's where something is not. Ours.

No human label is used: the defects are synthetic, and each defective query has a clean twin.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from metaformer.detection.pixel.inner_rates import InnerRates
from metaformer.detection.pixel.losses import image_logits, location_loss, ranking_loss
from metaformer.networks.autoencoder import Autoencoder
from metaformer.training.universal.distance_map import STRIDE, DefectLogit, distance_map
from metaformer.training.universal.maml import adapt, reconstruct, run_task


@dataclass(frozen=True)
class LossWeights:
    """Weights of the parts of the loss (ours); 0 leaves a part out."""

    rebuild: float = 1.0
    """The autoencoder's reconstruction of the good twin, mean squared error in [-1, 1]."""
    locate: float = 0.5
    """Focal and dice loss of the distance map against the defects' mask."""
    rank: float = 0.5
    """Defective queries must score above clean ones."""


@dataclass(frozen=True)
class Task:
    """One episode as tensors; images in [-1, 1]."""

    support: Tensor
    """(K, 3, H, W)."""
    query: Tensor
    """(Q, 3, H, W)."""
    clean_query: Tensor
    """(Q, 3, H, W): the queries without their defects."""
    masks: Tensor
    """(Q, H, W) in {0, 1}."""


def episode_loss(
    autoencoder: Autoencoder,
    to_logit: DefectLogit,
    rates: InnerRates,
    task: Task,
    *,
    loss_weights: LossWeights,
    step_weights: list[float],
    second_order: bool,
    bfloat16: bool,
) -> dict[str, Tensor]:
    """Parts of the outer loss of one task, each weighted; their sum is the loss.

    Args:
        step_weights: of the reconstruction after each inner step (multi-step loss of MAML++);
            features are compared after the last one.
        bfloat16: the autoencoder's convolutions in bfloat16 autocast.
    """
    # An image that is anomalous all over holds nothing of its good twin that could be rebuilt.
    twinned = task.masks.flatten(1).amin(1) == 0  # (Q,)
    good = task.clean_query[twinned]
    with torch.autocast(task.support.device.type, torch.bfloat16, enabled=bfloat16):
        history = adapt(autoencoder, rates, task.support, second_order=second_order)
        early = [
            weight
            * F.mse_loss(
                reconstruct(autoencoder, fast, task.support, task.query[twinned]).float(), good
            )
            for weight, fast in zip(step_weights[:-1], history[1:-1], strict=True)
            if weight
        ]
        passes = run_task(autoencoder, history[-1], task.support, task.query)
    rebuilt = passes.query_rebuilt.float()[twinned]
    rebuild = step_weights[-1] * F.mse_loss(rebuilt, good)
    losses = {"rebuild": loss_weights.rebuild * (rebuild + sum(early))}
    if loss_weights.locate or loss_weights.rank:
        logits = to_logit(distance_map(passes.query_stages, passes.support_stages))
        target = F.avg_pool2d(task.masks[:, None], STRIDE)[:, 0]  # (Q, H / 4, W / 4) in [0, 1]
        is_defective = task.masks.flatten(1).amax(1) > 0  # (Q,)
        losses["locate"] = loss_weights.locate * location_loss(logits, target)
        losses["rank"] = loss_weights.rank * ranking_loss(image_logits(logits), is_defective)
    return losses
