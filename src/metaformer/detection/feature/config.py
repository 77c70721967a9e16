"""Settings of the ``feature`` preset."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from metaformer.detection.feature.gap_distances import OF_AUTOENCODER, OF_BACKBONE, Readings
from metaformer.detection.scoring.frame_check import OF_DIRECTIONS, OF_STRENGTH, FrameRule
from metaformer.networks.efficientnet import INPUT_MEAN, INPUT_STD, Colours

SHIPPED = "efficientnet_lite0"
"""The backbone inside the package."""
AUTOENCODER = "autoencoder"
"""The backbone of the ``pixel`` preset: its autoencoder, fitted to the product."""
TRAINED_ON = {SHIPPED: OF_BACKBONE, AUTOENCODER: OF_AUTOENCODER}
"""Backbones that a transformer was trained on."""
GRAPHS = {SHIPPED: "feature", AUTOENCODER: "pixel"}
"""Names of the graphs inside the package, of the settings that are usual with each backbone."""

TYPICAL_LOG, TYPICAL_OF_COUNT, TYPICAL_OF_SIDE, TYPICAL_SIDE = 2.774, 0.067, 0.25, 256
"""Mean logarithm of the raw score of good images with one support image, how much it falls with the
logarithm of their number, and rises with that of the resolution over ``TYPICAL_SIDE``. Mean of
eight sets, or six (``docs/decisions/01-threshold.md``)."""


@dataclass(frozen=True)
class FeatureConfig:
    """How patch features are made and compared. The values were chosen by
    ``benchmarks/ablations/leave_one_product_out.py`` (``docs/decisions/10-measured-core.md``)."""

    resolution: int = 256
    """Images are resized to about this many pixels squared, aspect kept."""
    levels: tuple[int, ...] = (8, 16)
    """Strides of the backbone whose patch features are compared, the finest first."""
    level_weights: tuple[float, ...] = (0.5, 1.0)
    """Weight of each level in the mean cosine distance."""
    cosine_share: float = 0.2
    """Exponent of the cosine distance in the map; the Euclidean distance has the rest."""
    cosine_floor: float = 1e-3
    """Added to the cosine distance: a patch that points just as a support patch does would
    otherwise silence the Euclidean distance."""
    coreset_size: int = 1_024
    """Most pooled patch features of a memory bank that an image is compared with."""
    cosine_rows: int = 512
    """The same of each level that is compared by direction."""
    principal_directions: int = 48
    """Euclidean distances are measured in so many directions; 0 for all."""
    max_patches: int = 20_000
    """Most patch features that are stored, at each level, so that more images can be added."""
    mirrored_images: int = 10
    """Largest support whose mirrored images also enter the memory bank."""
    score_share: float = 0.0
    """The image score is the mean of this share of the highest cells; 0 for the maximum."""
    sigma: float = 0.6
    """Gaussian blur of the map, in cells of the finest level."""
    aligned: bool = False
    """Compare each patch with support patches around the same place only: for a fixed camera and a
    fixed part, or a test image with its golden sample."""
    transformer: bool = True
    """Let the transformer correct the map. The corrected map marks pixels and has half of the
    image score. The transformer was trained on the backbones inside the package; others and aligned
    detectors go without."""
    gap: bool = True
    """Whether the transformer reads where features, and the image, differ from what is rebuilt of
    them; False to see what that is worth."""
    reach: int = 8
    """Pixels that an aligned part may be out of place, at the working resolution."""
    backbone: str = SHIPPED
    """The backbone inside the package, or timm's name of another (``docs/backbones.md``)."""
    backbone_sha256: str | None = None
    """Of the weights of a backbone of timm; they stay outside detector files."""
    input_mean: Colours = INPUT_MEAN
    input_std: Colours = INPUT_STD
    """Of each colour in [0, 1]: what the shipped backbone's pixels are standardised by. A backbone
    of timm has its own."""

    def __post_init__(self) -> None:
        if not self.levels or len(self.levels) != len(self.level_weights):
            raise ValueError(
                f"levels {self.levels} need as many level_weights, found {self.level_weights}."
            )
        for name in ("cosine_share", "score_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"{name}: found {getattr(self, name)}; accepted are numbers from 0 to 1."
                )

    @property
    def readings(self) -> Readings | None:
        """What the transformer reads; None where it has no say."""
        is_trained_on = self.levels == (8, 16) and 0 < self.cosine_share < 1
        if not self.transformer or self.aligned or not is_trained_on:
            return None
        return TRAINED_ON.get(self.backbone)

    @property
    def frame_rule(self) -> FrameRule:
        """How the frame check compares frames."""
        return OF_DIRECTIONS if self.backbone == AUTOENCODER else OF_STRENGTH

    @property
    def graph(self) -> str | None:
        """Name of the shipped graph that computes with these settings, if there is one."""
        elsewhere = (
            "resolution",
            "coreset_size",
            "cosine_rows",
            "principal_directions",
            "max_patches",
            "mirrored_images",
        )
        usual = {SHIPPED: FeatureConfig(), AUTOENCODER: OVER_AUTOENCODER}.get(self.backbone)
        if usual is None:
            return None
        same = replace(self, **{name: getattr(usual, name) for name in elsewhere})
        return GRAPHS[self.backbone] if same == usual else None

    @property
    def corrects(self) -> bool:
        """Whether the transformer has a say."""
        return self.readings is not None

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the backbone that are read."""
        return self.levels if self.readings is None else self.readings.strides

    def typical_score(self, count: int) -> float | None:
        """Raw score of a good image of a typical product with ``count`` support images; None for
        settings that it was not measured for."""
        if self.backbone != SHIPPED or not self.corrects:
            return None
        finer = TYPICAL_OF_SIDE * math.log(self.resolution / TYPICAL_SIDE)
        return math.exp(TYPICAL_LOG + finer - TYPICAL_OF_COUNT * math.log(count))

    def reach_cells(self, level: int) -> int:
        """``reach`` in cells of ``level``, at least one."""
        return max(1, round(self.reach / level))


OVER_AUTOENCODER = FeatureConfig(
    transformer=False,
    mirrored_images=0,
    coreset_size=2_048,
    cosine_rows=2_048,
    principal_directions=64,
    cosine_share=0.5,
    backbone=AUTOENCODER,
)
"""What the ``pixel`` preset compares in its fast mode."""
ALIGNED: dict[str, Any] = {
    "levels": (4, 8),
    "level_weights": (1.0, 1.0),
    "cosine_share": 1.0,
    "cosine_floor": 0.0,
    "sigma": 1.0,
}
"""Settings for parts that stand in the same place: fine levels, compared by direction, since the
place tells apart what looks alike (``docs/decisions/06-position.md``)."""
