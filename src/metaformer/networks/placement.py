"""Running a backbone on another device than the processor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn


class DeviceError(ValueError):
    """A device that is not known, or not there."""


class Network(Protocol):
    """A backbone; see ``detection.feature.adapted.Backbone``."""

    channels: dict[int, int]

    def __call__(self, images: Tensor, /) -> dict[int, Tensor]: ...


class OnDevice:
    """A backbone on a device. Images come from the processor's memory and features go back to it,
    so that nothing else has to know of the device."""

    def __init__(self, backbone: Network, device: torch.device) -> None:
        self.channels = backbone.channels
        self.device = device
        self.backbone = backbone.to(device) if isinstance(backbone, nn.Module) else backbone

    def __call__(self, images: Tensor, /) -> dict[int, Tensor]:
        found: Mapping[int, Tensor] = self.backbone(images.to(self.device))
        return {stride: features.cpu() for stride, features in found.items()}


def placed(backbone: Network, device: str) -> Network:
    """``backbone`` where images from the processor's memory can be given to it.

    Raises: DeviceError: as ``check_device``.
    """
    checked = check_device(device)
    return backbone if checked.type == "cpu" else OnDevice(backbone, checked)


def check_device(name: str) -> torch.device:
    """The device with this name: ``cpu``, ``cuda``, ``cuda:1``, ``mps``...

    Raises:
        DeviceError: PyTorch does not know it, or finds none on this machine.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(
            f"device {name!r}: not known; accepted are cpu, cuda, cuda:1 and others that PyTorch "
            f"names."
        ) from error
    if device.type == "cpu":
        return device
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        what = str(error).partition(". ")[0][:200] or type(error).__name__
        raise DeviceError(
            f"device {name!r}: not available here with PyTorch {torch.__version__} "
            f"({what}). Leave the device out to use the CPU, or install a PyTorch for it."
        ) from error
    return device
