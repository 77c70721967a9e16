"""The inner loop of MAML: a few gradient steps of A on a support, themselves differentiable.

Follows MAML (Finn et al. 2017) with the learned rates and the loss after every step of MAML++
(Antoniou et al. 2019). The paper says that its meta-learner is MAML and its meta-task few-shot
reconstruction; steps and rates are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metaformer.autoencoder import Autoencoder

Weights = dict[str, Tensor]
"""Parameter name of A -> tensor: the fast weights of one task."""


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


class InnerRates(nn.Module):
    """Learned inner rates, one per parameter tensor and step (LSLR of MAML++)."""

    def __init__(self, autoencoder: Autoencoder, steps: int, inner_lr: float) -> None:
        super().__init__()
        if steps < 1:
            raise ValueError(f"steps: found {steps}; accepted are 1 and more.")
        self.names = tuple(name for name, _ in adapted_parameters(autoencoder))
        self.rates = nn.Parameter(torch.full((len(self.names), steps), inner_lr))

    @property
    def steps(self) -> int:
        return self.rates.shape[1]


@dataclass(frozen=True)
class Adaptation:
    """What the inner loop went through."""

    weights: list[Weights]
    """Fast weights before the first step and after each: steps + 1 of them."""
    support_losses: list[Tensor]
    """Loss on the support before each step."""


def adapted_parameters(autoencoder: Autoencoder) -> list[tuple[str, nn.Parameter]]:
    """The parameters that the inner loop moves: convolutions, not the norms' scale and shift,
    which stay meta-parameters as in MAML++."""
    return [
        (name, parameter)
        for name, parameter in autoencoder.named_parameters()
        if "_norms." not in name
    ]


def adapt(
    autoencoder: Autoencoder, rates: InnerRates, support: Tensor, *, second_order: bool
) -> Adaptation:
    """Fit A to ``support`` (K, 3, H, W) in [-1, 1] without touching its own parameters.

    Args:
        second_order: keep the graph of the gradients, so that the outer loss sees how a change of
            the start changes them. Without it they count as constants (first-order MAML).
    """
    weights: Weights = dict(autoencoder.named_parameters())
    history, losses = [weights], []
    for step in range(rates.steps):
        loss = F.mse_loss(reconstruct(autoencoder, weights, support), support)
        gradients = torch.autograd.grad(
            loss, [weights[name] for name in rates.names], create_graph=second_order
        )
        moved = {
            name: weights[name] - rates.rates[i, step] * gradient
            for i, (name, gradient) in enumerate(zip(rates.names, gradients, strict=True))
        }
        weights = weights | moved
        history.append(weights)
        losses.append(loss)
    return Adaptation(history, losses)


def reconstruct(
    autoencoder: Autoencoder, weights: Weights, support: Tensor, images: Tensor | None = None
) -> Tensor:
    """Rebuild ``images``, or the support, by A with ``weights``; see ``Reconstruction``."""
    named = {f"autoencoder.{name}": tensor for name, tensor in weights.items()}
    arguments = (support,) if images is None else (support, images)
    rebuilt = functional_call(Reconstruction(autoencoder), named, arguments)
    assert isinstance(rebuilt, Tensor)
    return rebuilt


def step_weights(steps: int, progress: float) -> list[float]:
    """Weight of the query loss after each inner step (multi-step loss of MAML++).

    Uniform at ``progress`` 0; from ``progress`` 1 on, 0.03 / steps on all but the last, which has
    the rest. They add up to 1.
    """
    early = (1 - min(1.0, progress) * 0.97) / steps
    return [early] * (steps - 1) + [1 - early * (steps - 1)]


def outer_loss(
    autoencoder: Autoencoder,
    rates: InnerRates,
    support: Tensor,
    query: Tensor,
    *,
    second_order: bool,
    weights: list[float],
) -> Tensor:
    """Query loss of one task after its inner steps, weighted by ``weights`` (one per step).

    Steps of weight 0 are not evaluated. ``query`` is (Q, 3, H, W) in [-1, 1].
    """
    adaptation = adapt(autoencoder, rates, support, second_order=second_order)
    losses = [
        weight * F.mse_loss(reconstruct(autoencoder, fast, support, query), query)
        for weight, fast in zip(weights, adaptation.weights[1:], strict=True)
        if weight
    ]
    return torch.stack(losses).sum()


def adaptation_gain(
    autoencoder: Autoencoder, rates: InnerRates, support: Tensor, query: Tensor
) -> tuple[float, float]:
    """Query loss before the inner steps and after. Changes nothing in ``autoencoder``."""
    fast = adapt(autoencoder, rates, support, second_order=False).weights
    with torch.no_grad():
        before, after = (
            float(F.mse_loss(reconstruct(autoencoder, weights, support, query), query))
            for weights in (fast[0], fast[-1])
        )
    return before, after
