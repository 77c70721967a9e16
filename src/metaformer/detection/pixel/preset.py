"""The ``pixel`` preset: the universal model A + P + T, nothing pretrained by others.

Adapting takes the meta-learned gradient steps of A on the support, then remembers what A's encoder
says of it. In ``long`` mode A goes on for a hundred steps, and T is then trained on synthetic
defects of the support images.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metaformer.detection.nearest_neighbors import merge_samples
from metaformer.detection.pixel.config import PixelConfig
from metaformer.detection.pixel.fitting import choose, fit, fit_long, read_support, squeezed
from metaformer.detection.pixel.inner_rates import InnerRates
from metaformer.detection.pixel.reconstruction_error import template_gap
from metaformer.detection.pixel.universal_model import (
    COMPARED_STAGES,
    FINE,
    Known,
    Reading,
    UniversalModel,
    crop,
    know,
    read,
    respond,
)
from metaformer.detection.pixel.universal_weights import load_universal, universal_config
from metaformer.detection.preprocessing import working_size
from metaformer.networks.autoencoder import SIZE_MULTIPLE, Moments
from metaformer.networks.instance_prior import InstancePrior, PriorConfig, load_prior

TEMPLATE_REACH = 1
"""Pixels that a golden sample may be off at a place, at the working resolution. On 12 board pairs 1
is better than 0, 2 and 3 (``docs/decisions/08-pixel-preset.md``)."""
LEAST_TEMPLATE_GAP = 0.01
"""Added to the gap to a golden sample, in [0, 1]: where there is none, other gaps still count."""


@dataclass(frozen=True)
class PreparedImage:
    """An image as A takes it, and what P says of it."""

    pixels: Tensor
    """(1, 3, H, W) in [-1, 1]; where it is to be rebuilt padded to multiples of 128."""
    response: Tensor | None
    """(1, 1, H, W) in [0, 1]; None where T has no say."""
    height: int
    """Rows that are image; the rest is padding, on the bottom."""
    width: int

    def with_pixels(self, image: Tensor) -> PreparedImage:
        """Another image (1, 3, height, width) in [0, 1] of the same object: R stays."""
        return replace(self, pixels=padded(image * 2 - 1))


class PixelModel:
    """Universal part of the preset: A, P and T as meta-trained."""

    size_multiple = 16
    view_factor = 1.3
    max_folds = 10
    """Leave-one-out costs little: readings are kept, and A is not fitted anew."""

    def __init__(
        self,
        config: PixelConfig,
        universal: UniversalModel,
        rates: InnerRates,
        prior: InstancePrior,
    ) -> None:
        self.config = config
        self.universal = universal.eval()
        self.rates = rates
        self.prior = prior

    @classmethod
    def from_pretrained(
        cls, config: PixelConfig | None = None, folder: Path | None = None
    ) -> PixelModel:
        """With the package's weights, or those in ``folder``."""
        universal, rates = load_universal(folder)
        return cls(config or PixelConfig(), universal, rates, load_prior())

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        """Sides (H, W) that an image is resized to, multiples of ``size_multiple``."""
        return working_size(height, width, self.config.resolution, self.size_multiple)

    def prepare(self, image: Tensor) -> PreparedImage:
        """One image (1, 3, H, W) in [0, 1], sides multiples of 16; if T has its say, ask P where
        the object is."""
        pixels = image * 2 - 1
        response = padded(respond(self.prior, pixels)) if self.config.corrects else None
        if self.config.rebuilds:
            pixels = padded(pixels)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        return PreparedImage(pixels, response, *image.shape[2:])

    def adapt(self, support: Sequence[PreparedImage], *, seed: int) -> AdaptedPixel:
        """The meta-learned steps of a copy of A on the support, then remember the support.

        In the long mode more steps of A; T is trained by ``train_transformer`` afterwards.
        """
        generator = torch.Generator().manual_seed(seed)
        images = [image.pixels for image in support]
        whole = [image.pixels[:, :, : image.height, : image.width] for image in support]
        fitted = fit(self.universal, self.rates, whole, generator)
        if self.config.mode == "long":
            watched = [squeezed(image) for image in whole]
            fit_long(fitted.autoencoder, watched, self.config.long_steps, generator)
        moments, passes = read_support(
            fitted.autoencoder, images, generator, rebuild=self.config.rebuilds
        )
        adapted = AdaptedPixel(self.config, fitted, self.prior, moments, None)
        adapted.readings = [
            adapted.read(image) if i not in passes else reading_of(image, *passes.pop(i))
            for i, image in enumerate(support)
        ]
        adapted.known = adapted.know(adapted.readings, generator)
        return adapted


def padded(image: Tensor) -> Tensor:
    """(1, C, H, W) with its last row and column repeated up to multiples of 128."""
    bottom, right = (-side % SIZE_MULTIPLE for side in image.shape[2:])
    image = F.pad(image, (0, right, 0, bottom), mode="replicate")
    return image.contiguous(memory_format=torch.channels_last)


def reading_of(image: PreparedImage, stages: Sequence[Tensor], rebuilt: Tensor | None) -> Reading:
    """What A's encoder stages and reconstruction say of one image, padding cut off."""
    reading = read(image.pixels, stages, rebuilt, image.response)
    return crop(reading, image.height, image.width)


class AdaptedPixel:
    """The universal model fitted to one product, with the memory of its support."""

    def __init__(
        self,
        config: PixelConfig,
        universal: UniversalModel,
        prior: InstancePrior,
        moments: Moments,
        known: Known | None,
    ) -> None:
        self.config = config
        self.universal = universal
        self.prior = prior
        self.moments = moments
        self.known = known
        self.readings: list[Reading] = []
        """Of the support images, while they are needed to calibrate; then none."""

    @property
    def model(self) -> PixelModel:
        """The preset's fixed parts; its weights are those of this product."""
        rates = InnerRates(self.universal.autoencoder, 1, 0.0)
        return PixelModel(self.config, self.universal, rates, self.prior)

    @torch.no_grad()
    def read(self, image: PreparedImage) -> Reading:
        """What A and P say of one image, padding cut off."""
        autoencoder = self.universal.autoencoder
        if not self.config.rebuilds:
            (stages,), _ = autoencoder.read_stages(
                COMPARED_STAGES, image.pixels, moments=self.moments
            )
            return reading_of(image, stages, None)
        stages, rebuilt, _ = autoencoder.read(image.pixels, self.moments)
        return reading_of(image, stages, rebuilt)

    def know(
        self,
        readings: Sequence[Reading],
        generator: torch.Generator,
        typical: Tensor | None = None,
    ) -> Known:
        """Keep readings, no more than the configured numbers of images and tokens of them."""
        known = know(choose(readings, self.config.max_images, generator), typical)
        for level, memory in known.memory.items():
            kept = torch.randperm(len(memory), generator=generator)[: self.config.max_tokens]
            known.memory[level] = memory[kept.sort().values].contiguous()
        kept = torch.randperm(len(known.tokens), generator=generator)
        kept = kept[: self.config.attention_tokens].sort().values
        templates = []
        if self.config.aligned:
            for reading in choose(readings, self.config.max_templates, generator):
                assert reading.images is not None
                templates.append(reading.images[0].half().contiguous())
        return replace(
            known,
            tokens=known.tokens[kept],
            places=known.places[kept],
            response=known.response[kept],
            images=len(readings),
            templates=tuple(templates),
        )

    @torch.no_grad()
    def left_out_maps(self, fold: set[int], *, seed: int) -> dict[int, Tensor]:
        """Raw maps (h, w) of the support images of ``fold`` with only the others in memory, in the
        units of all, which are those that later images are measured in."""
        assert self.known is not None
        others = [reading for i, reading in enumerate(self.readings) if i not in fold]
        known = self.know(others, torch.Generator().manual_seed(seed), self.known.typical)
        return {i: self._find(self.readings[i], known) for i in fold}

    @torch.no_grad()
    def extended(self, images: Sequence[PreparedImage], *, earlier: int, seed: int) -> AdaptedPixel:
        """With the features of more images in the memory.

        The weights, moments and units stay those of the ``earlier`` support images: fitting A anew
        takes all images, and the memory of earlier ones is worth nothing under other weights.
        """
        assert self.known is not None
        if not images:
            return self
        generator = torch.Generator().manual_seed(seed)
        readings = [self.read(image) for image in images]
        old, new = self.known, self.know(readings, generator)

        def merge(one: Tensor, other: Tensor, most: int) -> Tensor:
            stands_for = round(earlier * len(other) / len(images))
            return merge_samples(one, other, stands_for=stands_for, most=most, generator=generator)

        memory = {
            level: merge(old.memory[level], new.memory[level], self.config.max_tokens)
            for level in old.memory
        }
        joined = [
            torch.cat([known.tokens, known.places, known.response[:, None]], dim=1)
            for known in (old, new)
        ]
        rows = merge(joined[0], joined[1], self.config.attention_tokens)
        known = Known(
            tokens=rows[:, :-3],
            places=rows[:, -3:-1],
            response=rows[:, -1],
            memory=memory,
            typical=old.typical,
            images=earlier + len(images),
            templates=tuple(
                choose([*old.templates, *new.templates], self.config.max_templates, generator)
            ),
        )
        return AdaptedPixel(self.config, self.universal, self.prior, self.moments, known)

    @torch.no_grad()
    def anomaly_map(self, image: PreparedImage) -> Tensor:
        """(h, w) raw map at stride 4, about 1 where all is normal."""
        assert self.known is not None
        return self._find(self.read(image), self.known)

    def _find(self, reading: Reading, known: Known) -> Tensor:
        grid = self.universal.find(reading, known).anomaly[0]
        if not known.templates:
            return grid
        assert reading.images is not None
        gap = template_gap(reading.images, known.templates, TEMPLATE_REACH)
        return grid * (F.avg_pool2d(gap, FINE)[0] + LEAST_TEMPLATE_GAP)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and settings to save; ``from_state`` restores the same scores bit for bit."""
        assert self.known is not None
        known = self.known
        tensors = {f"universal.{n}": t for n, t in self.universal.state_dict().items()}
        tensors |= {f"prior.{n}": t for n, t in self.prior.state_dict().items()}
        tensors |= {f"memory.{level}": memory for level, memory in known.memory.items()}
        tensors |= {
            "known.tokens": known.tokens,
            "known.places": known.places,
            "known.response": known.response,
            "known.typical": known.typical,
        }
        tensors |= {f"templates.{i}": t for i, t in enumerate(known.templates)}
        for name, (mean, variance) in self.moments.items():
            tensors[f"moments.{name}.mean"], tensors[f"moments.{name}.variance"] = mean, variance
        settings = {
            "config": asdict(self.config),
            "universal": asdict(self.universal.config),
            "prior": asdict(self.prior.config),
            "images": known.images,
        }
        return {n: t.contiguous() for n, t in tensors.items()}, json.loads(json.dumps(settings))

    @classmethod
    def from_state(cls, tensors: dict[str, Tensor], settings: dict[str, Any]) -> AdaptedPixel:
        if "universal" not in settings:
            raise ValueError(
                "a pixel detector of an earlier version, whose model is gone: adapt again from the "
                "good images"
            )

        def part(start: str) -> dict[str, Tensor]:
            return {n[len(start) :]: t for n, t in tensors.items() if n.startswith(start)}

        universal = UniversalModel(universal_config(settings["universal"]))
        universal.load_state_dict(part("universal."))
        universal.autoencoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        prior = InstancePrior(PriorConfig(**settings["prior"]))
        prior.load_state_dict(part("prior."))
        moments = part("moments.")
        names = sorted({name.rsplit(".", 1)[0] for name in moments})
        known = Known(
            tokens=tensors["known.tokens"],
            places=tensors["known.places"],
            response=tensors["known.response"],
            memory={int(level): memory for level, memory in part("memory.").items()},
            typical=tensors["known.typical"],
            images=settings["images"],
            templates=tuple(t for _, t in sorted(part("templates.").items())),
        )
        return cls(
            PixelConfig(**{"gap": True, **settings["config"]}),  # as before it could be left out
            universal.requires_grad_(False).eval(),
            prior.requires_grad_(False).eval(),
            {name: (moments[f"{name}.mean"], moments[f"{name}.variance"]) for name in names},
            known,
        )
