"""Settings of the ``pixel`` preset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mode = Literal["fast", "long"]


@dataclass(frozen=True)
class PixelConfig:
    """How the universal model is adapted."""

    resolution: int = 256
    mode: Mode = "fast"
    """``fast``: the meta-learned steps of the autoencoder, seconds; the map is the one before the
    transformer, which as meta-trained marks pixels better and ranks images worse
    (``docs/decisions/08-pixel-preset.md``). ``long``: the autoencoder and the transformer are
    trained on the support, and the map is the transformer's."""
    long_steps: int = 100
    """Steps of the autoencoder in the long mode beyond the meta-learned ones, at most."""
    gap: bool = False
    """Whether the reconstruction gap contributes to the map of the fast mode. After
    the few steps of that mode the autoencoder rebuilds too little of an image for it to help
    (``docs/decisions/08-pixel-preset.md``). The long mode always reads it."""
    transformer: bool = True
    """Whether the transformer corrects the map in the long mode. This and the next three are False
    to see what a part is worth."""
    response: bool = True
    """Whether the transformer knows the response map; otherwise it takes the object to be
    everywhere."""
    reconstruction: bool = True
    """Whether the long mode reads the gap; otherwise the image stands for its reconstruction."""
    adaptation: bool = True
    """Whether steps of the autoencoder, and of the transformer in the long mode, are taken on the
    support. Without, it is in the memory alone and sets the autoencoder's moments."""
    aligned: bool = False
    """Every image shows the part in the same place: the map is multiplied by the gap to the likest
    of the support images, pixel by pixel. Of the fast mode."""
    max_templates: int = 16
    """Support images that are kept for that, drawn at random."""
    max_images: int = 64
    """Support images that tokens are kept of, drawn at random."""
    max_tokens: int = 4096
    """Tokens of the support kept at each level, drawn at random."""
    attention_tokens: int = 2048
    """Tokens of the support that the transformer attends to, drawn at random."""
    score_share: float = 0.01
    sigma: float = 1.0
    """Gaussian blur of the map, in cells of stride 4."""

    def __post_init__(self) -> None:
        if self.aligned and self.mode != "fast":
            raise ValueError("aligned comparison of the pixel preset is of its fast mode.")

    @property
    def corrects(self) -> bool:
        """Whether the transformer corrects the map."""
        return self.mode == "long" and self.transformer

    @property
    def rebuilds(self) -> bool:
        """Whether images are rebuilt, for the gap."""
        return self.gap or self.mode == "long"

    @property
    def parts(self) -> dict[str, str]:
        """Part that can be left out -> the setting that is False without it."""
        if self.mode == "long":
            of_transformer = {"transformer": "transformer", "response": "response"}
            return of_transformer | {"gap": "reconstruction", "adaptation": "adaptation"}
        return ({"gap": "gap"} if self.gap else {}) | {"adaptation": "adaptation"}
