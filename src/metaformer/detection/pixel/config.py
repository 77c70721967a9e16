"""Settings of the ``pixel`` preset."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from metaformer.detection.feature.config import OVER_AUTOENCODER, FeatureConfig

Mode = Literal["fast", "long"]


@dataclass(frozen=True)
class PixelConfig:
    """How the universal model is adapted."""

    resolution: int = 256
    mode: Mode = "fast"
    """``fast``: the meta-learned steps of the autoencoder, seconds. ``long``: the autoencoder and
    the transformer are trained further on the support, minutes."""
    long_steps: int = 100
    """Steps of the autoencoder in the long mode beyond the meta-learned ones, at most."""
    transformer: bool | None = None
    """Whether the transformer corrects the map; None for the long mode alone, where it is trained
    on the product. As meta-trained it gains nothing on real products over the autoencoder's
    features (``docs/decisions/08-pixel-preset.md``)."""
    response: bool = True
    """Whether the transformer knows the response map. This and the next two are False to see what a
    part is worth."""
    gap: bool = True
    """Whether the transformer reads where image and features differ from what is rebuilt of
    them."""
    adaptation: bool = True
    """Whether steps of the autoencoder, and of the transformer in the long mode, are taken on the
    support. Without, it is in the memory bank alone and sets the autoencoder's moments."""
    aligned: bool = False
    """Every image shows the part in the same place: patches are compared with support patches
    around their place only, on finer grids, and the image pixel by pixel. Without the
    transformer."""

    def __post_init__(self) -> None:
        if self.aligned and self.mode != "fast":
            raise ValueError("aligned works only in the fast mode of the pixel preset.")

    @property
    def comparison(self) -> FeatureConfig:
        """How the autoencoder's features are compared with those of the support."""
        levels: dict[str, Any] = {"levels": (4, 8), "level_weights": (1.0, 1.0)}
        return replace(
            OVER_AUTOENCODER,
            resolution=self.resolution,
            aligned=self.aligned,
            transformer=self.mode == "long" if self.transformer is None else self.transformer,
            gap=self.gap,
            **(levels if self.aligned else {}),
        )

    @property
    def is_long(self) -> bool:
        """Whether more than the meta-learned steps are taken."""
        return self.adaptation and self.mode == "long"

    @property
    def score_share(self) -> float:
        """The image score is the maximum of the map."""
        return 0.0

    @property
    def corrects(self) -> bool:
        """Whether the transformer corrects the map."""
        return self.comparison.corrects

    @property
    def parts(self) -> dict[str, str]:
        """Part that can be left out -> the setting that is False without it."""
        of_transformer = ("transformer", "response", "gap") if self.corrects else ()
        return {part: part for part in (*of_transformer, "adaptation")}
