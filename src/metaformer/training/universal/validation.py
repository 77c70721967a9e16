"""Validation of a model in training on held-out episodes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metaformer.detection.pixel.inner_rates import InnerRates
from metaformer.detection.pixel.losses import image_logits
from metaformer.networks.autoencoder import Autoencoder
from metaformer.training.auroc import auroc
from metaformer.training.episodes.episodes import Episode
from metaformer.training.universal.distance_map import STRIDE, distance_map
from metaformer.training.universal.losses import Task
from metaformer.training.universal.maml import adapt, adaptation_gain, run_task


def validate(
    autoencoder: Autoencoder,
    rates: InnerRates,
    episodes: Iterable[Episode],
    *,
    bfloat16: bool = True,
) -> dict[str, float | None]:
    """Adaptation gain, and how well defects are found; means over episodes.

    The gain is the loss on clean queries before the inner steps minus after. AUROC is within an
    episode, so that scores need not be comparable between products. An episode without both kinds
    of queries, or of pixels, is left out of that mean, which is None if none is left. Queries that
    are anomalous all over count for images only.
    """
    gains, found = [], []
    for drawn in episodes:
        device = rates.rates.device
        task = to_task(drawn, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            gains.append(adaptation_gain(autoencoder, rates, task.support, task.clean_query))
        found.append(find_defects(autoencoder, rates, task, bfloat16=bfloat16))
    before, after = torch.tensor(gains, dtype=torch.float64).unbind(1)
    gain = before - after
    means = {}
    for name in found[0] if found else ():
        known = [one[name] for one in found if not np.isnan(one[name])]
        means[name] = float(np.mean(known)) if known else None
    return {
        "before": float(before.mean()),
        "after": float(after.mean()),
        "gain": float(gain.mean()),
        "gain_std": float(gain.std(correction=0)),
        **means,
        "episodes": len(gains),
    }


def find_defects(
    autoencoder: Autoencoder,
    rates: InnerRates,
    task: Task,
    *,
    bfloat16: bool,
) -> dict[str, float]:
    """AUROC of images and pixels in one task, by the distance map."""
    with torch.autocast(task.support.device.type, torch.bfloat16, enabled=bfloat16):
        fast = adapt(autoencoder, rates, task.support, second_order=False)[-1]
        with torch.no_grad():
            passes = run_task(autoencoder, fast, task.support, task.query)
    with torch.no_grad():
        maps = distance_map(passes.query_stages, passes.support_stages)
    pixels = task.masks[:, STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE].cpu().numpy() > 0.5
    images = task.masks.flatten(1).amax(1).cpu().numpy() > 0.5
    if bool((task.masks.flatten(1).amin(1) > 0).any()):  # whole images: image metrics only
        pixels = pixels & False
    return {
        "image_auroc": auroc(images, image_logits(maps).cpu().numpy()),
        "pixel_auroc": auroc(pixels.ravel(), maps.flatten().cpu().numpy()),
    }


def to_task(episode: Episode, device: torch.device) -> Task:
    """uint8 images -> tensors in [-1, 1] on ``device``."""
    return Task(
        to_tensor(episode.support).to(device),
        to_tensor(episode.query).to(device),
        to_tensor(episode.clean_query).to(device),
        torch.from_numpy(episode.masks).float().to(device),
    )


def to_tensor(images: NDArray[np.uint8]) -> Tensor:
    """uint8 (N, H, W, 3) -> (N, 3, H, W) in [-1, 1], channels last in memory."""
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return tensor.contiguous(memory_format=torch.channels_last)
