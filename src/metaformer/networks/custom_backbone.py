"""A network of the user's own as the frozen backbone of the ``feature`` preset.

Any ``nn.Module`` that takes images (B, 3, H, W) and gives feature maps will do. Its weights stay
with the user: a detector file holds their digest, and loading it takes the same module again.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metaformer.networks.backbone_weights import BackboneError
from metaformer.networks.efficientnet import Colours

CUSTOM = "custom:"
"""How the names of such backbones begin in detector files."""
TRIED_SIDES = (256, 384)
"""Height and width of the image that strides and channels are found out with."""


class CustomBackbone(nn.Module):
    """(B, 3, H, W) in [0, 1] -> ``{stride: (B, C, H / stride, W / stride)}``.

    Args:
        module: takes standardised images (B, 3, H, W) and returns one map (B, C, h, w), a list or
            tuple of them, or a mapping with them as values. It is copied, frozen and set to
            evaluation mode; the caller's own stays as it is.
        levels: strides of the maps to compare, the finest first; all that it returns if None.
        mean, std: of each colour in [0, 1]: what images are standardised by.

    Raises:
        BackboneError: it is no module, cannot be run on an image, or returns no maps of these
            strides.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        module: nn.Module,
        *,
        levels: Sequence[int] | None = None,
        mean: Colours = (0.0, 0.0, 0.0),
        std: Colours = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise BackboneError(
                f"a {type(module).__name__} is no backbone: give a torch.nn.Module that turns "
                f"images (B, 3, H, W) into feature maps."
            )
        if len(mean) != 3 or len(std) != 3 or not all(value > 0 for value in std):
            raise BackboneError(f"mean and std are three numbers each, std above 0: {mean}, {std}.")
        self.name = f"{CUSTOM}{type(module).__name__}"
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.sha256 = digest_of_module(module)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)
        found = self._try_out()
        self.levels = tuple(sorted(found)) if levels is None else tuple(levels)
        if (
            not self.levels
            or not set(self.levels) <= set(found)
            or list(self.levels) != sorted(set(self.levels))
        ):
            raise BackboneError(
                f"{self.name}: gives maps of the strides {sorted(found)}, asked for are "
                f"{list(self.levels)}. Name some of those, the finest first, or leave levels out."
            )
        self.channels = {level: found[level] for level in self.levels}

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        maps = as_list(self.module((images - self.mean) / self.std), self.name)
        by_stride = {round(images.shape[3] / grid.shape[3]): grid for grid in maps}
        return {level: by_stride[level] for level in self.levels}

    @torch.inference_mode()
    def _try_out(self) -> dict[int, int]:
        """Stride -> channels of the maps it gives."""
        height, width = TRIED_SIDES
        try:
            output = self.module((torch.zeros(1, 3, height, width) - self.mean) / self.std)
        except Exception as error:  # of the user's own code anything may come
            raise BackboneError(
                f"{self.name}: cannot be run on an image (1, 3, {height}, {width}) on the CPU: "
                f"{error!r}."
            ) from error
        found: dict[int, int] = {}
        for grid in as_list(output, self.name):
            stride = round(width / grid.shape[3])
            expected = (1, grid.shape[1], height // stride, width // stride)
            if tuple(grid.shape) != expected or height % stride or width % stride:
                raise BackboneError(
                    f"{self.name}: of an image (1, 3, {height}, {width}) it gives a map "
                    f"{tuple(grid.shape)}; needed is (1, C, {height} / stride, {width} / stride)."
                )
            if stride in found:
                raise BackboneError(
                    f"{self.name}: gives two maps of stride {stride}. Let it return one of each."
                )
            found[stride] = int(grid.shape[1])
        return found


def as_list(output: Any, name: str) -> list[Tensor]:
    """The feature maps (B, C, h, w) among what a module returned.

    Raises: BackboneError: it returned something else.
    """
    if isinstance(output, Tensor):
        maps: list[Any] = [output]
    elif isinstance(output, Mapping):
        maps = list(output.values())
    elif isinstance(output, (list, tuple)):
        maps = list(output)
    else:
        maps = [output]
    if not maps or not all(isinstance(grid, Tensor) and grid.ndim == 4 for grid in maps):
        found = [
            tuple(grid.shape) if isinstance(grid, Tensor) else type(grid).__name__ for grid in maps
        ]
        raise BackboneError(
            f"{name}: returned {found}; needed are feature maps (B, C, h, w): one, a list, a tuple "
            f"or a mapping of them. Of a classifier take the layers before the pooling."
        )
    return maps


def digest_of_module(module: nn.Module) -> str:
    """SHA-256 of a module's class name and its parameters and buffers, in hexadecimal."""
    digest = hashlib.sha256(type(module).__name__.encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_same_module(
    backbone: CustomBackbone | None, name: str, sha256: str | None
) -> CustomBackbone:
    """``backbone`` if it is the module that a detector was made with.

    Raises: BackboneError: it is another, or there is none.
    """
    if backbone is None:
        raise BackboneError(
            f"made with a backbone of your own, {name.removeprefix(CUSTOM)} (SHA-256 of its "
            f"weights {sha256}), which is not in the file. Give it: "
            f"Detector.load(path, backbone=module)."
        )
    if backbone.sha256 != sha256:
        raise BackboneError(
            f"the module given ({backbone.name.removeprefix(CUSTOM)}, SHA-256 of its weights "
            f"{backbone.sha256[:12]}...) is not the one it was made with "
            f"({name.removeprefix(CUSTOM)}, {str(sha256)[:12]}...). Give that one, or adapt again."
        )
    return backbone
