"""Reading what a detector file holds of the ``feature`` preset, of any version."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from metaformer.detection.feature.adapted import STATE_VERSION, AdaptedFeature, Backbone, whole_bank
from metaformer.detection.feature.config import AUTOENCODER, SHIPPED, FeatureConfig
from metaformer.detection.feature.feature_image import FeatureImage
from metaformer.detection.feature.gap_correction import GapCorrection
from metaformer.detection.feature.memory_bank import POOLED, MemoryBank
from metaformer.detection.preset import EarlierVersionError
from metaformer.detection.scoring.frame_check import FrameCheck
from metaformer.networks.feature_maps import DETAIL, GAP, PIXELS, RESPONSE
from metaformer.networks.named_buffers import under

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What version 1 standardised pixels by. The shipped backbone was trained on other values, which
version 2 takes."""


EXTRA = (GAP, RESPONSE, PIXELS, DETAIL)
"""Maps of support images that are stored beside those of the strides."""


@dataclass(frozen=True)
class Restored:
    """The parts of an adapted model."""

    config: FeatureConfig
    bank: MemoryBank | None
    support: dict[int, FeatureImage]
    count: int
    frame: FrameCheck | None = None

    def adapted(self, tensors: Mapping[str, Tensor], backbone: Backbone) -> AdaptedFeature:
        """The model on its backbone, with the transformer that ``tensors`` hold.

        Raises: KeyError, ValueError, RuntimeError: something is missing or does not fit.
        """
        self.check(backbone.channels)
        readings = self.config.readings
        correction = None if readings is None else GapCorrection.from_state(tensors, readings)
        if correction is not None:
            correction.network.reads_gap = self.config.gap
        return AdaptedFeature(
            self.config, backbone, self.bank, self.support, self.count, self.frame, correction
        )

    def check(self, channels: Mapping[int, int]) -> None:
        """Raises: ValueError: shapes do not fit a backbone with these channels by stride."""
        expected = {str(level): channels[level] for level in self.config.levels}
        expected[POOLED] = sum(expected.values())
        for index, image in self.support.items():
            for level in self.config.levels:
                grid = image.features[level]
                if grid.ndim != 4 or len(grid) != 1 or grid.shape[1] != expected[str(level)]:
                    raise ValueError(
                        f"support.{index}.{level} has shape {tuple(grid.shape)}, needed is "
                        f"(1, {expected[str(level)]}, h, w)"
                    )
        rows = {} if self.bank is None else self.bank.rows
        for name, of_name in rows.items():
            if of_name.ndim != 2 or of_name.shape[1] != expected[name] or not len(of_name):
                raise ValueError(
                    f"bank.{name} has shape {tuple(of_name.shape)}, needed is (N, {expected[name]})"
                )


def restore(
    tensors: dict[str, Tensor], settings: dict[str, Any], *, of_product: bool = False
) -> Restored:
    """The parts of what ``AdaptedFeature.state`` gave.

    Args:
        of_product: it is one of several models, which have a frame check in common.

    Raises:
        ValueError, KeyError, TypeError: something is missing or does not fit.
    """
    version = settings.get("version", 1)
    if version == 1:
        return restore_version_1(tensors, settings)
    if version != STATE_VERSION:
        raise ValueError(f"version {version} of the feature preset is not known here")
    stored = settings["config"]
    # Earlier versions had one number for all kinds of patch features.
    stored = {"cosine_rows": stored["coreset_size"], **stored}
    config = FeatureConfig(**with_tuples(stored))
    is_inside = config.backbone in (SHIPPED, AUTOENCODER)
    if not is_inside and not isinstance(config.backbone_sha256, str):
        raise ValueError(f"no SHA-256 of the weights of {config.backbone}")
    count = image_count(settings)
    support = support_of(tensors, config)
    frame = None if of_product else FrameCheck.from_state(tensors, settings["frame"])
    if config.aligned or len(support) == count:
        return replace(from_images(config, support, count), frame=frame)
    return Restored(config, bank_of(tensors), {}, count, frame)


def from_images(config: FeatureConfig, support: dict[int, FeatureImage], count: int) -> Restored:
    """The adapted preset of stored support images, by index.

    Raises:
        ValueError: there are none, or more than ``count``.
    """
    if not support or len(support) > count:
        raise ValueError(f"{len(support)} support images are stored, needed are 1 to {count}")
    if config.aligned:
        return Restored(config, None, support, count)
    generator = torch.Generator().manual_seed(0)
    bank = whole_bank(config, [*support.values()], generator)
    return Restored(config, bank, support, count)


def support_of(tensors: dict[str, Tensor], config: FeatureConfig) -> dict[int, FeatureImage]:
    """Raises: KeyError: a stride of an image is missing."""
    indices = {int(found[1]) for name in tensors if (found := re.match(r"support\.(\d+)\.", name))}
    return {
        i: FeatureImage(
            {s: in_backbone_layout(tensors[f"support.{i}.{s}"]) for s in config.strides}
            | {k: tensors[f"support.{i}.{k}"] for k in EXTRA if f"support.{i}.{k}" in tensors},
            under(f"mirrored.{i}.", tensors),
        )
        for i in sorted(indices)
    }


def in_backbone_layout(grid: Tensor) -> Tensor:
    """(1, C, h, w) with channels last, as the backbone gives it: sums over channels round
    differently in another layout, and scores would differ in their last bits."""
    if grid.ndim != 4:  # refused later, with its name
        return grid
    return grid.contiguous(memory_format=torch.channels_last)


def bank_of(tensors: dict[str, Tensor]) -> MemoryBank:
    """Raises: ValueError: there is none, or an owner is missing."""
    rows, owners = under("bank.", tensors), under("owners.", tensors)
    sizes = {name: len(of_name) for name, of_name in rows.items()}
    if not rows or sizes != {name: len(of_name) for name, of_name in owners.items()}:
        raise ValueError("the memory bank is missing, or not every row of it has an owner")
    return MemoryBank(rows, owners)


def restore_version_1(tensors: dict[str, Tensor], settings: dict[str, Any]) -> Restored:
    """A detector of version 1 that compared by direction alone gives the same scores.

    Raises:
        ValueError: it compared in the learned metric, which is gone.
    """
    stored = with_tuples(settings["config"])
    if stored.get("learned", False):
        raise EarlierVersionError(
            "made by an earlier version, whose learned metric is gone: adapt again from the good "
            "images, which also gives better scores."
        )
    backbone = stored.get("backbone", SHIPPED)
    kept = {"resolution", "levels", "level_weights", "aligned", "reach", "sigma", "score_share"}
    config = FeatureConfig(
        **{"sigma": 1.0, "score_share": 0.01}
        | {name: value for name, value in stored.items() if name in kept},
        cosine_share=1.0,
        cosine_floor=0.0,
        coreset_size=stored.get("compared_tokens", 2**62),
        cosine_rows=stored.get("compared_tokens", 2**62),
        principal_directions=0,
        max_patches=stored.get("max_tokens", 20_000),
        mirrored_images=0,
        transformer=False,
        backbone=backbone,
        backbone_sha256=stored.get("backbone_sha256"),
        input_mean=IMAGENET_MEAN,
        input_std=IMAGENET_STD,
    )
    count = image_count(settings)
    memory = {level: tensors[f"memory.{level}"] for level in config.levels}
    if config.aligned:
        images = len(memory[config.levels[0]])
        support = {
            i: FeatureImage({level: grids[i : i + 1] for level, grids in memory.items()})
            for i in range(images)
        }
        return Restored(config, None, support, max(count, images))
    if any(f"grids.{level}" not in tensors for level in config.levels):
        rows = {str(level): of_level for level, of_level in memory.items()}
        owners = {name: torch.zeros(len(r), dtype=torch.long) for name, r in rows.items()}
        return Restored(config, MemoryBank(rows, owners), {}, max(count, 2))
    features: dict[int, dict[int, Tensor]] = {}
    for level, of_level in memory.items():
        shapes = tensors[f"grids.{level}"].tolist()
        if sum(h * w for h, w in shapes) != len(of_level):
            raise ValueError(f"grids.{level} does not add up to the {len(of_level)} rows kept")
        for i, part in enumerate(of_level.split([h * w for h, w in shapes])):
            grid = part.T.reshape(1, -1, *shapes[i])
            features.setdefault(i, {})[level] = in_backbone_layout(grid)
    support = {i: FeatureImage(of_image) for i, of_image in features.items()}
    return from_images(config, support, len(support))


def image_count(settings: dict[str, Any]) -> int:
    """The number of support images by the settings. Raises: ValueError: it is not a number."""
    count = settings.get("images", 1)
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"images is {count!r}, needed is a number of 1 or more")
    return count


def with_tuples(stored: dict[str, Any]) -> dict[str, Any]:
    """JSON has no tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
