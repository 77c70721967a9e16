"""The ``pixel`` preset adapted to one product: the fitted model and the memory of its support."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.detection.nearest_neighbors import merge_samples
from metaformer.detection.pixel.config import PixelConfig
from metaformer.detection.pixel.encoder_output import (
    COMPARED_STAGES,
    FINE,
    EncoderOutput,
)
from metaformer.detection.pixel.fitting import choose
from metaformer.detection.pixel.prepared_image import PreparedImage, cropped_output, prepare
from metaformer.detection.pixel.reconstruction_error import template_gap
from metaformer.detection.pixel.support_memory import SupportMemory, build_memory
from metaformer.detection.pixel.universal_model import UniversalModel
from metaformer.detection.pixel.universal_weights import universal_config
from metaformer.detection.preset import Extension
from metaformer.detection.scoring.anomaly_map import smooth
from metaformer.detection.scoring.frame_check import FrameCheck, Statistics, frame_statistics
from metaformer.detection.support_set import make_folds
from metaformer.networks.autoencoder import Moments
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


class AdaptedPixel:
    """The universal model fitted to one product, with the memory of its support."""

    def __init__(
        self,
        config: PixelConfig,
        universal: UniversalModel,
        prior: InstancePrior,
        moments: Moments,
        memory: SupportMemory | None,
        frame: FrameCheck | None = None,
    ) -> None:
        self.frame = frame
        self.config = config
        self.universal = universal
        self.prior = prior
        self.moments = moments
        self.memory = memory
        self.encoded_images: list[EncoderOutput] = []
        """Of the support images, while they are needed to calibrate; then none."""

    @torch.no_grad()
    def encode(self, image: PreparedImage) -> EncoderOutput:
        """Encoder output of one image, padding cut off."""
        autoencoder = self.universal.autoencoder
        if not self.config.rebuilds:
            (stages,), _ = autoencoder.read_stages(
                COMPARED_STAGES, image.pixels, moments=self.moments
            )
            return cropped_output(self.config, image, stages, None)
        stages, rebuilt, _ = autoencoder.read(image.pixels, self.moments)
        return cropped_output(self.config, image, stages, rebuilt)

    def build_memory(
        self,
        encoded_images: Sequence[EncoderOutput],
        generator: torch.Generator,
        distance_scale: Tensor | None = None,
    ) -> SupportMemory:
        """Keep encoded images, no more than the configured numbers of images and tokens of them."""
        memory = build_memory(
            choose(encoded_images, self.config.max_images, generator), distance_scale
        )
        for level, rows in memory.features.items():
            kept = torch.randperm(len(rows), generator=generator)[: self.config.max_tokens]
            memory.features[level] = rows[kept.sort().values].contiguous()
        kept = torch.randperm(len(memory.tokens), generator=generator)
        kept = kept[: self.config.attention_tokens].sort().values
        templates = []
        if self.config.aligned:
            for encoded in choose(encoded_images, self.config.max_templates, generator):
                assert encoded.images is not None
                templates.append(encoded.images[0].half().contiguous())
        return replace(
            memory,
            tokens=memory.tokens[kept],
            positions=memory.positions[kept],
            response=memory.response[kept],
            images=len(encoded_images),
            templates=tuple(templates),
        )

    @torch.no_grad()
    def left_out_maps(self, fold: set[int], *, seed: int) -> dict[int, Tensor]:
        """Raw maps (1, h, w) of the support images of ``fold`` with the others in memory, in the
        units of all, which are those that later images are measured in. The autoencoder itself has
        seen them in its few steps: fitting it anew for every fold would take most of the time."""
        assert self.memory is not None
        others = [encoded for i, encoded in enumerate(self.encoded_images) if i not in fold]
        memory = self.build_memory(
            others, torch.Generator().manual_seed(seed), self.memory.distance_scale
        )
        return {i: self.map_of(self.encoded_images[i], memory) for i in fold}

    @torch.no_grad()
    def extend(self, new: Sequence[PreparedImage], *, seed: int) -> Extension[PreparedImage]:
        """With the features of more images in the memory.

        The weights, moments and units stay those of the earlier support images: fitting the
        autoencoder anew takes all images, and the memory of earlier ones is worth nothing under
        other weights.
        """
        encoded_images = [self.encode(image) for image in new]
        adapted = self._with_memory_of(encoded_images, seed)
        maps: dict[int, Tensor] = {}
        for fold in make_folds(len(new), MAX_FOLDS) or [{0}]:
            others = [encoded for i, encoded in enumerate(encoded_images) if i not in fold]
            model = self._with_memory_of(others, seed)
            assert model.memory is not None
            maps |= {i: model.map_of(encoded_images[i], model.memory) for i in fold}
        left_out = [maps[i] for i in range(len(new))]
        return Extension(adapted, left_out, "estimated")

    def _with_memory_of(self, encoded_images: Sequence[EncoderOutput], seed: int) -> AdaptedPixel:
        assert self.memory is not None
        if not encoded_images:
            return self
        generator = torch.Generator().manual_seed(seed)
        earlier = self.memory.images
        old, new = self.memory, self.build_memory(encoded_images, generator)

        def merge(one: Tensor, other: Tensor, most: int) -> Tensor:
            stands_for = round(earlier * len(other) / len(encoded_images))
            return merge_samples(one, other, stands_for=stands_for, most=most, generator=generator)

        features = {
            level: merge(old.features[level], new.features[level], self.config.max_tokens)
            for level in old.features
        }
        joined = [
            torch.cat([memory.tokens, memory.positions, memory.response[:, None]], dim=1)
            for memory in (old, new)
        ]
        rows = merge(joined[0], joined[1], self.config.attention_tokens)
        memory = SupportMemory(
            tokens=rows[:, :-3],
            positions=rows[:, -3:-1],
            response=rows[:, -1],
            features=features,
            distance_scale=old.distance_scale,
            images=earlier + len(encoded_images),
            templates=tuple(
                choose([*old.templates, *new.templates], self.config.max_templates, generator)
            ),
        )
        frame = self.frame
        if frame is not None:
            frame = frame.extended([statistics_of(encoded) for encoded in encoded_images])
        return AdaptedPixel(self.config, self.universal, self.prior, self.moments, memory, frame)

    @torch.no_grad()
    def anomaly_maps(self, image: PreparedImage) -> Tensor:
        """(1, h, w) raw map at stride 4, about 1 where all is normal."""
        assert self.memory is not None
        encoded = self.encode(image)
        return self.checked(self.map_of(encoded, self.memory)[:, None], encoded)[0]

    @torch.no_grad()
    def frame_distance(self, image: PreparedImage) -> float:
        return (
            0.0 if self.frame is None else float(self.frame.distance(self.encode(image).features))
        )

    def checked(self, maps: Tensor, encoded: EncoderOutput) -> Tensor:
        """(B, 1, h, w) maps, raised where a frame does not show the product."""
        return maps if self.frame is None else self.frame(maps, encoded.features)

    def map_of(self, encoded: EncoderOutput, memory: SupportMemory) -> Tensor:
        """Blurred anomaly maps (B, h, w)."""
        grids = self.universal(encoded, memory).anomaly
        if memory.templates:
            assert encoded.images is not None
            gap = template_gap(encoded.images, memory.templates, TEMPLATE_REACH)
            grids = grids * (F.avg_pool2d(gap[:, None], FINE)[:, 0] + LEAST_TEMPLATE_GAP)
        return smooth(grids, self.config.sigma)

    def as_module(self) -> nn.Module:
        return PixelModule(self)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and settings to save; ``from_state`` restores the same scores bit for bit."""
        assert self.memory is not None
        memory = self.memory
        tensors = {f"universal.{n}": t for n, t in self.universal.state_dict().items()}
        tensors |= {f"prior.{n}": t for n, t in self.prior.state_dict().items()}
        tensors |= {f"memory.{level}": rows for level, rows in memory.features.items()}
        tensors |= {
            "known.tokens": memory.tokens,
            "known.places": memory.positions,
            "known.response": memory.response,
            "known.typical": memory.distance_scale,
        }
        tensors |= {f"templates.{i}": t for i, t in enumerate(memory.templates)}
        for name, (mean, variance) in self.moments.items():
            tensors[f"moments.{name}.mean"], tensors[f"moments.{name}.variance"] = mean, variance
        settings = {
            "config": asdict(self.config),
            "universal": asdict(self.universal.config),
            "prior": asdict(self.prior.config),
            "images": memory.images,
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
        memory = SupportMemory(
            tokens=tensors["known.tokens"],
            positions=tensors["known.places"],
            response=tensors["known.response"],
            features={int(level): rows for level, rows in part("memory.").items()},
            distance_scale=tensors["known.typical"],
            images=settings["images"],
            templates=tuple(t for _, t in sorted(part("templates.").items())),
        )
        return cls(
            PixelConfig(**{"gap": True, **settings["config"]}),  # as before it could be left out
            universal.requires_grad_(False).eval(),
            prior.requires_grad_(False).eval(),
            {name: (moments[f"{name}.mean"], moments[f"{name}.variance"]) for name in names},
            memory,
            # Files of earlier versions have none.
            FrameCheck.from_state(tensors, settings["frame"]) if "frame" in settings else None,
        )


def statistics_of(encoded: EncoderOutput) -> Statistics:
    return frame_statistics(encoded.features, FRAME_STRIDES)


class PixelModule(nn.Module):
    """(B, 3, H, W) in [0, 1] -> (B, 1, h, w): what an adapted model computes, for export."""

    def __init__(self, adapted: AdaptedPixel) -> None:
        super().__init__()
        self.adapted = adapted
        self.universal = adapted.universal
        self.prior = adapted.prior

    def forward(self, images: Tensor) -> Tensor:
        adapted = self.adapted
        assert adapted.memory is not None
        image = prepare(adapted.config, self.prior, images)
        encoded = adapted.encode(image)
        return adapted.checked(adapted.map_of(encoded, adapted.memory)[:, None], encoded)
