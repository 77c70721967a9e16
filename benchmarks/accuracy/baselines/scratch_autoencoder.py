"""The autoencoder of the paper's Table 1, fitted from nothing to the support."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.accuracy.baselines.imaging import SMOOTHING, blur, to_batch, to_image_size
from metaformer.networks.autoencoder import Autoencoder, AutoencoderConfig


@dataclass(frozen=True)
class ScratchAutoencoder:
    """Reconstruction gap of an autoencoder that has seen the support and no other image."""

    resolution: int = 128
    """A multiple of 128. A fit at 256 costs four times as much."""
    steps: int = 300
    """On 60 test images of MVTec bottle with 10 shots, 150, 300 and 800 steps gave image AUROC
    0.76, 0.80 and 0.80, pixel AUROC 0.42, 0.47 and 0.52 (one seed)."""
    batch: int = 4
    learning_rate: float = 1e-3
    shift: int = 8
    """Largest random shift of a training image along each axis, in pixels, edges repeated."""
    flips: bool = True
    name: str = "autoencoder"

    @property
    def settings(self) -> dict[str, Any]:
        return asdict(self)

    def fit(self, support: Sequence[NDArray[np.uint8]], seed: int) -> FittedAutoencoder:
        images = to_batch(support, self.resolution) * 2 - 1  # (K, 3, S, S)
        rng = np.random.default_rng(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # the only seed that layer initialisation listens to
            model = Autoencoder(AutoencoderConfig(norm="group"))
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimiser = torch.optim.Adam(model.parameters(), lr=self.learning_rate)
        for _ in range(self.steps):
            chosen = rng.integers(0, len(images), self.batch)
            x = torch.stack([self._augment(images[i], rng) for i in chosen])
            x = x.contiguous(memory_format=torch.channels_last)  # (B, 3, S, S)
            # Half the time of float32 where the processor has bfloat16, several times where it has
            # to imitate it; the gap is computed in float32.
            with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16()):
                rebuilt = model(x)
            loss = (rebuilt - x).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return FittedAutoencoder(self, model.eval().requires_grad_(False))

    def _augment(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        """A random flip and shift of one (3, S, S) image."""
        if self.flips:
            image = image.flip([axis + 1 for axis in range(2) if rng.random() < 0.5])
        padded = torch.nn.functional.pad(image[None], (self.shift,) * 4, mode="replicate")[0]
        top, left = (int(offset) for offset in rng.integers(0, 2 * self.shift + 1, 2))
        return padded[:, top : top + self.resolution, left : left + self.resolution]


def has_bfloat16() -> bool:
    """Whether this processor computes in bfloat16."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@dataclass(frozen=True)
class FittedAutoencoder:
    method: ScratchAutoencoder
    model: Autoencoder

    @torch.no_grad()
    def score(self, images: Sequence[NDArray[np.uint8]]) -> list[tuple[float, NDArray[np.float32]]]:
        x = to_batch(images, self.method.resolution) * 2 - 1  # (B, 3, S, S)
        gaps = (self.model(x) - x).square().mean(dim=1).numpy()  # (B, S, S)
        sigma = SMOOTHING * self.method.resolution / 256
        results = []
        for image, gap in zip(images, gaps, strict=True):
            anomaly_map = blur(gap, sigma)
            results.append((float(anomaly_map.max()), to_image_size(anomaly_map, image)))
        return results
