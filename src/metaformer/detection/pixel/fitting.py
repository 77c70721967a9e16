"""Fitting the autoencoder to a support: by the meta-learned steps, MAML's inner loop at test time,
and longer.

The gradient is taken over batches of images, each by its own moments, rather than over the whole
support at once, which would take a gigabyte for every four images. All of it is float32: bfloat16
halves the time where a processor has it, and takes ten times as long where it has not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.detection.pixel.encoder_output import COMPARED_STAGES
from metaformer.detection.pixel.inner_rates import LARGEST_GRADIENT, InnerRates, total_norm
from metaformer.detection.pixel.universal_model import UniversalModel
from metaformer.networks.autoencoder import SIZE_MULTIPLE, Autoencoder, Moments

Item = TypeVar("Item")
LONG_BATCH, LONG_RATE = 2, 3e-4
"""Of the long mode, by Adam."""
LONG_CHECK_EVERY, LONG_PATIENCE = 20, 2
"""Checks without a gain before it stops."""
LONG_REACH = 8
"""Pixels that an image is shifted by at most, so that the autoencoder does not learn it by
heart."""
HELD_OUT_SHARE = 4
"""One in so many support images is checked on and not trained on; a lone image is both."""
BATCH = 4
"""Support images per gradient; bounds memory at 256 pixels to about 1 GB."""
FIT_IMAGES = 2
"""Support images that a step of the autoencoder is taken on. 4 and 16 are no better
(``docs/decisions/08-pixel-preset.md``)."""
MOMENT_IMAGES = 16
"""Support images that the moments are taken over; 16 hold a million pixels a channel."""


def fit(
    universal: UniversalModel,
    rates: InnerRates,
    images: Sequence[Tensor],
    generator: torch.Generator,
) -> UniversalModel:
    """A copy whose autoencoder has taken the learned steps on the support.

    Args:
        images: (1, 3, H, W) each, in [-1, 1].
    """
    fitted = copy.deepcopy(universal)
    autoencoder = fitted.autoencoder
    parameters = dict(autoencoder.named_parameters())
    adapted = [parameters[name] for name in rates.names]
    chosen = [squeezed(image) for image in choose(images, FIT_IMAGES, generator)]
    for step in range(rates.steps):
        gradients = support_gradients(autoencoder, adapted, chosen)
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
        images: (1, 3, H, W) each, in [-1, 1].

    Returns:
        The losses of the checks, the first before any step.
    """
    order = torch.randperm(len(images), generator=generator).tolist()
    held_out = max(1, len(images) // HELD_OUT_SHARE)
    checked = [images[i] for i in order[:held_out]]
    trained = [images[i] for i in order[held_out:]] or checked

    def backward() -> None:
        drawn = [shifted(image, generator) for image in choose(trained, LONG_BATCH, generator)]
        for batch in batches_of_one_size(drawn):
            loss = F.mse_loss(autoencoder(batch), batch) * (len(batch) / len(drawn))
            torch.autograd.backward(loss)

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
    batches = [torch.cat(same) for same in by_size(trained[:BATCH])]
    moments = autoencoder.support_moments(*batches)
    errors = [F.mse_loss(autoencoder(image, moments), image) for image in checked[:BATCH]]
    return float(torch.stack(errors).mean())


def shifted(image: Tensor, generator: torch.Generator) -> Tensor:
    """(1, 3, H, W) moved by up to ``LONG_REACH`` pixels each way, its edge repeated."""
    down, right = torch.randint(2 * LONG_REACH + 1, (2,), generator=generator).tolist()
    height, width = image.shape[2:]
    wide = F.pad(image, (LONG_REACH,) * 4, mode="replicate")
    return wide[:, :, down : down + height, right : right + width]


def support_gradients(
    autoencoder: Autoencoder, parameters: Sequence[Tensor], images: Sequence[Tensor]
) -> list[Tensor]:
    """Mean gradient of the reconstruction loss; each batch, of one size, by its own moments."""
    for parameter in parameters:
        parameter.requires_grad_(True)
    total = [torch.zeros_like(parameter) for parameter in parameters]
    for batch in batches_of_one_size(images):
        loss = F.mse_loss(autoencoder(batch), batch) * (len(batch) / len(images))
        for sum_, gradient in zip(total, torch.autograd.grad(loss, parameters), strict=True):
            sum_.add_(gradient)
    return total


def squeezed(image: Tensor) -> Tensor:
    """(1, 3, H, W) brought to the nearest sides that the autoencoder can rebuild, each at least one
    multiple.

    Steps are taken on it: padding is a third of many an image, and a third of the time.
    """
    sides = [max(1, round(side / SIZE_MULTIPLE)) * SIZE_MULTIPLE for side in image.shape[2:]]
    if sides == list(image.shape[2:]):
        return image
    resized = F.interpolate(image, sides, mode="bilinear", antialias=True)
    return resized.contiguous(memory_format=torch.channels_last)


def batches_of_one_size(images: Sequence[Tensor]) -> Iterator[Tensor]:
    """(1, 3, H, W) each -> batches of at most ``BATCH``, in the order given."""
    for same in by_size(images):
        for start in range(0, len(same), BATCH):
            yield torch.cat(same[start : start + BATCH])


def by_size(images: Sequence[Tensor]) -> list[list[Tensor]]:
    """The images in groups that can be stacked, each in the order given."""
    groups: dict[torch.Size, list[Tensor]] = {}
    for image in images:
        groups.setdefault(image.shape, []).append(image)
    return list(groups.values())


def choose(images: Sequence[Item], most: int, generator: torch.Generator) -> list[Item]:
    """At most ``most`` of the images, drawn at random, in their order."""
    drawn = torch.randperm(len(images), generator=generator)[:most].sort().values
    return [images[i] for i in drawn.tolist()]


@torch.no_grad()
def read_support(
    autoencoder: Autoencoder,
    images: Sequence[Tensor],
    generator: torch.Generator,
    *,
    rebuild: bool = True,
) -> tuple[Moments, dict[int, tuple[list[Tensor], Tensor | None]]]:
    """Moments over the support, or over ``MOMENT_IMAGES`` of it, which bounds memory.

    Returns:
        The moments and, since the same pass has them, the encoder stages and reconstruction of
        each image that they were taken over, by its index. Without ``rebuild`` the stages that are
        compared alone.
    """
    chosen = choose(range(len(images)), MOMENT_IMAGES, generator)
    if not rebuild:  # image by image: what a convolution works on stays in the cache
        found, moments = autoencoder.read_stages(COMPARED_STAGES, *(images[i] for i in chosen))
        return moments, {i: (of_image, None) for i, of_image in zip(chosen, found, strict=True)}
    groups: dict[torch.Size, list[int]] = {}
    for i in chosen:
        groups.setdefault(images[i].shape, []).append(i)
    batches = [torch.cat([images[i] for i in same]) for same in groups.values()]
    results, moments = autoencoder.read_support(*batches)
    passes: dict[int, tuple[list[Tensor], Tensor | None]] = {}
    for same, (stages, rebuilt) in zip(groups.values(), results, strict=True):
        for row, i in enumerate(same):
            one = slice(row, row + 1)
            passes[i] = [stage[one] for stage in stages], rebuilt[one]
    return moments, passes
