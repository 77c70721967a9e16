"""The inner loop of MAML: a few gradient steps of the autoencoder on a support, themselves
differentiable.

Follows MAML (Finn et al. 2017) with the learned rates and the loss after every step of MAML++
(Antoniou et al. 2019). The paper says that its meta-learner is MAML and its meta-task few-shot
reconstruction; steps and rates are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from metaformer.detection.pixel.inner_rates import LARGEST_GRADIENT, InnerRates, total_norm
from metaformer.networks.autoencoder import Autoencoder

Weights = dict[str, Tensor]
"""Parameter name of the autoencoder -> tensor: the fast weights of one task."""


class Reconstruction(nn.Module):
    """A normalised by a support, as one call, so that the moments come from the fast weights."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, support: Tensor, images: Tensor | None = None) -> Tensor:
        """Rebuild ``images`` (B, 3, H, W), or the support itself, by the support's moments."""
        if images is None:
            return self.autoencoder(support)
        moments = self.autoencoder.support_moments(support)
        return self.autoencoder(images, moments)


class ConstantStep(torch.autograd.Function):
    """``weight - rate * gradient`` where the gradient is a constant.

    As the plain expression, without its four passes over tensors of the size of the autoencoder's
    weights, which took a third of a first-order task's time.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, rate: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return torch.add(weight, gradient, alpha=-rate.item())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return grad, -torch.dot(grad.flatten(), gradient.flatten()), None


def adapt(
    autoencoder: Autoencoder, rates: InnerRates, support: Tensor, *, second_order: bool
) -> list[Weights]:
    """Fit the autoencoder to ``support`` (K, 3, H, W) in [-1, 1] without touching its own
    parameters: its weights before the first step and after each.

    Args:
        second_order: keep the graph of the gradients, so that the outer loss sees how a change of
            the start changes them. Without it they count as constants (first-order MAML).
    """
    weights: Weights = dict(autoencoder.named_parameters())
    history = [weights]
    for step in range(rates.steps):
        loss = F.mse_loss(reconstruct(autoencoder, weights, support), support)
        gradients = torch.autograd.grad(
            loss, [weights[name] for name in rates.names], create_graph=second_order
        )
        shrink = LARGEST_GRADIENT / total_norm(gradients).clamp_min(LARGEST_GRADIENT)
        step_rates = rates.rates[:, step] * shrink  # (names,)
        moved = {}
        for name, rate, gradient in zip(rates.names, step_rates, gradients, strict=True):
            if second_order:
                moved[name] = weights[name] - rate * gradient
            else:
                moved[name] = ConstantStep.apply(weights[name], rate, gradient)
        weights = weights | moved
        history.append(weights)
    return history


def reconstruct(
    autoencoder: Autoencoder, weights: Weights, support: Tensor, images: Tensor | None = None
) -> Tensor:
    """Rebuild ``images``, or the support, by the autoencoder with ``weights``; see
    ``Reconstruction``."""
    named = {f"autoencoder.{name}": tensor for name, tensor in weights.items()}
    arguments = (support,) if images is None else (support, images)
    rebuilt = functional_call(Reconstruction(autoencoder), named, arguments)
    assert isinstance(rebuilt, Tensor)
    return rebuilt


@dataclass(frozen=True)
class TaskOutput:
    """What the autoencoder with fast weights says about a task: encoder stages and
    reconstructions."""

    support_stages: list[Tensor]
    query_stages: list[Tensor]
    query_rebuilt: Tensor


class TaskPass(nn.Module):
    """Support and query through the autoencoder as one call, the query by the support's moments."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, support: Tensor, query: Tensor) -> TaskOutput:
        support_stages, _, moments = self.autoencoder.read(support)
        query_stages, query_rebuilt, _ = self.autoencoder.read(query, moments)
        return TaskOutput(support_stages, query_stages, query_rebuilt)


def run_task(
    autoencoder: Autoencoder, weights: Weights, support: Tensor, query: Tensor
) -> TaskOutput:
    """Support (K, 3, H, W) and query (Q, 3, H, W) through the autoencoder with ``weights``."""
    named = {f"autoencoder.{name}": tensor for name, tensor in weights.items()}
    encoded = functional_call(TaskPass(autoencoder), named, (support, query))
    assert isinstance(encoded, TaskOutput)
    return encoded


def step_weights(steps: int, progress: float) -> list[float]:
    """Weight of the query loss after each inner step (multi-step loss of MAML++).

    Uniform at ``progress`` 0, the last step alone from ``progress`` 1 on. They add up to 1.
    """
    early = (1 - min(1.0, progress)) / steps
    return [early] * (steps - 1) + [1 - early * (steps - 1)]


def adaptation_gain(
    autoencoder: Autoencoder, rates: InnerRates, support: Tensor, query: Tensor
) -> tuple[float, float]:
    """Query loss before the inner steps and after. Changes nothing in ``autoencoder``."""
    fast = adapt(autoencoder, rates, support, second_order=False)
    with torch.no_grad():
        before, after = (
            float(F.mse_loss(reconstruct(autoencoder, weights, support, query), query))
            for weights in (fast[0], fast[-1])
        )
    return before, after
