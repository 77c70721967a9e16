"""Fitting the autoencoder to a support: by the meta-learned steps, MAML's inner loop at test time,
and longer.

Steps are taken on small copies of the images, of the size that the autoencoder was meta-trained on.
All of it is float32: bfloat16 halves the time where a processor has it, and takes ten times as long
where it has not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.detection.pixel.inner_rates import LARGEST_GRADIENT, InnerRates, total_norm
from metaformer.networks.autoencoder import Autoencoder

Item = TypeVar("Item")
LONG_BATCH, LONG_RATE = 2, 3e-4
"""Of the long mode, by Adam."""
LONG_CHECK_EVERY, LONG_PATIENCE = 20, 2
"""Checks without a gain before it stops."""
LONG_REACH = 4
"""Pixels that an image is shifted by at most, so that the autoencoder does not learn it by
heart."""
HELD_OUT_SHARE = 4
"""One in so many support images is checked on and not trained on; a lone image is both."""
CHECKED = 4
"""Images of either kind that a check looks at, at most."""
FIT_IMAGES = 2
"""Support images that a step of the autoencoder is taken on. 4 and 16 are no better
(``docs/decisions/08-pixel-preset.md``)."""


def fit(
    autoencoder: Autoencoder,
    rates: InnerRates,
    images: Sequence[Tensor],
    generator: torch.Generator,
) -> Autoencoder:
    """A copy that has taken the learned steps on the support.

    Args:
        images: small copies (1, 3, S, S) in [-1, 1].
    """
    fitted = copy.deepcopy(autoencoder)
    parameters = dict(fitted.named_parameters())
    adapted = [parameters[name].requires_grad_(True) for name in rates.names]
    chosen = torch.cat(choose(images, FIT_IMAGES, generator))
    for step in range(rates.steps):
        with torch.enable_grad():
            loss = F.mse_loss(fitted(chosen), chosen)
        gradients = torch.autograd.grad(loss, adapted)
        norm = float(total_norm(gradients))
        shrink = LARGEST_GRADIENT / max(norm, LARGEST_GRADIENT)
        with torch.no_grad():
            for parameter, rate, gradient in zip(
                adapted, rates.rates[:, step].tolist(), gradients, strict=True
            ):
                parameter.sub_(gradient, alpha=rate * shrink)
    return fitted.requires_grad_(False)


def fit_long(
    autoencoder: Autoencoder, images: Sequence[Tensor], steps: int, generator: torch.Generator
) -> list[float]:
    """Go on fitting the autoencoder, in place, and keep it as it was at its best on support images
    left out.

    Args:
        images: small copies (1, 3, S, S) in [-1, 1].

    Returns:
        The losses of the checks, the first before any step.
    """
    order = torch.randperm(len(images), generator=generator).tolist()
    held_out = max(1, len(images) // HELD_OUT_SHARE)
    checked = [images[i] for i in order[:held_out]]
    trained = [images[i] for i in order[held_out:]] or checked

    def backward() -> None:
        drawn = choose(trained, LONG_BATCH, generator)
        batch = torch.cat([shifted(image, generator) for image in drawn])
        torch.autograd.backward(F.mse_loss(autoencoder(batch), batch))

    return train_watched(
        list(autoencoder.parameters()),
        backward,
        lambda: check_loss(autoencoder, trained, checked),
        steps=steps,
        rate=LONG_RATE,
        check_every=LONG_CHECK_EVERY,
        patience=LONG_PATIENCE,
    )


def train_watched(
    parameters: Sequence[nn.Parameter],
    backward: Callable[[], None],
    check: Callable[[], float],
    *,
    steps: int,
    rate: float,
    check_every: int,
    patience: int,
) -> list[float]:
    """Adam steps on what ``backward`` leaves in the gradients; ends at the best parameters.

    Stops early after ``patience`` checks in a row without a gain. The parameters are frozen then.

    Returns:
        The losses of the checks, the first before any step.
    """
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimiser = torch.optim.Adam(parameters, lr=rate)
    losses = [check()]
    best, best_values, since = losses[0], copy.deepcopy(parameters), 0
    for step in range(steps):
        optimiser.zero_grad(set_to_none=True)
        backward()
        optimiser.step()
        if (step + 1) % check_every:
            continue
        losses.append(check())
        since = since + 1 if losses[-1] >= best else 0
        if losses[-1] < best:
            best, best_values = losses[-1], copy.deepcopy(parameters)
        if since == patience:
            break
    with torch.no_grad():
        for parameter, value in zip(parameters, best_values, strict=True):
            parameter.copy_(value)
            parameter.requires_grad_(False)
    return losses


@torch.no_grad()
def check_loss(
    autoencoder: Autoencoder, trained: Sequence[Tensor], checked: Sequence[Tensor]
) -> float:
    """Mean squared error of rebuilding ``checked``, by the moments of what is trained on."""
    moments = autoencoder.support_moments(torch.cat([*trained[:CHECKED]]))
    images = torch.cat([*checked[:CHECKED]])
    return float(F.mse_loss(autoencoder(images, moments), images))


def shifted(image: Tensor, generator: torch.Generator) -> Tensor:
    """(1, 3, H, W) moved by up to ``LONG_REACH`` pixels each way, its edge repeated."""
    down, right = torch.randint(2 * LONG_REACH + 1, (2,), generator=generator).tolist()
    height, width = image.shape[2:]
    wide = F.pad(image, (LONG_REACH,) * 4, mode="replicate")
    return wide[:, :, down : down + height, right : right + width]


def choose(images: Sequence[Item], most: int, generator: torch.Generator) -> list[Item]:
    """At most ``most`` of the images, drawn at random, in their order."""
    drawn = torch.randperm(len(images), generator=generator)[:most].sort().values
    return [images[i] for i in drawn.tolist()]
