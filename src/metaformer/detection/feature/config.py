"""How the ``feature`` preset makes and compares tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from metaformer.networks.patch_metric import ALL_READINGS, CONTEXT, PART, RAW, Shares

SHIPPED = "efficientnet_lite0"
"""The backbone inside the package."""
SCORING = Shares(pooled=0.5, part=0.1, here=0.2)
MARKING = Shares(
    pooled=0.4, wide=0.3, part=0.05, context=1.25, context_added=1.0, here=0.25, raw=0.1
)
"""Shares in the two maps (``docs/decisions/05-fusion-weights.md``, ``06``)."""


@dataclass(frozen=True)
class FeatureConfig:
    """How tokens are made and compared."""

    resolution: int = 256
    """Images are resized to about this many pixels squared, aspect kept; where they come in many
    sizes, to at most twice as many."""
    usual_side: float | None = None
    """Of a product whose images come in many sizes, how long a typical one is (the root of its
    pixels). None: sizes say nothing."""
    size_kept: float = 0.0
    """How much of an image's size stays then, 0 (all are worked at with one area) to 1 (at one
    scale; ``detection/feature/scale.py``)."""
    shared_areas: tuple[int, ...] = ()
    """Numbers of pixels of images whose size says nothing nevertheless: they are photos of cameras
    that the support has some of, too."""
    levels: tuple[int, ...] = (8, 16)
    """Strides of the backbone whose tokens are compared."""
    level_weights: tuple[float, ...] = (0.5, 1.0)
    """Weight of each level's distance in the map of the plain comparison: stride 16 tells defects
    from variation best, stride 8 finds the small ones
    (``docs/decisions/03-learned-metric.md``)."""
    learned: bool = True
    """Compare in the meta-learned metric, which knows strides 8 and 16 of the shipped backbone
    (``docs/decisions/03-learned-metric.md``)."""
    maps: tuple[Shares, ...] = (SCORING, MARKING)
    """How the learned metric's distances make the map that images are scored by, and that which
    marks pixels; one serves for both. Without the metric there is one map of another kind."""
    transformer: bool = False
    """Let T correct the maps. It has learned to read the distances of the learned metric, and is
    not used without it. Off: it wins on photos and synthetic defects and loses on real ones
    (``docs/decisions/09-transformer.md``)."""
    aligned: bool = False
    """Compare each token only with support tokens around the same place: for a fixed camera and a
    fixed part, or a test image with its golden sample. Finds what is normal elsewhere but not
    here; useless if parts move."""
    reach: int = 8
    """Pixels that an aligned part may be out of place, at the working resolution."""
    max_tokens: int = 20_000
    """Support tokens kept per reading; beyond it a seeded random choice stands for all."""
    compared_tokens: int = 1_024
    """Of those, and of the tokens of views, so many are compared with, for each product that the
    support shows; a random choice of all of them together again. A fraction of all does as well
    (``docs/decisions/04-memory-size.md``, ``05``), and takes that
    fraction of the time. Not of aligned detectors, which compare at a place."""
    means: bool = True
    """Of a memory cut to ``max_tokens``, tokens compared with are means of the remembered tokens
    nearest to each of the random choice, which many images gain by
    (``docs/decisions/04-memory-size.md``)."""
    averaged_tokens: int = 8_192
    """Remembered tokens that these are means of. With more the gain is a little larger, and the
    time far (``docs/decisions/04-memory-size.md``)."""
    places: int = 16
    """With so many normal images or more, and the learned metric, what is normal place by place is
    learned too (``docs/decisions/06-position.md``). 0: never."""
    own: float = 0.5
    """To what power the map is lowered where a token has its like elsewhere on the image, and a
    nearer one than is remembered (``docs/decisions/07-self-similarity.md``). 0: not at all. Of the
    learned metric."""
    score_share: float = 0.01
    """The image score is the mean of this share of the highest cells."""
    sigma: float = 0.6
    """Gaussian blur of the map, in cells of the finest level
    (``docs/decisions/05-fusion-weights.md``)."""
    backbone: str = SHIPPED
    """The backbone inside the package, or timm's name of another (``docs/backbones.md``)."""
    backbone_sha256: str | None = None
    """Of the weights of another backbone; they stay outside detector files."""

    def __post_init__(self) -> None:
        is_side = self.usual_side is None or 0 < self.usual_side < math.inf
        are_areas = all(isinstance(area, int) and area > 0 for area in self.shared_areas)
        if not is_side or not 0 <= self.size_kept <= 1 or not are_areas:
            raise ValueError(
                f"sizes: found usual_side {self.usual_side}, size_kept {self.size_kept} and "
                f"shared_areas {self.shared_areas}; accepted are None or a number above 0, a "
                f"number from 0 to 1, and numbers of pixels."
            )
        if not 0 <= self.own <= 1:
            raise ValueError(f"own: found {self.own}; accepted are numbers from 0 to 1.")
        if not 1 <= len(self.maps) <= 2:
            raise ValueError(
                f"maps: found {len(self.maps)}; accepted are one and two: to score images by, and "
                f"to mark pixels."
            )
        if self.learned and (self.aligned or self.levels != (8, 16) or self.backbone != SHIPPED):
            raise ValueError(
                f"learned: found with levels {self.levels}, aligned {self.aligned} and backbone "
                f"{self.backbone}; accepted with it are levels (8, 16) of {SHIPPED}, not aligned."
            )

    @property
    def corrects(self) -> bool:
        """Whether T corrects the map."""
        return self.learned and self.transformer

    @property
    def has_context(self) -> bool:
        """Whether stride 32 has a share in a map of the learned metric."""
        return self.learned and not {CONTEXT, PART}.isdisjoint(self.readings)

    @property
    def has_same_place(self) -> bool:
        """Whether tokens are also compared with what other images show at the same place."""
        return self.learned and RAW in self.readings

    @property
    def has_own(self) -> bool:
        """Whether tokens are also compared with those elsewhere on the image; not where T corrects
        the map, for it was trained without."""
        return self.learned and not self.transformer and self.own > 0

    @property
    def searched(self) -> tuple[str, ...]:
        """Readings compared with the nearest token wherever it lies."""
        return tuple(name for name in self.readings if name != RAW)

    @property
    def readings(self) -> tuple[str, ...]:
        """What an image is read as, the finest grid first."""
        if not self.learned:
            return tuple(str(level) for level in self.levels)
        asked = {name for shares in self.maps for name in shares.readings}
        return tuple(name for name in ALL_READINGS if name in asked)

    def reach_cells(self, level: int) -> int:
        """Cells of ``level`` that an aligned part may be out of place."""
        return -(-self.reach // level)


PLAIN = FeatureConfig(learned=False, compared_tokens=2_000, means=False, own=0.0, sigma=1.0)
"""Without the learned metric: other backbones, and the control that the metric has to beat."""
ALIGNED = replace(PLAIN, levels=(4, 8), level_weights=(1.0, 1.0), aligned=True)
"""For parts that stand in the same place: fine levels, since place tells apart what looks alike
(``docs/decisions/06-position.md``)."""
