"""The ``long`` mode of the pixel preset: the transformer trained on synthetic defects of the
support images.

Each support image in turn is the query, with a defect drawn into it, and the others are its
support; a lone image is its own support. The autoencoder and the prior stay as they are. Training
stops when defects that it was not trained on are found no better, and keeps the transformer as it
was at its best; only support images are ever seen. Ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from metaformer.data.synthetic.defects import draw_defect
from metaformer.detection.pixel.adapted import AdaptedPixel
from metaformer.detection.pixel.encoder_output import FINE, EncoderOutput
from metaformer.detection.pixel.fitting import train_watched
from metaformer.detection.pixel.losses import image_logits, location_loss, ranking_loss
from metaformer.detection.pixel.prepared_image import PreparedImage
from metaformer.detection.pixel.support_memory import SupportMemory, build_memory
from metaformer.detection.pixel.universal_model import UniversalModel
from metaformer.detection.preprocessing import to_tensor

STEPS = 300
LEARNING_RATE = 2e-4
CHECK_EVERY = 25
PATIENCE = 3
"""Checks without a gain before training stops."""
CHECK_QUERIES = 8
RANK_WEIGHT = 0.5
MEMORY_IMAGES = 8
"""Support images in memory at a step; bounds time and memory."""


@dataclass(frozen=True)
class Example:
    """A support image with a defect, as the autoencoder reads it, and without."""

    defective: EncoderOutput
    good: EncoderOutput
    target: Tensor
    """(1, h, w) in [0, 1] at the map's stride."""
    index: int
    """Which support image it was made from."""


def train_transformer(
    adapted: AdaptedPixel, support: Sequence[PreparedImage], *, seed: int
) -> list[float]:
    """Train the transformer and the mix of ``adapted`` in place; the losses of the checks, the
    first untrained.

    Nothing is trained where the model has no transformer.
    """
    model = adapted.universal
    if model.transformer is None:
        return []
    rng = np.random.default_rng(seed)
    good = adapted.encoded_images
    checks = [example(adapted, support, good, rng) for _ in range(CHECK_QUERIES)]
    trained = [*model.transformer.parameters(), model.mix, model.slope, model.offset]

    def backward() -> None:
        drawn = example(adapted, support, good, rng)
        torch.autograd.backward(example_loss(model, drawn, memory_without(drawn, good, rng)))

    return train_watched(
        trained,
        backward,
        lambda: check(model, checks, good),
        steps=STEPS,
        rate=LEARNING_RATE,
        check_every=CHECK_EVERY,
        patience=PATIENCE,
    )


def example(
    adapted: AdaptedPixel,
    support: Sequence[PreparedImage],
    good: Sequence[EncoderOutput],
    rng: np.random.Generator,
) -> Example:
    """A random support image with a random defect."""
    index = int(rng.integers(len(support)))
    image = support[index]
    pixels, donor = to_uint8(image), to_uint8(support[int(rng.integers(len(support)))])
    defective, mask = draw_defect(pixels, rng, donor=donor)
    changed = image.with_pixels(to_tensor(defective, mask.shape))
    target = torch.from_numpy(mask)[None, None].float()
    return Example(adapted.encode(changed), good[index], F.avg_pool2d(target, FINE)[:, 0], index)


def to_uint8(image: PreparedImage) -> NDArray[np.uint8]:
    """The image without its padding, (H, W, 3)."""
    pixels = image.pixels[0, :, : image.height, : image.width].permute(1, 2, 0)
    return np.asarray(((pixels + 1) * 127.5).round().clamp(0, 255).numpy(), np.uint8)


def memory_without(
    drawn: Example, good: Sequence[EncoderOutput], rng: np.random.Generator | None
) -> SupportMemory:
    """Memory of the other support images, of a random few if there are many."""
    others = [encoded for i, encoded in enumerate(good) if i != drawn.index] or list(good)
    if rng is not None and len(others) > MEMORY_IMAGES:
        kept = rng.permutation(len(others))[:MEMORY_IMAGES]
        others = [others[i] for i in sorted(kept.tolist())]
    return build_memory(others[:MEMORY_IMAGES])


def example_loss(model: UniversalModel, drawn: Example, memory: SupportMemory) -> Tensor:
    """The defect is to be located, and to score above the image without it."""
    bad = model.logits(model(drawn.defective, memory).anomaly)
    good = model.logits(model(drawn.good, memory).anomaly)
    located = location_loss(torch.cat([bad, good]), torch.cat([drawn.target, 0 * drawn.target]))
    scores = image_logits(torch.cat([bad, good]))
    ranked = ranking_loss(scores, torch.tensor([True, False]))
    return located + RANK_WEIGHT * ranked


@torch.no_grad()
def check(model: UniversalModel, checks: Sequence[Example], good: Sequence[EncoderOutput]) -> float:
    """Mean loss on defects that are never trained on."""
    losses = [example_loss(model, drawn, memory_without(drawn, good, None)) for drawn in checks]
    return float(torch.stack(losses).mean())
