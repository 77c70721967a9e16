"""The presets by name: the one place that knows which there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

from torch import nn

from metaformer.detection.feature.config import SHIPPED
from metaformer.detection.feature.preset import FeaturePreset
from metaformer.detection.pixel.config import Mode, PixelConfig
from metaformer.detection.pixel.preset import PixelPreset
from metaformer.detection.preset import Adapted, Preset, Settings, Tensors
from metaformer.networks.placement import DeviceError, check_device

PresetName = Literal["feature", "pixel"]
PRESETS: tuple[PresetName, ...] = get_args(PresetName)


class PresetOptions(TypedDict, total=False):
    """Keyword arguments of ``Metaformer.from_pretrained``, which explains them."""

    resolution: int | None
    aligned: bool
    backbone: str
    backbone_weights: Path | str | None
    download: bool
    mode: Mode
    universal_weights: Path | str | None
    device: str


def make_preset(
    name: str,
    *,
    resolution: int | None,
    aligned: bool,
    backbone: str,
    backbone_weights: Path | None,
    download: bool,
    mode: Mode,
    universal_weights: Path | None,
    device: str,
) -> Preset[Any]:
    """See ``Metaformer.from_pretrained`` for the arguments and errors."""
    settings: dict[str, Any] = {"aligned": aligned} | resolution_setting(resolution)
    if name == "feature":
        if mode != "fast" or universal_weights is not None:
            raise ValueError("mode and universal_weights need the pixel preset.")
        return FeaturePreset.from_pretrained(
            backbone, backbone_weights, download=download, device=device, **settings
        )
    if name == "pixel":
        check_pixel_device(device)
        if backbone != SHIPPED or backbone_weights is not None:
            raise ValueError("the pixel preset has no backbone; choose the feature preset.")
        return PixelPreset.from_pretrained(PixelConfig(mode=mode, **settings), universal_weights)
    raise ValueError(f'no preset "{name}": choose {" or ".join(PRESETS)}.')


def resolution_setting(resolution: int | None) -> dict[str, int]:
    """Of a preset's settings; none leaves the preset's own. Raises: ValueError: not 64 to 2048."""
    if resolution is None:
        return {}
    if not 64 <= resolution <= 2048:
        raise ValueError(f"resolution must lie between 64 and 2048 pixels, got {resolution}.")
    return {"resolution": resolution}


def check_pixel_device(device: str) -> None:
    """Raises: DeviceError: it is not the processor."""
    if check_device(device).type != "cpu":
        raise DeviceError(
            f"device {device!r}: the pixel preset computes on the CPU alone. Leave the device out, "
            f"or choose the feature preset."
        )


def restore_preset(
    name: str,
    tensors: Tensors,
    settings: Settings,
    *,
    backbone_weights: Path | None,
    backbone: nn.Module | None,
    device: str,
) -> tuple[Preset[Any], Adapted[Any]]:
    """A preset and its adapted model, from what a detector file holds.

    Raises:
        ValueError, KeyError, TypeError, RuntimeError: something is missing or does not fit.
        BackboneError: the weights of the backbone cannot be used.
        DeviceError: there is no such device.
    """
    if name == "feature":
        return FeaturePreset.from_state(
            tensors, settings, backbone_weights=backbone_weights, backbone=backbone, device=device
        )
    if name == "pixel":
        check_pixel_device(device)
        return PixelPreset.from_state(tensors, settings)
    raise ValueError(f"unknown preset {name!r}")
