"""The outer loss of an episode: the autoencoder rebuilds what is normal, the transformer finds what
is not. Ours.

No human label is used: the defects are synthetic, and each defective query has a clean twin.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from metaformer.detection.pixel.encoder_output import FINE, EncoderOutput, to_encoder_output
from metaformer.detection.pixel.inner_rates import InnerRates
from metaformer.detection.pixel.losses import image_logits, location_loss, ranking_loss
from metaformer.detection.pixel.support_memory import build_memory
from metaformer.detection.pixel.universal_model import Output, UniversalModel, respond
from metaformer.networks.instance_prior import InstancePrior
from metaformer.training.universal.maml import Weights, adapt, reconstruct, run_task


@dataclass(frozen=True)
class LossWeights:
    """Weights of the parts of the loss (ours); 0 leaves a part out."""

    rebuild: float = 1.0
    """The autoencoder's reconstruction of the good twin, mean squared error in [-1, 1]."""
    refine: float = 0.5
    """The transformer's refined reconstruction of the good twin, mean absolute error."""
    locate: float = 1.0
    """Focal and dice loss of the map against the defects' mask."""
    first: float = 0.5
    """The same for the map before the transformer, which shapes the autoencoder's features."""
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
    model: UniversalModel,
    prior: InstancePrior,
    rates: InnerRates,
    task: Task,
    *,
    loss_weights: LossWeights,
    step_weights: list[float],
    second_order: bool,
    bfloat16: bool,
    only_transformer: bool = False,
) -> dict[str, Tensor]:
    """Parts of the outer loss of one task, each weighted; their sum is the loss.

    Args:
        step_weights: of the reconstruction after each inner step (multi-step loss of MAML++);
            the transformer reads the state after the last one.
        bfloat16: the autoencoder's convolutions in bfloat16 autocast.
        only_transformer: no gradient reaches the autoencoder and the rates; a third of the time is
            saved.
    """
    # An image that is anomalous all over holds nothing of its good twin that could be rebuilt.
    twinned = task.masks.flatten(1).amin(1) == 0  # (Q,)
    good = task.clean_query[twinned]
    with torch.autocast(task.support.device.type, torch.bfloat16, enabled=bfloat16):
        history = adapt(model.autoencoder, rates, task.support, second_order=second_order).weights
        early = [
            weight
            * F.mse_loss(
                reconstruct(model.autoencoder, fast, task.support, task.query[twinned]).float(),
                good,
            )
            for weight, fast in zip(step_weights[:-1], history[1:-1], strict=True)
            if weight and not only_transformer
        ]
    with torch.set_grad_enabled(not only_transformer):
        support, query = encode_episode(model, prior, history[-1], task, bfloat16=bfloat16)
    assert query.rebuilt is not None
    rebuild = step_weights[-1] * F.mse_loss(query.rebuilt[twinned], good)
    losses = {"rebuild": loss_weights.rebuild * (rebuild + sum(early))}
    if loss_weights != LossWeights(loss_weights.rebuild, 0, 0, 0, 0):
        output = model(query, build_memory([support]))
        assert output.refined is not None
        refined = F.l1_loss(output.refined[twinned], good)
        losses["refine"] = loss_weights.refine * refined
        losses |= defect_losses(model, output, task, loss_weights)
    return losses


def encode_episode(
    model: UniversalModel, prior: InstancePrior, weights: Weights, task: Task, *, bfloat16: bool
) -> tuple[EncoderOutput, EncoderOutput]:
    """Support and queries of a task, as the autoencoder with fast ``weights`` and the prior say of
    them."""
    with torch.autocast(task.support.device.type, torch.bfloat16, enabled=bfloat16):
        passes = run_task(model.autoencoder, weights, task.support, task.query)
        responses = [respond(prior, images).float() for images in (task.support, task.query)]
    return (
        to_encoder_output(
            task.support, passes.support_stages, passes.support_rebuilt, responses[0]
        ),
        to_encoder_output(task.query, passes.query_stages, passes.query_rebuilt, responses[1]),
    )


def defect_losses(
    model: UniversalModel, output: Output, task: Task, loss_weights: LossWeights
) -> dict[str, Tensor]:
    """Losses of the maps before and after the transformer, weighted."""
    target = F.avg_pool2d(task.masks[:, None], FINE)[:, 0]  # (Q, H / 4, W / 4) in [0, 1]
    logits = model.logits(output.anomaly)
    is_defective = task.masks.flatten(1).amax(1) > 0  # (Q,)
    return {
        "locate": loss_weights.locate * location_loss(logits, target),
        "first": loss_weights.first * location_loss(model.logits(output.first), target),
        "rank": loss_weights.rank * ranking_loss(image_logits(logits), is_defective),
    }
