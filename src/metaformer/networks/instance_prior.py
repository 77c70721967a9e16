"""The instance prior (P): its generator, the effect editors and the critic it is trained with.

It answers "where is the object" with a matte in [0, 1], the response map (R). It learns that
without any mask, by imitating a visual effect (VEGAN; Chen, Chien and others 2019): the matte
decides which pixels of a natural photo keep their looks while an editor without parameters changes
the rest, and a critic compares the result with photos that show the effect. Only a matte that
covers the object makes a convincing effect photo.

The paper says that its prior is trained unsupervised and yields the response map; the networks
below are ours, sized so that the prior costs a fraction of the autoencoder.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib import resources
from itertools import pairwise
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

Effect = Literal["black", "colour", "defocus"]
EFFECTS: tuple[Effect, ...] = get_args(Effect)
"""Black background, colour selectivo (grey background), defocused background: the three of VEGAN.
An effect's index in this tuple is its code in tensors."""

LUMINANCE = (0.2989, 0.5870, 0.1140)
"""ITU-R BT.601 weights of red, green and blue (VEGAN's colour selectivo)."""
DEFOCUS_KERNEL = 11 / 224
"""Side of the averaging window as a share of the image's (VEGAN: 11 pixels at 224)."""

WEIGHTS = "prior.safetensors"
CARD = "prior.json"


class PriorWeightsError(ValueError):
    """The weights of the prior are missing, damaged or do not fit its configuration."""


@dataclass(frozen=True)
class PriorConfig:
    """Size of the prior. The defaults are what the package ships."""

    side: int = 128
    """Side, in pixels, of the square at which the prior works; a multiple of 16. The shipped
    weights were trained at this side."""
    width: int = 32
    """Channels at half resolution; doubled twice on the way down."""

    def __post_init__(self) -> None:
        if self.side < 32 or self.side % 16:
            raise ValueError(f"side={self.side}: the prior needs a multiple of 16 of at least 32.")
        if self.width < 8 or self.width % 8:
            raise ValueError(f"width={self.width}: the prior needs a multiple of 8.")


class ConvBlock(nn.Sequential):
    """3x3 convolution, group norm, ReLU. Stride 2 halves the sides."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False),
            # Statistics of one image alone: the response map never depends on the batch. Groups of
            # 8, not single channels: instance norm would erase how strongly a channel answers.
            nn.GroupNorm(c_out // 8, c_out),
            nn.ReLU(inplace=True),
        )


class InstancePrior(nn.Module):
    """The prior: photos (B, 3, H, W) in [0, 1] -> response map (B, 1, H, W) in [0, 1].

    A narrow encoder-decoder with skips. The image is shrunk to ``config.side`` inside, without
    keeping the aspect ratio, and the response map is enlarged back to H x W. 1 means object, 0
    background. On a photo without an object (a texture) it is arbitrary: use it as a hint, never as
    a gate.

    Raises:
        ValueError: the input's shape is not (B, 3, H, W).
    """

    def __init__(self, config: PriorConfig | None = None) -> None:
        super().__init__()
        self.config = config or PriorConfig()
        w = self.config.width
        self.down1 = nn.Sequential(ConvBlock(3, w, 2), ConvBlock(w, w))
        self.down2 = nn.Sequential(ConvBlock(w, 2 * w, 2), ConvBlock(2 * w, 2 * w))
        self.down3 = nn.Sequential(ConvBlock(2 * w, 4 * w, 2), ConvBlock(4 * w, 4 * w))
        # At 1/16 a 3x3 kernel spans 48 pixels of 128: this is where the prior sees the whole photo.
        self.down4 = nn.Sequential(ConvBlock(4 * w, 4 * w, 2), ConvBlock(4 * w, 4 * w))
        self.up3 = ConvBlock(8 * w, 4 * w)
        self.up2 = ConvBlock(6 * w, 2 * w)
        self.up1 = ConvBlock(3 * w, w)
        # Full resolution is costly, so few channels get there: 13 and the photo's 3.
        self.narrow = nn.Conv2d(w, 13, 1)
        self.up0 = ConvBlock(16, 16)
        self.head = nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        return torch.sigmoid(self.logits(images))

    def logits(self, images: Tensor) -> Tensor:
        """The response map before its sigmoid, (B, 1, H, W) float32; training keeps it from growing
        large."""
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(
                f"the prior takes images of shape (B, 3, H, W), got {tuple(images.shape)}."
            )
        height, width = images.shape[2:]
        side = self.config.side

        x = (shrink(images, side) - 0.5) / 0.25  # (B, 3, side, side), about unit variance
        d1 = self.down1(x)  # (B, w, side / 2, side / 2)
        d2 = self.down2(d1)  # (B, 2w, side / 4, ...)
        d3 = self.down3(d2)  # (B, 4w, side / 8, ...)
        d4 = self.down4(d3)  # (B, 4w, side / 16, ...)
        u = self.up3(torch.cat([_double(d4), d3], dim=1))  # (B, 4w, side / 8, ...)
        u = self.up2(torch.cat([_double(u), d2], dim=1))  # (B, 2w, side / 4, ...)
        u = self.up1(torch.cat([_double(u), d1], dim=1))  # (B, w, side / 2, ...)
        u = _double(self.narrow(u))  # (B, 13, side, side)
        u = self.up0(torch.cat([u, x.to(u.dtype)], dim=1))  # (B, 16, side, side)
        logits: Tensor = self.head(u).float()  # (B, 1, side, side)
        if (height, width) != (side, side):
            logits = F.interpolate(
                logits, (height, width), mode="bilinear", align_corners=False
            )  # (B, 1, H, W)
        return logits


def shrink(images: Tensor, side: int) -> Tensor:
    """(B, C, H, W) -> (B, C, side, side): each pixel the mean of the area that it covers."""
    down = area_weights(images, images.shape[2], side)  # (side, H)
    across = area_weights(images, images.shape[3], side)  # (side, W)
    return down @ images @ across.T


def area_weights(like: Tensor, length: int, side: int) -> Tensor:
    """(side, length) share of each of ``length`` pixels in each of ``side``; rows add up to 1.

    Where there are fewer pixels than asked for, those between pixel centres are interpolated.
    """
    step = torch.ones_like(like[0, 0, 0, 0]) * length / side
    start = torch.arange(side, device=like.device)[:, None] * step  # (side, 1)
    wide = step.clamp_min(1.0)  # where it enlarges, as wide as a pixel: linear interpolation
    start = start + (step - wide) / 2
    pixel = torch.arange(length, device=like.device)  # (length,)
    overlap = torch.minimum(start + wide, pixel + 1.0) - torch.maximum(start, pixel + 0.0)
    weights = overlap.clamp_min(0)
    return weights / weights.sum(1, keepdim=True)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def edit(images: Tensor, effect: Effect) -> Tensor:
    """The wholly edited photo E(x): what the background becomes. No parameters.

    Args:
        images: (B, 3, H, W) in [0, 1].

    Returns:
        (B, 3, H, W) in [0, 1].
    """
    if effect == "black":
        return torch.zeros_like(images)
    if effect == "colour":
        weights = images.new_tensor(LUMINANCE)[None, :, None, None]
        return (images * weights).sum(dim=1, keepdim=True).expand_as(images)
    kernel = 2 * round(DEFOCUS_KERNEL * min(images.shape[2:]) / 2) + 1  # odd, 7 at 128 pixels
    # Twice, because one box of this size leaves stripes of coarse patterns standing.
    blurred = images
    for _ in range(2):
        blurred = F.avg_pool2d(blurred, kernel, 1, kernel // 2, count_include_pad=False)
    return blurred


def apply_effects(images: Tensor, mattes: Tensor, effects: Tensor) -> Tensor:
    """Effect photos ``m * x + (1 - m) * E(x)``, each with its own effect.

    Args:
        images: (B, 3, H, W) in [0, 1].
        mattes: (B, 1, H, W) in [0, 1]; 1 keeps the pixel.
        effects: (B,) integer codes, indices into ``EFFECTS``.

    Returns:
        (B, 3, H, W) in [0, 1], differentiable in ``mattes``.
    """
    edited = torch.empty_like(images)
    for code, effect in enumerate(EFFECTS):
        chosen = effects == code
        if bool(chosen.any()):
            edited[chosen] = edit(images[chosen], effect)
    return edited + mattes * (images - edited)


class Critic(nn.Module):
    """WGAN critic: effect photos (B, 3, side, side) and their effects (B,) -> scores (B,).

    Higher means more like a real effect photo. Beside the photo it sees what its effect would
    still change in it: light, colour or sharp detail, which all outline the part that was kept.
    It has one score for each effect and no normalisation: the gradient penalty is defined for
    each photo alone.
    """

    def __init__(self, side: int = 96, width: int = 32) -> None:
        super().__init__()
        w = width
        widths = (6, w, 2 * w, 4 * w, 6 * w, 8 * w)
        self.convs = nn.ModuleList(
            nn.Conv2d(c_in, c_out, 4, stride=2, padding=1) for c_in, c_out in pairwise(widths)
        )
        self.score = nn.Linear(8 * w * (side // 32) ** 2, len(EFFECTS))

    def forward(self, photos: Tensor, effects: Tensor) -> Tensor:
        nothing = torch.zeros_like(photos[:, :1])  # (B, 1, side, side)
        kept = photos - apply_effects(photos, nothing, effects)  # (B, 3, side, side)
        x = torch.cat([2 * photos - 1, 2 * kept], dim=1)  # (B, 6, side, side)
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.2)  # halves the sides each time
        scores: Tensor = self.score(x.flatten(1))  # (B, 3)
        return scores.gather(1, effects[:, None])[:, 0].to(photos.dtype)


def gradient_penalty(
    critic: Critic, real: Tensor, fake: Tensor, effects: Tensor, mix: Tensor
) -> Tensor:
    """WGAN-GP's penalty: mean of (||gradient of the critic at a mixed photo||_2 - 1)^2.

    ``mix`` (B,) in [0, 1] is how much of ``real`` goes into each mixed photo. The result keeps
    the graph of the gradient itself, so that it can train the critic.
    """
    share = mix[:, None, None, None]
    mixed = (share * real + (1 - share) * fake).detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(mixed, effects).sum(), mixed, create_graph=True)
    norm = (gradient.flatten(1).square().sum(dim=1) + 1e-12).sqrt()  # (B,)
    return (norm - 1).square().mean()


def prior_card(prior: InstancePrior, provenance: dict[str, object]) -> str:
    """JSON that travels beside the weights: configuration and where they come from."""
    return json.dumps({"config": asdict(prior.config), **provenance}, indent=2) + "\n"


def load_prior() -> InstancePrior:
    """The prior with the weights the package ships, frozen and in evaluation mode.

    Raises:
        PriorWeightsError: the files are missing from the installation or damaged.
    """
    folder = resources.files("metaformer.networks.weights")
    try:
        weights = (folder / WEIGHTS).read_bytes()
        card = (folder / CARD).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise PriorWeightsError(
            f"{error.filename}: the weights of the prior are missing. Reinstall the package."
        ) from error
    return prior_from_bytes(weights, card, name=str(folder / WEIGHTS))


def prior_from_bytes(
    weights: bytes, card: str, *, name: str = "weights of the prior"
) -> InstancePrior:
    """The prior from the content of a safetensors file and of its JSON card.

    Raises:
        PriorWeightsError: unreadable, wrong names or shapes, or values that are not finite.
    """
    try:
        prior = InstancePrior(PriorConfig(**json.loads(card)["config"]))
        state = load_safetensors(weights)
    except Exception as error:
        raise PriorWeightsError(
            f"{name}: cannot be read ({error}). Reinstall the package or train the prior again."
        ) from error
    expected = prior.state_dict()
    if wrong := sorted(set(state) ^ set(expected)):
        raise PriorWeightsError(
            f"{name}: has other tensors than this prior, first difference {wrong[0]!r}. The "
            f"weights belong to another version."
        )
    for key, tensor in state.items():
        if tensor.shape != expected[key].shape:
            raise PriorWeightsError(
                f"{name}: {key} has shape {tuple(tensor.shape)}, this prior needs "
                f"{tuple(expected[key].shape)}. Weights and card do not belong together."
            )
        if not bool(torch.isfinite(tensor).all()):
            raise PriorWeightsError(f"{name}: {key} holds values that are not finite (NaN or inf).")
    prior.load_state_dict({key: tensor.float() for key, tensor in state.items()})
    return prior.eval().requires_grad_(False)
