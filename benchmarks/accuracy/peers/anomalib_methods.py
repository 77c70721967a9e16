"""anomalib's PatchCore and PaDiM, its own code from pixels to map, on the same backbone.

What Lightning's engine would do around them (loading files, moving to devices, normalising scores
with validation images) is left out: the models are fitted and asked directly. anomalib's own
resizing, feature extraction, coreset, distances, scores and maps are used as they are. Colours are
standardised as the backbone was trained, (pixel - 127) / 128.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from anomalib.models import Padim, Patchcore
from anomalib.pre_processing import PreProcessor
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.transforms.v2 import Compose, Normalize, Resize

from benchmarks.accuracy.baselines.feature_cache import keeps_features, remembering
from benchmarks.accuracy.baselines.imaging import to_image_size
from benchmarks.accuracy.peers.backbone import TIMM_LAYERS, TIMM_NAME, load_shipped_weights
from metaformer.networks.efficientnet import INPUT_MEAN, INPUT_STD

Image = NDArray[np.uint8]
BATCH = 32
"""anomalib's default batch, in training and in evaluation."""
BLUR_TOLERANCE = 1e-5
"""Of a blurred map in [0, 1]: rounding of float32."""
PARTS = {"evaluator": False, "visualizer": False, "post_processor": False}
"""Nothing after the model: raw scores and maps."""


@dataclass(frozen=True)
class AnomalibPatchCore:
    """anomalib's defaults but for the backbone, whose second and third level are used."""

    resolution: int = 256
    """anomalib's default: images are squeezed to squares, without a crop."""
    strides: tuple[int, ...] = (8, 16)
    coreset: float = 0.1
    """Share of patches kept; anomalib's default. At 1 all are kept as they come: choosing all of
    them one by one, as anomalib does, gives the same bank in another order."""
    neighbours: int = 9
    name: str = "anomalib-patchcore"

    @property
    def settings(self) -> dict[str, Any]:
        return asdict(self) | {"strides": list(self.strides), "backbone": TIMM_NAME}

    def fit(self, support: Sequence[Image], seed: int) -> FittedAnomalib:
        module = fresh_copy(patchcore_module(self))
        fit_patchcore(module, support, self.coreset, seed)
        return FittedAnomalib(module)


@dataclass(frozen=True)
class AnomalibPadim:
    """anomalib's defaults but for the backbone and its levels."""

    resolution: int = 256
    strides: tuple[int, ...] = (8, 16)
    """With stride 4, as published, there are four times the positions and it was worse: image
    AUROC 0.920 against 0.932 on ``cookie``, 4 images (40 test images, one seed)."""
    dimensions: int = 100
    """Channels kept, drawn at random; the paper's number for a small backbone."""
    name: str = "anomalib-padim"

    @property
    def settings(self) -> dict[str, Any]:
        return asdict(self) | {"strides": list(self.strides), "backbone": TIMM_NAME}

    def fit(self, support: Sequence[Image], seed: int) -> FittedAnomalib:
        module = fresh_copy(padim_module(self))
        generator = torch.Generator().manual_seed(seed)
        channels = torch.randperm(module.model.n_features_original, generator=generator)
        module.model.idx = channels[: self.dimensions]
        # With one image anomalib divides by zero and every score is NaN. The same image twice has
        # no spread, which leaves the regularisation: a distance from the image itself.
        remember(module, [support[0], support[0]] if len(support) == 1 else support)
        module.model.fit()
        module.eval()
        return FittedAnomalib(module)


@dataclass(frozen=True)
class FittedAnomalib:
    module: Any  # anomalib's Lightning module

    @torch.no_grad()
    def score(self, images: Sequence[Image]) -> list[tuple[float, NDArray[np.float32]]]:
        results = []
        for first in range(0, len(images), BATCH):
            batch = images[first : first + BATCH]
            output = self.module.model(prepare(self.module, batch))
            maps = output.anomaly_map[:, 0].numpy()  # (B, S, S)
            scores = output.pred_score.flatten().tolist()
            results += [
                (score, to_image_size(anomaly_map, image))
                for image, score, anomaly_map in zip(batch, scores, maps, strict=True)
            ]
        return results


@cache
def patchcore_module(method: AnomalibPatchCore) -> Any:
    """anomalib's module with our weights and an empty memory."""
    module = Patchcore(
        backbone=TIMM_NAME,
        layers=[TIMM_LAYERS[stride] for stride in method.strides],
        pre_trained=False,
        coreset_sampling_ratio=method.coreset,
        num_neighbors=method.neighbours,
        pre_processor=pre_processor(method.resolution),
        **PARTS,
    )
    _fill(module.model, method.strides)
    return module


@cache
def padim_module(method: AnomalibPadim) -> Any:
    module = Padim(
        backbone=TIMM_NAME,
        layers=[TIMM_LAYERS[stride] for stride in method.strides],
        pre_trained=False,
        n_features=method.dimensions,
        pre_processor=pre_processor(method.resolution),
        **PARTS,
    )
    _fill(module.model, method.strides)
    return module


def pre_processor(side: int) -> PreProcessor:
    """anomalib's default resize, then the colours that the backbone was trained on: anomalib's
    default would standardise by ImageNet's mean and deviation, which are another network's."""
    return PreProcessor(
        transform=Compose(
            [Resize((side, side), antialias=True), Normalize(list(INPUT_MEAN), list(INPUT_STD))]
        )
    )


def _fill(model: Any, strides: tuple[int, ...]) -> None:
    """Our weights; in a run that keeps features also the cheaper way to the same blur."""
    extractor = model.feature_extractor
    load_shipped_weights(extractor.feature_extractor, strides)
    if keeps_features():
        extractor.feature_extractor = remembering(extractor.feature_extractor)
        model.anomaly_map_generator.blur = SeparableBlur(model.anomaly_map_generator.blur)


class SeparableBlur(nn.Module):
    """anomalib's Gaussian blur in two passes: half the time of its PatchCore goes into one pass
    of 33 x 33. (B, 1, H, W) -> the same; raises ValueError if it were another blur."""

    def __init__(self, blur: Any) -> None:
        super().__init__()
        self.column = blur.kernel.sum(dim=3, keepdim=True)  # (1, 1, k, 1)
        self.row = blur.kernel.sum(dim=2, keepdim=True)
        self.padding = blur.padding_shape
        sample = torch.rand(1, 1, 48, 64, generator=torch.Generator().manual_seed(0))
        apart = float((self(sample) - blur(sample)).abs().max())
        if not apart < BLUR_TOLERANCE:
            raise ValueError(f"the blur in two passes differs by {apart:.1e} from anomalib's.")

    def forward(self, maps: Tensor) -> Tensor:
        padded = F.pad(maps, self.padding, mode="reflect")
        return F.conv2d(F.conv2d(padded, self.column), self.row)


def fresh_copy(module: Any) -> Any:
    """A copy for one product that shares the frozen backbone."""
    extractor = module.model.feature_extractor
    return copy.deepcopy(module, {id(extractor): extractor})


def fit_patchcore(module: Any, support: Sequence[Image], coreset: float, seed: int) -> None:
    remember(module, support)
    if coreset < 1:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # the coreset and its projection are drawn from these two
            np.random.seed(seed)  # noqa: NPY002
            module.model.subsample_embedding(coreset)
    else:
        module.model.memory_bank = torch.vstack(module.model.embedding_store)
        module.model.embedding_store.clear()
    module.eval()


@torch.no_grad()
def remember(module: Any, support: Sequence[Image]) -> None:
    """What a training epoch does: features of all images are collected in the module."""
    module.train()
    for first in range(0, len(support), BATCH):
        module.model(prepare(module, support[first : first + BATCH]))


def prepare(module: Any, images: Sequence[Image]) -> Tensor:
    """anomalib's pre-processing of images of any sizes -> (B, 3, S, S)."""
    transform = module.pre_processor.transform
    tensors = [torch.from_numpy(image).permute(2, 0, 1).float() / 255 for image in images]
    return torch.stack([transform(tensor) for tensor in tensors])
