"""The methods of the accuracy tables, by name: ours, the control, the baselines, the peers.

Every one is made when it is asked for. With ``keep_features`` ours, the control and our baselines
share what the backbone says of an image. anomalib's need an environment of their own
(``peers/README.md``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

from benchmarks.accuracy.baselines import PaDiM, PatchCore, PerPixel, ScratchAutoencoder
from benchmarks.accuracy.baselines.feature_cache import remembering
from benchmarks.accuracy.peers.anomaly_dino import AnomalyDino
from metaformer.detection.feature.config import (
    ALIGNED as ALIGNED_SETTINGS,
)
from metaformer.detection.feature.config import (
    FeatureConfig,
)
from metaformer.detection.feature.preset import FeaturePreset
from metaformer.detection.metaformer import Metaformer
from metaformer.evaluation.detector_method import DetectorMethod
from metaformer.evaluation.protocol import Method
from metaformer.networks.efficientnet import load_backbone

CONTROL = "nearest-patch"
EVERY_PATCH = 2**30
NEAREST_PATCH = FeatureConfig(
    transformer=False,
    cosine_share=0,
    mirrored_images=0,
    coreset_size=EVERY_PATCH,
    cosine_rows=EVERY_PATCH,
    principal_directions=0,
)
"""The plainest method on the same features: Euclidean distance of pooled features of strides 8 and
16 to the nearest of all support patches, the maximum as image score. What ``feature`` adds to it is
what the preset is worth."""
ALIGNED = FeatureConfig(aligned=True, **ALIGNED_SETTINGS)


@cache
def backbone_of(
    levels: tuple[int, ...], ahead: bool
) -> Any:  # a module that is a ``Backbone`` as well
    """The shipped backbone down to these levels, shared by all methods that ask for them."""
    return remembering(load_backbone(max(levels), ahead=ahead), min(levels))


def feature(name: str, config: FeatureConfig) -> DetectorMethod:
    """A detector of the ``feature`` preset with these settings."""
    preset = FeaturePreset(config, backbone_of(config.levels, config.corrects))
    return DetectorMethod(Metaformer(preset, "feature"), name=name)


def anomalib_patchcore(name: str, **settings: Any) -> Method:
    from benchmarks.accuracy.peers.anomalib_methods import AnomalibPatchCore

    return AnomalibPatchCore(name=name, **settings)


def anomalib_padim() -> Method:
    from benchmarks.accuracy.peers.anomalib_methods import AnomalibPadim

    return AnomalibPadim()


OURS = ("feature", "feature-aligned", "pixel", "pixel-aligned")
USUAL = ("feature", CONTROL, "patchcore", "padim", "pixel")
"""What a table has unless told otherwise."""
METHODS: dict[str, Callable[[], Method]] = {
    "feature": partial(feature, "feature", FeatureConfig()),
    "feature-aligned": partial(feature, "feature-aligned", ALIGNED),
    CONTROL: partial(feature, CONTROL, NEAREST_PATCH),
    "pixel": partial(DetectorMethod, "pixel"),
    "pixel-aligned": partial(DetectorMethod, "pixel", aligned=True, name="pixel-aligned"),
    "per-pixel": PerPixel,
    "autoencoder": ScratchAutoencoder,
    "patchcore": PatchCore,
    "patchcore-256": partial(PatchCore, name="patchcore-256", resolution=256),
    # What the architecture and random weights find by themselves: the bar for the pixel preset,
    # whose weights are its own too.
    "patchcore-untrained": partial(
        PatchCore, name="patchcore-untrained", trained=False, standardise=True
    ),
    "padim": PaDiM,
    "anomaly-dino": AnomalyDino,
    "anomaly-dino-256": partial(AnomalyDino, name="anomaly-dino-256", resolution=256),
    # Products that always lie the same way lose by turned supports.
    "anomaly-dino-upright": partial(AnomalyDino, name="anomaly-dino-upright", rotations=1),
    "anomalib-patchcore": partial(anomalib_patchcore, "anomalib-patchcore"),
    "anomalib-patchcore-all": partial(anomalib_patchcore, "anomalib-patchcore-all", coreset=1.0),
    # Deeper levels suit some materials better and others worse.
    "anomalib-patchcore-deep": partial(
        anomalib_patchcore, "anomalib-patchcore-deep", coreset=1.0, strides=(16, 32)
    ),
    "anomalib-padim": anomalib_padim,
}
