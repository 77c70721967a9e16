"""The ``pixel`` preset adapted to one product: the fitted model and the memory of its support."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.detection.nearest_neighbors import merge_samples
from metaformer.detection.pixel.config import PixelConfig
from metaformer.detection.pixel.fitting import choose
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
from metaformer.detection.pixel.universal_weights import universal_config
from metaformer.detection.preset import Extension
from metaformer.detection.scoring.anomaly_map import smooth
from metaformer.detection.scoring.frame_check import FrameCheck, Statistics, frame_statistics
from metaformer.detection.support_set import make_folds
from metaformer.networks.autoencoder import SIZE_MULTIPLE, Moments
from metaformer.networks.instance_prior import InstancePrior, PriorConfig

TEMPLATE_REACH = 1
"""Pixels that a golden sample may be off at a place, at the working resolution. On 12 board pairs 1
is better than 0, 2 and 3 (``docs/decisions/08-pixel-preset.md``)."""
LEAST_TEMPLATE_GAP = 0.01
"""Added to the gap to a golden sample, in [0, 1]: where there is none, other gaps still count."""


FRAME_STRIDES = (8, 16)
FRAME_LIMITS = (0.48, 1e6)
"""Of the frame check. Features of unit length say little by their mean: the deviation decides."""
MAX_FOLDS = 10
"""Folds that the support is left out in."""


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


def prepare(config: PixelConfig, prior: InstancePrior, image: Tensor) -> PreparedImage:
    """Images (B, 3, H, W) in [0, 1], sides multiples of 16, as A takes them; where T has its say,
    with the response map."""
    pixels = image * 2 - 1
    response = padded(respond(prior, pixels)) if config.corrects else None
    if config.rebuilds:
        pixels = padded(pixels)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    return PreparedImage(pixels, response, image.shape[2], image.shape[3])


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
        frame: FrameCheck | None = None,
    ) -> None:
        self.frame = frame
        self.config = config
        self.universal = universal
        self.prior = prior
        self.moments = moments
        self.known = known
        self.readings: list[Reading] = []
        """Of the support images, while they are needed to calibrate; then none."""

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
        """Raw maps (1, h, w) of the support images of ``fold`` with the others in memory, in the
        units of all, which are those that later images are measured in. A itself has seen them in
        its few steps: fitting it anew for every fold would take most of the time."""
        assert self.known is not None
        others = [reading for i, reading in enumerate(self.readings) if i not in fold]
        known = self.know(others, torch.Generator().manual_seed(seed), self.known.typical)
        return {i: self.map_of(self.readings[i], known) for i in fold}

    @torch.no_grad()
    def extend(self, new: Sequence[PreparedImage], *, seed: int) -> Extension[PreparedImage]:
        """With the features of more images in the memory.

        The weights, moments and units stay those of the earlier support images: fitting A anew
        takes all images, and the memory of earlier ones is worth nothing under other weights.
        """
        readings = [self.read(image) for image in new]
        adapted = self._with_memory_of(readings, seed)
        maps: dict[int, Tensor] = {}
        for fold in make_folds(len(new), MAX_FOLDS) or [{0}]:
            others = [reading for i, reading in enumerate(readings) if i not in fold]
            model = self._with_memory_of(others, seed)
            assert model.known is not None
            maps |= {i: model.map_of(readings[i], model.known) for i in fold}
        left_out = [maps[i] for i in range(len(new))]
        return Extension(adapted, left_out, "estimated")

    def _with_memory_of(self, readings: Sequence[Reading], seed: int) -> AdaptedPixel:
        assert self.known is not None
        if not readings:
            return self
        generator = torch.Generator().manual_seed(seed)
        earlier = self.known.images
        old, new = self.known, self.know(readings, generator)

        def merge(one: Tensor, other: Tensor, most: int) -> Tensor:
            stands_for = round(earlier * len(other) / len(readings))
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
            images=earlier + len(readings),
            templates=tuple(
                choose([*old.templates, *new.templates], self.config.max_templates, generator)
            ),
        )
        frame = self.frame
        if frame is not None:
            frame = frame.extended([statistics_of(reading) for reading in readings])
        return AdaptedPixel(self.config, self.universal, self.prior, self.moments, known, frame)

    @torch.no_grad()
    def anomaly_maps(self, image: PreparedImage) -> Tensor:
        """(1, h, w) raw map at stride 4, about 1 where all is normal."""
        assert self.known is not None
        reading = self.read(image)
        return self.checked(self.map_of(reading, self.known)[:, None], reading)[0]

    @torch.no_grad()
    def frame_distance(self, image: PreparedImage) -> float:
        return 0.0 if self.frame is None else float(self.frame.distance(self.read(image).features))

    def checked(self, maps: Tensor, reading: Reading) -> Tensor:
        """(B, 1, h, w) maps, raised where a frame does not show the product."""
        return maps if self.frame is None else self.frame(maps, reading.features)

    def map_of(self, reading: Reading, known: Known) -> Tensor:
        """(B, h, w) blurred."""
        grids = self.universal.find(reading, known).anomaly
        if known.templates:
            assert reading.images is not None
            gap = template_gap(reading.images, known.templates, TEMPLATE_REACH)
            grids = grids * (F.avg_pool2d(gap[:, None], FINE)[:, 0] + LEAST_TEMPLATE_GAP)
        return smooth(grids, self.config.sigma)

    def as_module(self) -> nn.Module:
        return PixelModule(self)

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
        if self.frame is not None:
            frame_tensors, settings["frame"] = self.frame.state()
            tensors |= frame_tensors
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
            # Files of earlier versions have none.
            FrameCheck.from_state(tensors, settings["frame"]) if "frame" in settings else None,
        )


def statistics_of(reading: Reading) -> Statistics:
    return frame_statistics(reading.features, FRAME_STRIDES)


class PixelModule(nn.Module):
    """(B, 3, H, W) in [0, 1] -> (B, 1, h, w): what an adapted model computes, for export."""

    def __init__(self, adapted: AdaptedPixel) -> None:
        super().__init__()
        self.adapted = adapted
        self.universal = adapted.universal
        self.prior = adapted.prior

    def forward(self, images: Tensor) -> Tensor:
        adapted = self.adapted
        assert adapted.known is not None
        image = prepare(adapted.config, self.prior, images)
        reading = adapted.read(image)
        return adapted.checked(adapted.map_of(reading, adapted.known)[:, None], reading)
