"""The universal model of a preset, from which a detector is adapted to a product."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from metaformer.detection.adaptation import adapt_to_support
from metaformer.detection.detector import Detector
from metaformer.detection.feature.config import SHIPPED
from metaformer.detection.feature.preset import FeaturePreset
from metaformer.detection.pixel.config import Mode
from metaformer.detection.preset import Preset
from metaformer.detection.presets import PresetName, make_preset, resolution_setting
from metaformer.detection.scoring.calibration import check_rate
from metaformer.detection.support.given_images import ImageSource, SupportImages, support_sources
from metaformer.detection.support.support_set import (
    SupportRecord,
    choose_white_level,
    describe_source,
    warn_about_odd,
    when_and_with_what,
)
from metaformer.io.images import read_image
from metaformer.networks.custom_backbone import CustomBackbone
from metaformer.networks.efficientnet import Colours
from metaformer.networks.instance_prior import InstancePrior, load_prior


class Metaformer:
    """The universal model: knows no product yet.

    >>> universal = Metaformer.from_pretrained()
    >>> detector = universal.adapt("photos/good")
    >>> detector.predict("photos/new/0017.jpg").score
    """

    def __init__(self, model: Preset[Any], preset: PresetName) -> None:
        self.model = model
        self.preset = preset

    @classmethod
    def from_pretrained(
        cls,
        preset: PresetName = "feature",
        *,
        resolution: int | None = None,
        aligned: bool = False,
        backbone: str = SHIPPED,
        backbone_weights: Path | str | None = None,
        download: bool = False,
        mode: Mode = "fast",
        universal_weights: Path | str | None = None,
        device: str = "cpu",
    ) -> Metaformer:
        """The model with the weights inside the package; nothing is downloaded unless asked for.

        Args:
            preset: ``feature`` compares patch features of a backbone pretrained on ImageNet,
                ``pixel`` is the paper's system trained from scratch.
            resolution: images are resized to about this many pixels squared, aspect kept; the
                preset's own (256; of a ViT 32 patches) if None. More finds smaller defects and
                takes longer.
            aligned: every image shows the part in the same place (fixed camera and fixture, or a
                golden sample): compare place by place.
            backbone: of the ``feature`` preset: the one inside the package, or a model of timm,
                ``vit_small_patch14_dinov2.lvd142m`` for example (``docs/backbones.md``).
            backbone_weights: safetensors file for a model of timm; if None, it is looked for in
                the folder that METAFORMER_WEIGHTS names and in the Hugging Face cache.
            download: fetch such weights from the Hugging Face hub if they are nowhere else.
            mode: of the ``pixel`` preset: ``fast`` takes the meta-learned steps, ``long`` trains
                the transformer on synthetic defects of the support too, which takes minutes.
            universal_weights: of the ``pixel`` preset: folder with the weights and card that
                ``metaformer pretrain universal`` wrote, instead of those inside the package.
            device: that the backbone of the ``feature`` preset computes on, ``cuda`` for example.

        Raises:
            ValueError: no such preset, a resolution outside 64 to 2048, an option of the other
                preset, weights that cannot be used, or a ``BackboneError``: the backbone or its
                weights cannot be used, or a ``DeviceError``: there is no such device.
        """
        model = make_preset(
            preset,
            resolution=resolution,
            aligned=aligned,
            backbone=backbone,
            backbone_weights=None if backbone_weights is None else Path(backbone_weights),
            download=download,
            mode=mode,
            universal_weights=None if universal_weights is None else Path(universal_weights),
            device=device,
        )
        return cls(model, preset)

    @classmethod
    def from_backbone(
        cls,
        module: nn.Module,
        *,
        levels: Sequence[int] | None = None,
        mean: Colours = (0.0, 0.0, 0.0),
        std: Colours = (1.0, 1.0, 1.0),
        level_weights: Sequence[float] | None = None,
        resolution: int | None = None,
        aligned: bool = False,
        device: str = "cpu",
    ) -> Metaformer:
        """The ``feature`` preset with a network of your own in place of the backbone.

        Its weights stay outside detector files, which hold their digest: give the module again to
        ``Detector.load``.

        Args:
            module: takes images (B, 3, H, W) and returns one feature map (B, C, h, w), or a list,
                tuple or mapping of them. A frozen copy is used.
            levels: strides of the maps to compare, the finest first; all of them if None.
            mean: of each colour in [0, 1], subtracted before the module sees an image.
            std: of each colour, that it is then divided by.
            level_weights: weight of each level; equal ones if None.
            resolution: as for ``from_pretrained``.
            aligned: as for ``from_pretrained``.
            device: as for ``from_pretrained``.

        Raises:
            BackboneError: the module cannot be run, or gives no maps of these strides.
            ValueError: a resolution outside 64 to 2048, or not as many weights as levels.
            DeviceError: there is no such device.
        """
        settings = resolution_setting(resolution)
        model = FeaturePreset.from_backbone(
            CustomBackbone(module, levels=levels, mean=mean, std=std),
            level_weights=level_weights,
            device=device,
            aligned=aligned,
            **settings,
        )
        return cls(model, "feature")

    def __repr__(self) -> str:
        config = self.model.config
        backbone = getattr(config, "backbone", None)
        named = "" if backbone is None else f", {backbone}"
        aligned = ", aligned" if config.aligned else ""
        return f"Metaformer({self.preset}{named}, {config.resolution} pixels{aligned})"

    def adapt(
        self,
        images: SupportImages,
        *,
        false_alarm_rate: float = 0.05,
        seed: int = 0,
        white_level: int | None = None,
        on_step: Callable[[int, int], None] = lambda done, total: None,
    ) -> Detector:
        """Adapt to a product from normal images.

        Args:
            images: a folder of normal images, an archive, a video, a list ``@FILE``, several of
                them as ``Sources``, or a sequence of paths, arrays (H, W, 3) uint8 RGB, tensors
                (3, H, W), encoded bytes or Pillow images. One is enough; ten are better; see
                ``Detector.calibration.guarantee`` for what their number can promise.
            false_alarm_rate: share of good parts that may be flagged.
            seed: of everything random in adaptation.
            white_level: value of 16-bit images that means white, 1 to 65535 (12-bit cameras: 4095);
                guessed from the images if None, unknown if none of them is 16-bit.
            on_step: called with (steps done, steps in all).

        Returns:
            A detector for this product. Warns with ``OddSupportWarning`` about images that look
            unlike the rest; they are used all the same.

        Raises:
            ImageError: an image cannot be read, or there is none.
            ValueError: no images, the root of a data set, a rate outside (0, 1), or a white level
                outside 1 to 65535.
        """
        check_rate(false_alarm_rate)
        sources = support_sources(images)
        white_level = choose_white_level(white_level, None, sources)
        record = SupportRecord()

        def read_each() -> Iterator[NDArray[np.uint8]]:
            for i, source in enumerate(sources):
                pixels = read_image(source, white_level=white_level)
                if record.take_in(describe_source(source, i), pixels):
                    yield pixels

        result = adapt_to_support(
            self.model,
            read_each(),
            count=len(sources),
            false_alarm_rate=false_alarm_rate,
            seed=seed,
            on_step=on_step,
        )
        provenance = {
            "preset": self.preset,
            "seed": seed,
            "white_level": white_level,
            "support": record.images,
            "support_scores": [asdict(score) for score in result.support_scores],
            **when_and_with_what(),
        }
        record.warn()
        warn_about_odd(result.support_scores, [image["name"] for image in record.images])
        return Detector(
            self.model, result.adapted, result.calibration, provenance, tuple(record.thumbnails)
        )

    def response_map(
        self, image: ImageSource, *, white_level: int | None = None
    ) -> NDArray[np.float32]:
        """The response map of an image: where its object is, as the prior sees it.

        Args:
            image: as ``read_image`` takes it.
            white_level: of a 16-bit image, as for ``adapt``; guessed from this image if None.

        Returns:
            (H, W) in [0, 1] at the image's own size; arbitrary where there is no object, as on a
            texture. The long mode of ``pixel`` reads it.

        Raises:
            ImageError: the image cannot be read.
            ValueError: a white level outside 1 to 65535.
        """
        white_level = choose_white_level(white_level, None, [image])
        read = read_image(image, white_level=white_level)
        pixels = torch.from_numpy(read).permute(2, 0, 1)[None]  # (1, 3, H, W)
        with torch.inference_mode():
            return np.asarray(self.prior(pixels.float() / 255)[0, 0].numpy(), np.float32)

    @cached_property
    def prior(self) -> InstancePrior:
        """The prior with the weights inside the package, read when first asked for."""
        return load_prior()
