"""Plain pre-training of the autoencoder: reconstruct unlabelled photos, nothing else.

Where meta-training starts from, and the baseline that it has to beat. Each step takes a few
'products', each a photo in several views, and normalises every product by its own moments: that
is how the autoencoder is used on a support. Resumes exactly.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from metaformer.io.atomic_files import atomic_path
from metaformer.io.images import ImageError, list_images, read_image
from metaformer.networks.autoencoder import Autoencoder, AutoencoderConfig
from metaformer.networks.placement import check_device
from metaformer.training.checkpoints import (
    check_new,
    load_checkpoint,
    module_tensors,
    optimiser_tensors,
    restore_module,
    restore_optimiser,
    save_checkpoint,
)
from metaformer.training.config_file import read_config
from metaformer.training.progress import TrainingBar
from metaformer.training.run_log import RunLog
from metaformer.training.threads import restored_threads


@dataclass(frozen=True)
class PretrainConfig:
    """One YAML key per field."""

    data: Path
    """Folder of photos, searched with its sub-folders."""
    output: Path
    """Folder for the checkpoint, the log and the exported weights."""
    side: int = 128
    """Training crop in pixels, a multiple of 128."""
    products: int = 4
    views: int = 4
    steps: int = 5000
    learning_rate: float = 1e-3
    warm_up: int = 100
    ssim_weight: float = 0.1
    seed: int = 0
    threads: int = 1
    bfloat16: bool = True
    """Convolutions in bfloat16 autocast; weights and optimiser stay float32."""
    log_every: int = 20
    checkpoint_every: int = 250

    @staticmethod
    def from_yaml(path: Path | str) -> PretrainConfig:
        """Raises ValueError that names an unknown or missing key."""
        return read_config(path, PretrainConfig)


@restored_threads()
def pretrain_autoencoder(
    config: PretrainConfig, *, resume: bool = False, quiet: bool = False, device: str = "cpu"
) -> Path:
    """Train the autoencoder on ``device`` and return the path of its weights (safetensors, half
    precision).

    Raises:
        ImageError: a photo cannot be read.
        DeviceError: there is no such device.
        CheckpointError: ``resume`` without a usable checkpoint; a checkpoint without ``resume``.
    """
    place = check_device(device)
    checkpoint, first = config.output / "checkpoint.safetensors", 0
    check_new(checkpoint, resume=resume)
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    config.output.mkdir(parents=True, exist_ok=True)
    photos = list_images(config.data, recursive=True)
    if not photos:
        raise ImageError(
            str(config.data), "no photos in this folder or below it. Give another `data`."
        )
    model = Autoencoder(AutoencoderConfig()).to(place)
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=1e-4)
    if resume:
        tensors, record = load_checkpoint(checkpoint)
        restore_module("model", model, tensors)
        restore_optimiser("optimiser", optimiser, tensors)
        first = record["step"]

    started = time.monotonic()
    with (
        RunLog(config.output, from_step=first, active=True) as log,
        TrainingBar("training the autoencoder", config.steps, first=first, quiet=quiet) as bar,
    ):
        for step in range(first, config.steps):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, config)
            loss_sum = 0.0
            for drawn in draw_products(photos, config, step):
                product = drawn.to(place)
                with torch.autocast(place.type, torch.bfloat16, enabled=config.bfloat16):
                    rebuilt = model(product)  # (views, 3, side, side), own moments
                loss = reconstruction_loss(rebuilt.float(), product, config.ssim_weight)
                (loss / config.products).backward()
                loss_sum += loss.item() / config.products
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

            done = step + 1
            bar.show(done, loss_sum)
            log.add({"loss": loss_sum})
            if done % config.log_every == 0:
                log.write(done, time.monotonic() - started)
            if done % config.checkpoint_every == 0 or done == config.steps:
                tensors = module_tensors("model", model) | optimiser_tensors("optimiser", optimiser)
                save_checkpoint(checkpoint, tensors, {"step": done, "config": describe(config)})
                export(model, config, done)
    return config.output / "autoencoder.safetensors"


def learning_rate(step: int, config: PretrainConfig) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < config.warm_up:
        return config.learning_rate * (step + 1) / config.warm_up
    share = (step - config.warm_up) / max(1, config.steps - config.warm_up)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def draw_products(photos: list[Path], config: PretrainConfig, step: int) -> list[Tensor]:
    """``products`` tensors (views, 3, side, side) in [-1, 1]; depends on seed and step alone."""
    rng = np.random.default_rng((config.seed, step))
    products = []
    for index in rng.integers(0, len(photos), config.products):
        photo = read_image(photos[index])
        views = np.stack([draw_view(photo, config.side, rng) for _ in range(config.views)])
        tensor = torch.from_numpy(views).permute(0, 3, 1, 2).float() / 127.5 - 1
        products.append(tensor.contiguous(memory_format=torch.channels_last))
    return products


def draw_view(photo: NDArray[np.uint8], side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A crop of 60 to 100 % of the shorter side, slightly turned, flipped, lit and squeezed."""
    height, width = photo.shape[:2]
    scale = side / (min(height, width) * rng.uniform(0.6, 1.0))
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(-10, 10), scale)
    room = np.maximum(np.array((width, height)) * scale - side, 0)
    shift = np.array((side - width, side - height)) / 2 + rng.uniform(-0.5, 0.5, 2) * room
    matrix = matrix + np.pad(shift[:, None], ((0, 0), (2, 0)))
    view = cv2.warpAffine(
        photo, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )
    if rng.random() < 0.5:
        view = view[:, ::-1]
    lit = view * rng.uniform(0.85, 1.15) + rng.uniform(-15, 15)
    return np.clip(lit, 0, 255).astype(np.uint8)


def reconstruction_loss(rebuilt: Tensor, images: Tensor, ssim_weight: float) -> Tensor:
    """Mean squared error plus ``ssim_weight`` times 1 - SSIM (8 x 8 boxes); both (B, 3, H, W)."""
    return F.mse_loss(rebuilt, images) + ssim_weight * (1 - box_ssim(rebuilt, images).mean())


def box_ssim(a: Tensor, b: Tensor, box: int = 8) -> Tensor:
    """SSIM of images in [-1, 1] over box windows at stride 4: (B, 3, H', W') in [-1, 1]."""
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2  # Wang et al. 2004, dynamic range 2

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, box, stride=4)

    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return luminance * (2 * covariance + c2) / (var_a + var_b + c2)


def describe(config: PretrainConfig) -> dict[str, Any]:
    """JSON-able, without the folders of the machine it runs on."""
    content = asdict(config)
    del content["data"], content["output"]
    return content


def export(model: Autoencoder, config: PretrainConfig, step: int) -> None:
    """Half-precision weights with how they were made, ready to ship."""
    tensors = {name: t.half().contiguous() for name, t in model.state_dict().items()}
    record = json.dumps({"training": "plain", "step": step, "config": describe(config)})
    with atomic_path(config.output / "autoencoder.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"record": record})
