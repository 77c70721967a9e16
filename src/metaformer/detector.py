"""The two objects a user meets: the universal ``Metaformer`` and an adapted ``Detector``."""

from __future__ import annotations

import hashlib
import platform
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage
from torch import Tensor

from metaformer.adaptation import (
    Adapted,
    Model,
    SupportScore,
    adapt_to_support,
    at_working_size,
    prepare,
    raw_map,
)
from metaformer.backbone_weights import BackboneError
from metaformer.calibration import Calibration
from metaformer.detector_file import DetectorFileError, read_detector_file, write_detector_file
from metaformer.feature_model import SHIPPED, AdaptedFeature, FeatureConfig, FeatureModel
from metaformer.images import (
    IMAGE_SUFFIXES,
    ImageError,
    guess_white_level,
    list_images,
    read_image,
)
from metaformer.pixel_model import AdaptedPixel, PixelConfig, PixelModel
from metaformer.preprocess import image_score, to_image_size
from metaformer.prior import InstancePrior, load_prior
from metaformer.regions import find_regions
from metaformer.results import Prediction
from metaformer.timm_backbone import level_settings, load_timm_backbone

Preset = Literal["feature", "pixel"]
PRESETS: tuple[Preset, ...] = ("feature", "pixel")
ImageSource = Path | str | bytes | NDArray[Any] | PillowImage.Image


class OddSupportWarning(UserWarning):
    """A support image looks unlike the rest: perhaps a defect, perhaps another product."""


class Metaformer:
    """The universal model: knows no product yet.

    >>> universal = Metaformer.from_pretrained()
    >>> detector = universal.adapt("photos/good")
    >>> detector.predict("photos/new/0017.jpg").score
    """

    def __init__(self, model: Model, preset: Preset) -> None:
        self.model = model
        self.preset = preset

    @classmethod
    def from_pretrained(
        cls,
        preset: Preset = "feature",
        *,
        resolution: int | None = None,
        aligned: bool = False,
        backbone: str = SHIPPED,
        backbone_weights: Path | str | None = None,
        download: bool = False,
    ) -> Metaformer:
        """The model with the weights inside the package; nothing is downloaded unless asked for.

        Args:
            preset: ``feature`` compares tokens of a backbone pretrained on ImageNet, ``pixel`` is
                the paper's system trained from scratch.
            resolution: images are resized to about this many pixels squared, aspect kept; the
                preset's own (256; of a ViT 32 patches) if None. More finds smaller defects and
                takes longer.
            aligned: every image shows the part in the same place (fixed camera and fixture, or a
                golden sample): compare place by place. For the ``feature`` preset.
            backbone: of the ``feature`` preset: the one inside the package, or a model of timm,
                ``vit_small_patch14_dinov2.lvd142m`` for example (``docs/backbones.md``).
            backbone_weights: safetensors file for a model of timm; if None, it is looked for in
                the folder that METAFORMER_WEIGHTS names and in the Hugging Face cache.
            download: fetch such weights from the Hugging Face hub if they are nowhere else.

        Raises:
            ValueError: no such preset, a resolution outside 64 to 2048, ``aligned`` or another
                backbone with the ``pixel`` preset, or a ``BackboneError``: the backbone or its
                weights cannot be used.
        """
        if resolution is not None and not 64 <= resolution <= 2048:
            raise ValueError(f"resolution must lie between 64 and 2048 pixels, got {resolution}.")
        changes: dict[str, Any] = {} if resolution is None else {"resolution": resolution}
        if preset == "feature":
            changes["aligned"] = aligned
            file = None if backbone_weights is None else Path(backbone_weights)
            if backbone == SHIPPED:
                config = replace(FeatureConfig(), **changes)
                return cls(FeatureModel.from_pretrained(config, backbone_weights=file), preset)
            network = load_timm_backbone(backbone, weights=file, download=download)
            config = replace(FeatureConfig(**level_settings(network)), **changes)
            return cls(FeatureModel(config, network), preset)
        if preset == "pixel":
            if aligned:
                raise ValueError("aligned comparison needs the feature preset.")
            if backbone != SHIPPED or backbone_weights is not None:
                raise ValueError("the pixel preset has no backbone; choose the feature preset.")
            return cls(PixelModel.from_pretrained(replace(PixelConfig(), **changes)), preset)
        raise ValueError(f'no preset "{preset}": choose {" or ".join(PRESETS)}.')

    def adapt(
        self,
        images: Path | str | Sequence[ImageSource],
        *,
        false_alarm_rate: float = 0.05,
        seed: int = 0,
        on_step: Callable[[int, int], None] = lambda done, total: None,
    ) -> Detector:
        """Adapt to a product from normal images.

        Args:
            images: a folder of normal images, or a sequence of paths, arrays (H, W, 3) uint8 RGB,
                encoded bytes or Pillow images. One is enough; ten are better; see
                ``Detector.calibration.guarantee`` for what their number can promise.
            false_alarm_rate: share of good parts that may be flagged.
            seed: of everything random in adaptation.
            on_step: called with (steps done, steps in all).

        Returns:
            A detector for this product. Warns with ``OddSupportWarning`` about images that look
            unlike the rest; they are used all the same.

        Raises:
            ImageError: an image cannot be read, or the folder holds none.
            ValueError: no images, or a rate outside (0, 1).
        """
        sources: Sequence[ImageSource]
        sources = list_images(images) if isinstance(images, (str, Path)) else list(images)
        if isinstance(images, (str, Path)) and not sources:
            endings = ", ".join(sorted(IMAGE_SUFFIXES))
            raise ImageError(
                str(images),
                f"no images in this folder (by their endings: {endings}). Give the folder that "
                f"holds the normal images itself.",
            )
        white_level = guess_white_level(sources)
        digests: list[str] = []

        def read_each() -> Iterator[NDArray[np.uint8]]:
            for source in sources:
                pixels = read_image(source, white_level=white_level)
                digests.append(hashlib.sha256(pixels.tobytes()).hexdigest())
                yield pixels

        result = adapt_to_support(
            self.model,
            read_each(),
            count=len(sources),
            false_alarm_rate=false_alarm_rate,
            seed=seed,
            on_step=on_step,
        )
        names = [describe_source(source, i) for i, source in enumerate(sources)]
        made = {
            "preset": self.preset,
            "seed": seed,
            "white_level": white_level,
            "support": [
                {"name": name, "sha256": digest}
                for name, digest in zip(names, digests, strict=True)
            ],
            "support_scores": [asdict(score) for score in result.support_scores],
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {
                "metaformer-ad": version("metaformer-ad"),
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }
        warn_about_odd(result.support_scores, names)
        return Detector(self.model, result.adapted, result.calibration, made)

    def response_map(self, image: ImageSource) -> NDArray[np.float32]:
        """The response map R of an image: where its object is, as P sees it.

        Args:
            image: as ``read_image`` takes it.

        Returns:
            (H, W) in [0, 1] at the image's own size; arbitrary where there is no object, as on a
            texture. No preset uses it for its scores yet.

        Raises:
            ImageError: the image cannot be read.
        """
        pixels = torch.from_numpy(read_image(image)).permute(2, 0, 1)[None]  # (1, 3, H, W)
        with torch.inference_mode():
            return np.asarray(self.prior(pixels.float() / 255)[0, 0].numpy(), np.float32)

    @cached_property
    def prior(self) -> InstancePrior:
        """P with the weights inside the package, read when first asked for."""
        return load_prior()


class Detector:
    """A model adapted to one product, with its threshold. Made by ``Metaformer.adapt``."""

    def __init__(
        self, model: Model, adapted: Adapted, calibration: Calibration, made: dict[str, Any]
    ) -> None:
        self.model = model
        self.adapted = adapted
        self.calibration = calibration
        self.made = made
        self.engine: Callable[[Tensor], Tensor] | None = None
        """(1, 3, H, W) at the working size -> (1, h, w) raw map; None for PyTorch. See
        ``metaformer.engines``."""

    def predict(self, image: ImageSource) -> Prediction:
        """Score one image and mark its defective pixels.

        Args:
            image: a path, an array (H, W, 3) uint8 RGB or any other that ``read_image`` takes,
                encoded bytes, or a Pillow image. The result depends on this image alone.

        Raises:
            ImageError: the image cannot be read.
        """
        pixels = read_image(image, white_level=self.made["white_level"])
        path = str(image) if isinstance(image, (str, Path)) else None
        return self.predict_pixels(pixels, path)

    def predict_pixels(self, pixels: NDArray[np.uint8], path: str | None = None) -> Prediction:
        """``predict`` for an image already read, (H, W, 3) uint8 RGB."""
        raw, raw_pixels = self.score_pixels(pixels)
        calibration = self.calibration
        is_anomalous = raw >= calibration.threshold
        anomaly_map = calibration.map(raw_pixels)
        del raw_pixels  # of a large photo it takes as much memory as the whole program
        mask = (anomaly_map >= 0.5) & is_anomalous
        return Prediction(
            score=calibration.score(raw),
            raw_score=raw,
            p_value=calibration.p_value(raw),
            is_anomalous=bool(is_anomalous),
            anomaly_map=anomaly_map,
            mask=mask,
            regions=find_regions(mask, anomaly_map),
            path=path,
        )

    def score_pixels(self, pixels: NDArray[np.uint8]) -> tuple[float, NDArray[np.float32]]:
        """Raw score and raw (H, W) map of an image (H, W, 3) uint8 RGB, before calibration."""
        if self.engine is None:
            grid = raw_map(self.model, self.adapted, prepare(self.model, pixels))  # (h, w)
        else:
            grid = self.engine(at_working_size(self.model, pixels))[0]
        score = image_score(grid, self.model.config.score_share)
        return score, to_image_size(grid, pixels.shape)

    def predict_many(self, images: Iterable[ImageSource]) -> Iterator[Prediction]:
        """``predict`` for each image in turn, holding one in memory at a time."""
        for image in images:
            yield self.predict(image)

    def with_false_alarm_rate(self, rate: float) -> Detector:
        """The same detector with the threshold for another rate; nothing is computed anew."""
        calibration = self.calibration.with_false_alarm_rate(rate)
        same = Detector(self.model, self.adapted, calibration, self.made)
        same.engine = self.engine
        return same

    def info(self) -> dict[str, Any]:
        """How the detector was made and what its threshold promises, ready for JSON."""
        _, settings = self.adapted.state()
        return {
            **self.made,
            "settings": settings,
            "calibration": self.calibration.to_dict(),
            "guarantee": self.calibration.guarantee,
        }

    def save(self, path: Path | str) -> None:
        """Write one self-describing file: safetensors with a JSON header, never pickle.

        Raises:
            FileNotFoundError: the folder does not exist.
            PermissionError: the folder cannot be written to.
            OSError: the file cannot be written, for want of space for example.
        """
        tensors, settings = self.adapted.state()
        header = {
            "made": self.made,
            "settings": settings,
            "calibration": self.calibration.to_dict(),
        }
        write_detector_file(Path(path), header, tensors)

    @classmethod
    def load(cls, path: Path | str, *, backbone_weights: Path | str | None = None) -> Detector:
        """Read a detector file; scores are bit-identical to those before saving.

        Args:
            backbone_weights: for a detector made with a backbone of timm, the file of its weights;
                looked for as in ``Metaformer.from_pretrained`` if None. They have to be the same,
                byte for byte.

        Raises:
            FileNotFoundError: there is no such file.
            DetectorFileError: the file is not a detector, is damaged, holds NaN or infinite
                weights, was written by a newer version, or the weights of its backbone are not
                to be had.
        """
        header, tensors = read_detector_file(Path(path))
        file = None if backbone_weights is None else Path(backbone_weights)
        adapted: Adapted
        try:
            made = header["made"]
            if made["preset"] == "feature":
                adapted = AdaptedFeature.from_state(
                    tensors, header["settings"], backbone_weights=file
                )
            elif made["preset"] == "pixel":
                adapted = AdaptedPixel.from_state(tensors, header["settings"])
            else:
                raise ValueError(f"unknown preset {made['preset']!r}")
            calibration = Calibration.from_dict(header["calibration"])
        except BackboneError as error:
            raise DetectorFileError(f"{path}: {error}") from error
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            raise DetectorFileError(
                f"{path}: a detector file with something missing or wrong inside ({error!r}). It "
                f"is damaged, or was changed by hand; adapt again."
            ) from error
        return cls(adapted.model, adapted, calibration, made)


def describe_source(source: ImageSource, index: int) -> str:
    """A name for provenance: the file's own, without folders that mean nothing elsewhere."""
    return Path(source).name if isinstance(source, (str, Path)) else f"image {index}"


def warn_about_odd(scores: Sequence[SupportScore], names: Sequence[str]) -> None:
    odd = [score for score in scores if score.is_odd]
    if not odd:
        return
    typical = float(np.median([score.raw_score for score in scores]))
    listed = ", ".join(f"{names[s.index]} ({s.raw_score / typical:.1f}x)" for s in odd)
    warnings.warn(
        f"these normal images look unlike the rest (score against the median): {listed}. Look at "
        f"them; adapt again without them if they show a defect or another product.",
        OddSupportWarning,
        stacklevel=3,
    )
