"""The ``pixel`` preset: A and what its adapted self finds unusual, nothing pretrained by others.

Adapting takes a few gradient steps of A on the support (reconstruction), then remembers the
support's features in A's own encoder. A pixel is anomalous where A cannot rebuild it, and where
its features have no match among the support's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load as load_safetensors
from torch import Tensor

from metaformer.autoencoder import SIZE_MULTIPLE, Autoencoder, AutoencoderConfig
from metaformer.memory import cosine_distance, merge_samples

WEIGHTS = "autoencoder.safetensors"
STRIDES = (2, 4, 8, 16, 32)
"""Strides of A's encoder stages."""
BATCH = 4
"""Support images per gradient step; bounds memory at 256 pixels to about 1 GB."""

MOMENT_IMAGES = 16
"""Support images that the moments are taken over; 16 hold a million pixels a channel."""


@dataclass(frozen=True)
class PixelConfig:
    """How A is adapted and compared."""

    resolution: int = 256
    steps: int = 2
    """Gradient steps on each support image."""
    learning_rate: float = 3e-4
    levels: tuple[int, ...] = (4, 8, 16)
    """Strides of A's encoder whose features are compared with the support's."""
    gap_weight: float = 0.5
    """Weight of the reconstruction gap beside the features' distances."""
    max_tokens: int = 20_000
    score_share: float = 0.01
    sigma: float = 2.0
    """Gaussian blur of the map, in cells of stride 4."""


@dataclass(frozen=True)
class PreparedImage:
    """An image padded to what A takes."""

    pixels: Tensor
    """(1, 3, H, W) in [-1, 1], sides multiples of 128."""
    height: int
    """Rows that are image; the rest is padding, on the bottom."""
    width: int


class PixelModel:
    """Universal part of the preset: A as pre-trained."""

    size_multiple = 16
    view_factor = 1.3
    max_folds = 2
    """Each fold is an adaptation of A of its own, so there are few."""

    def __init__(self, config: PixelConfig, autoencoder: Autoencoder) -> None:
        self.config = config
        self.autoencoder = autoencoder

    @classmethod
    def from_pretrained(cls, config: PixelConfig | None = None) -> PixelModel:
        content = resources.files("metaformer.weights").joinpath(WEIGHTS).read_bytes()
        autoencoder = Autoencoder(AutoencoderConfig())
        autoencoder.load_state_dict(
            {name: tensor.float() for name, tensor in load_safetensors(content).items()}
        )
        return cls(config or PixelConfig(), autoencoder.eval())

    def prepare(self, image: Tensor) -> PreparedImage:
        """Pad one image (1, 3, H, W) in [0, 1] by repeating its last row and column."""
        height, width = image.shape[2:]
        bottom, right = -height % SIZE_MULTIPLE, -width % SIZE_MULTIPLE
        padded = F.pad(image * 2 - 1, (0, right, 0, bottom), mode="replicate")
        return PreparedImage(padded, height, width)

    def adapt(self, support: Sequence[PreparedImage], *, seed: int) -> AdaptedPixel:
        """A few gradient steps of a copy of A on the support, then remember its features."""
        autoencoder = Autoencoder(self.autoencoder.config)
        autoencoder.load_state_dict(self.autoencoder.state_dict())
        generator = torch.Generator().manual_seed(seed)
        fit(autoencoder, support, self.config, generator)
        moments = support_moments(autoencoder, support, generator)
        adapted = AdaptedPixel(self.config, autoencoder.eval(), moments, {}, {})
        adapted.remember(support, generator)
        return adapted


def fit(
    autoencoder: Autoencoder,
    support: Sequence[PreparedImage],
    config: PixelConfig,
    generator: torch.Generator,
) -> None:
    """Reconstruct the support; each batch, of one image size, by its own moments."""
    optimiser = torch.optim.Adam(autoencoder.parameters(), lr=config.learning_rate)
    for _ in range(config.steps):
        for batch in batches_of_one_size(support, generator):
            pixels = torch.cat([image.pixels for image in batch])  # (b, 3, H, W)
            with torch.autocast("cpu", torch.bfloat16):
                rebuilt = autoencoder(pixels)
            optimiser.zero_grad(set_to_none=True)
            F.mse_loss(rebuilt.float(), pixels).backward()
            optimiser.step()


def batches_of_one_size(
    support: Sequence[PreparedImage], generator: torch.Generator
) -> list[list[PreparedImage]]:
    """The support in a random order, in batches of images that can be stacked."""
    order = torch.randperm(len(support), generator=generator).tolist()
    by_size: dict[torch.Size, list[PreparedImage]] = {}
    for i in order:
        by_size.setdefault(support[i].pixels.shape, []).append(support[i])
    return [
        same[start : start + BATCH]
        for same in by_size.values()
        for start in range(0, len(same), BATCH)
    ]


@torch.no_grad()
def support_moments(
    autoencoder: Autoencoder, support: Sequence[PreparedImage], generator: torch.Generator
) -> dict[str, tuple[Tensor, Tensor]]:
    """Moments over the support, or over ``MOMENT_IMAGES`` of it, which bounds memory."""
    chosen = torch.randperm(len(support), generator=generator)[:MOMENT_IMAGES].sort().values
    by_size: dict[torch.Size, list[Tensor]] = {}
    for i in chosen.tolist():
        by_size.setdefault(support[i].pixels.shape, []).append(support[i].pixels)
    return autoencoder.support_moments(*(torch.cat(same) for same in by_size.values()))


class AdaptedPixel:
    """A fitted to one product, with the memory of its support."""

    def __init__(
        self,
        config: PixelConfig,
        autoencoder: Autoencoder,
        moments: dict[str, tuple[Tensor, Tensor]],
        memory: dict[int, Tensor],
        typical: dict[str, float],
    ) -> None:
        self.config = config
        self.autoencoder = autoencoder
        self.moments = moments
        self.memory = memory  # stride -> (N, C), unit length
        self.typical = typical  # channel -> its mean on the support, the unit it is measured in

    @property
    def model(self) -> PixelModel:
        """The preset's fixed parts; its weights are those of this product."""
        return PixelModel(self.config, self.autoencoder)

    @torch.no_grad()
    def remember(self, support: Sequence[PreparedImage], generator: torch.Generator) -> None:
        """Fill the memory and measure how large gap and distance are on normal images."""
        tokens: dict[int, list[Tensor]] = {level: [] for level in self.config.levels}
        gaps = []
        for image in support:
            features, gap = self._read(image)
            gaps.append(gap.mean())
            for level in self.config.levels:
                tokens[level].append(features[level].flatten(1).T)  # (h * w, C)
        for level, images in tokens.items():
            memory = torch.cat(images)
            chosen = torch.randperm(len(memory), generator=generator)[: self.config.max_tokens]
            self.memory[level] = memory[chosen].contiguous()
            # Half of the memory against the other half: what distance a match usually has.
            half = len(self.memory[level]) // 2
            distances = cosine_distance(self.memory[level][half:][:2000], self.memory[level][:half])
            self.typical[f"distance.{level}"] = float(distances.mean()) + 1e-6
        self.typical["gap"] = float(torch.stack(gaps).mean()) + 1e-6

    @torch.no_grad()
    def extended(self, images: Sequence[PreparedImage], *, earlier: int, seed: int) -> AdaptedPixel:
        """With the features of more images in the memory.

        The weights, moments and units stay those of the ``earlier`` support images: fitting A anew
        takes all images, and the memory of earlier ones is worth nothing under other weights.
        """
        generator = torch.Generator().manual_seed(seed)
        tokens: dict[int, list[Tensor]] = {level: [old[:0]] for level, old in self.memory.items()}
        for image in images:
            features, _ = self._read(image)
            for level, of_level in tokens.items():
                of_level.append(features[level].flatten(1).T)  # (h * w, C)
        memory = {
            level: merge_samples(
                old,
                new := torch.cat(tokens[level]),
                stands_for=round(earlier * len(new) / max(1, len(images))),
                most=self.config.max_tokens,
                generator=generator,
            )
            for level, old in self.memory.items()
        }
        return AdaptedPixel(self.config, self.autoencoder, self.moments, memory, self.typical)

    @torch.no_grad()
    def anomaly_map(self, image: PreparedImage) -> Tensor:
        """(h, w) raw map at stride 4, about 1 where all is normal."""
        features, gap = self._read(image)
        size = (gap.shape[0] // 4, gap.shape[1] // 4)
        total = F.interpolate(gap[None, None], size=size, mode="area")
        total = total * (self.config.gap_weight / self.typical["gap"])
        for level, memory in self.memory.items():
            tokens = features[level]  # (C, h, w)
            distance = cosine_distance(tokens.flatten(1).T, memory)
            grid = distance.reshape(1, 1, *tokens.shape[1:]) / self.typical[f"distance.{level}"]
            total = total + F.interpolate(grid, size=size, mode="bilinear") / len(self.memory)
        return total[0, 0] / (1 + self.config.gap_weight)

    def _read(self, image: PreparedImage) -> tuple[dict[int, Tensor], Tensor]:
        """Unit-length encoder features by stride and the gap (H, W), padding cut off."""
        *stages, code = self.autoencoder.encode(image.pixels, self.moments)
        rebuilt = self.autoencoder.decode(code, self.moments)
        gap = (image.pixels - rebuilt).abs().mean(1)[0, : image.height, : image.width]
        features = {}
        for stride, stage in zip(STRIDES, stages, strict=True):
            if stride in self.config.levels:
                rows, columns = image.height // stride, image.width // stride
                features[stride] = F.normalize(stage[0, :, :rows, :columns], dim=0)
        return features, gap

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and settings to save; ``from_state`` restores the same scores bit for bit."""
        tensors = {f"autoencoder.{n}": t for n, t in self.autoencoder.state_dict().items()}
        tensors |= {f"memory.{level}": memory for level, memory in self.memory.items()}
        for name, (mean, variance) in self.moments.items():
            tensors[f"moments.{name}.mean"], tensors[f"moments.{name}.variance"] = mean, variance
        settings = {
            "config": asdict(self.config),
            "autoencoder": asdict(self.autoencoder.config),
            "typical": self.typical,
        }
        return tensors, json.loads(json.dumps(settings))

    @classmethod
    def from_state(cls, tensors: dict[str, Tensor], settings: dict[str, Any]) -> AdaptedPixel:
        stored = settings["config"]
        config = PixelConfig(**{**stored, "levels": tuple(stored["levels"])})
        autoencoder = Autoencoder(AutoencoderConfig(**settings["autoencoder"]))
        start = "autoencoder."
        autoencoder.load_state_dict(
            {n[len(start) :]: t for n, t in tensors.items() if n.startswith(start)}
        )
        names = {
            n[len("moments.") :].rsplit(".", 1)[0] for n in tensors if n.startswith("moments.")
        }
        moments = {
            name: (tensors[f"moments.{name}.mean"], tensors[f"moments.{name}.variance"])
            for name in sorted(names)
        }
        memory = {level: tensors[f"memory.{level}"] for level in config.levels}
        return cls(config, autoencoder.eval(), moments, memory, settings["typical"])
