"""``Detector``: what adaptation gives, and what scores images."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from metaformer.detection.adaptation import at_working_size, prepare, prepare_support
from metaformer.detection.detector_file import (
    DetectorFileError,
    read_detector_file,
    write_detector_file,
)
from metaformer.detection.engines.engine import MOST_PIXELS, Engine, usual_engine
from metaformer.detection.extension import extend
from metaformer.detection.preset import Adapted, EarlierVersionError, Preset
from metaformer.detection.presets import restore_preset
from metaformer.detection.scoring.anomaly_map import image_score, to_image_size
from metaformer.detection.scoring.calibration import Calibration, check_rate, guarantee_of
from metaformer.detection.scoring.prediction import Prediction
from metaformer.detection.scoring.regions import find_regions
from metaformer.detection.summary import summary_html
from metaformer.detection.support.given_images import (
    ImageSource,
    SkippedImageWarning,
    SupportImages,
    named_sources,
    support_sources,
)
from metaformer.detection.support.support_set import (
    SupportRecord,
    choose_white_level,
    describe_source,
    warn_about_odd,
    when_and_with_what,
)
from metaformer.detection.support.support_thumbnails import (
    GoodExample,
    nearest,
    take_from,
    to_tensors,
)
from metaformer.io.images import ImageError, read_image
from metaformer.io.sources.shards import Sources
from metaformer.io.workers import ordered_map
from metaformer.networks.backbone_weights import BackboneError
from metaformer.networks.placement import DeviceError

_MAKING_ENGINE = threading.Lock()


class Detector:
    """A model adapted to one product, with its threshold. Made by ``Metaformer.adapt``."""

    def __init__(
        self,
        model: Preset[Any],
        adapted: Adapted[Any],
        calibration: Calibration,
        provenance: dict[str, Any],
        thumbnails: tuple[bytes, ...] = (),
    ) -> None:
        if adapted.frame is not None and not adapted.frame.has_levels:
            adapted.frame.set_levels(calibration)
        self.model = model
        self.adapted = adapted
        self.calibration = calibration
        self.provenance = provenance
        self.thumbnails = thumbnails
        """Small JPEGs of the first support images, in their order; for reports alone."""
        self._engine: Engine | None = None

    def __repr__(self) -> str:
        count = len(self.provenance["support"])
        images = f"{count} normal image{'' if count == 1 else 's'}"
        return (
            f"Detector({self.provenance['preset']}, {images}, "
            f"{self.model.config.resolution} pixels, "
            f"false-alarm rate {self.calibration.false_alarm_rate:.1%})"
        )

    def _repr_html_(self) -> str:
        """How it was made and what it promises, for notebooks."""
        return summary_html(self.info())

    def predict(self, image: ImageSource) -> Prediction:
        """Score one image and mark its defective pixels.

        Args:
            image: a path, an array (H, W, 3) uint8 RGB or any other that ``read_image`` takes,
                encoded bytes, or a Pillow image. The result depends on this image alone.

        Raises:
            ImageError: the image cannot be read.
        """
        read = partial(read_image, image, white_level=self.provenance["white_level"])
        path = str(image) if isinstance(image, (str, Path)) else None
        return replace(self.predict_pixels(read(), path), read_pixels=read)

    def predict_pixels(self, pixels: NDArray[np.uint8], path: str | None = None) -> Prediction:
        """``predict`` for an image already read, (H, W, 3) uint8 RGB. The pixels are not kept for
        ``Prediction.overlay``, which then asks for the image."""
        return self.judge(*self.score_pixels(pixels), path, overwrite=True)

    def judge(
        self,
        raw: float,
        raw_pixels: NDArray[np.float32],
        path: str | None = None,
        *,
        overwrite: bool = False,
    ) -> Prediction:
        """The verdict on an image from its raw score and raw (H, W) map; see ``score_pixels``.

        Args:
            overwrite: the map of the result takes the place of the raw one. Of a large photo, a
                map takes as much memory as the whole program.
        """
        calibration = self.calibration
        is_anomalous = raw >= calibration.threshold
        anomaly_map = calibration.map(raw_pixels, raw_pixels if overwrite else None)
        mask = anomaly_map >= 0.5 if is_anomalous else np.zeros(anomaly_map.shape, np.bool_)
        return Prediction(
            score=calibration.score(raw),
            raw_score=raw,
            p_value=calibration.p_value(raw),
            is_anomalous=bool(is_anomalous),
            anomaly_map=anomaly_map,
            mask=mask,
            regions=find_regions(mask, anomaly_map),
            path=path,
            white_level=self.provenance["white_level"],
        )

    @property
    def engine(self) -> Engine:
        """What computes the maps; ``metaformer.export.backends.with_engine`` chooses another. Made
        when it is first needed, in a third of a second."""
        if self._engine is None:
            with _MAKING_ENGINE:  # of several workers one makes it
                if self._engine is None:
                    self._engine = usual_engine(self, may_trace=False)
        return self._engine

    @engine.setter
    def engine(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def has_engine(self) -> bool:
        """Whether one was made or chosen. Images of more than ``MOST_PIXELS`` go without."""
        return self._engine is not None

    def score_pixels(self, pixels: NDArray[np.uint8]) -> tuple[float, NDArray[np.float32]]:
        """Raw score and raw (H, W) map of an image (H, W, 3) uint8 RGB, before calibration."""
        if pixels[..., 0].size > MOST_PIXELS or self.engine.name == "torch":
            grids = self.adapted.anomaly_maps(prepare(self.model, pixels))  # (M, h, w)
        else:
            grids = self.engine(at_working_size(self.model, pixels))[0]
        score = image_score(grids[0], self.model.config.score_share)
        return score, to_image_size(grids[-1], pixels.shape)

    def predict_many(
        self,
        images: Path | str | Sources | Iterable[ImageSource],
        *,
        on_error: Literal["raise", "skip"] | Callable[[ImageError], object] = "raise",
        workers: int = 1,
    ) -> Iterator[Prediction]:
        """``predict`` for each image, in their order, holding ``workers`` in memory at a time.

        Args:
            images: a folder, an archive, a video or a list ``@FILE``, several of them as
                ``Sources``, or images as ``predict`` takes them. ``Prediction.path`` is the name.
            on_error: what an image that cannot be read does: ``raise`` ends with its
                ``ImageError``, ``skip`` leaves it out with a ``SkippedImageWarning``, and a
                function is called with the ``ImageError``.
            workers: images scored at once. With one a processor many small images take three
                fifths of the time; scores differ by a few millionths (``io/workers.py``).
        """
        if not callable(on_error) and on_error not in ("raise", "skip"):
            raise ValueError(
                f'on_error: found {on_error!r}; accepted: "raise", "skip", a function.'
            )
        return self._predict_named(named_sources(images), on_error, workers)

    def _predict_named(
        self,
        images: Iterable[tuple[str | None, ImageSource | ImageError]],
        on_error: Literal["raise", "skip"] | Callable[[ImageError], object],
        workers: int,
    ) -> Iterator[Prediction]:
        def predict(image: tuple[str | None, ImageSource | ImageError]) -> Prediction | ImageError:
            name, source = image
            if isinstance(source, ImageError):
                return source
            try:
                found = self.predict(source)
            except ImageError as error:
                return error
            return found if name is None else replace(found, path=name)

        for found in ordered_map(predict, images, workers):
            if isinstance(found, Prediction):
                yield found
            elif callable(on_error):
                on_error(found)
            elif on_error == "skip":
                warnings.warn(f"not scored: {found}", SkippedImageWarning, stacklevel=2)
            else:
                raise found

    def with_false_alarm_rate(self, rate: float) -> Detector:
        """The same detector with the threshold for another rate; nothing is computed anew."""
        calibration = self.calibration.with_false_alarm_rate(rate)
        same = copy.copy(self)
        same.calibration = calibration
        return same

    def extended_with(
        self,
        images: SupportImages,
        *,
        false_alarm_rate: float | None = None,
        white_level: int | None = None,
        on_step: Callable[[int, int], None] = lambda done, total: None,
    ) -> Detector:
        """A new detector that knows more normal images; the earlier ones are not needed.

        With the ``feature`` preset and a memory below its cap the result is that of adapting to
        all images at once, bit for bit. Otherwise what the earlier images would score now is
        estimated. ``info()["additions"]`` says which of
        the two it was, and ``docs/decisions/02-extension.md`` what each can promise.

        Args:
            images: as for ``Metaformer.adapt``, read with this detector's white level. Those whose
                pixels it has seen are left out, with a ``DuplicateSupportWarning``.
            false_alarm_rate: share of good parts that may be flagged; this detector's if None.
            white_level: as for ``Metaformer.adapt``, where this detector's is not known.
            on_step: called with (steps done, steps in all).

        Raises:
            ImageError: an image cannot be read, or the folder holds none.
            ValueError: nothing new among the images, a rate outside (0, 1), or too little is left
                of the one image this detector was made from.
        """
        rate = self.calibration.false_alarm_rate if false_alarm_rate is None else false_alarm_rate
        check_rate(rate)
        sources = support_sources(images)
        white_level = choose_white_level(white_level, self.provenance["white_level"], sources)
        record = SupportRecord(self.provenance["support"], self.thumbnails)
        count = len(record.images)

        def read_new() -> Iterator[NDArray[np.uint8]]:
            for i, source in enumerate(sources):
                pixels = read_image(source, white_level=white_level)
                if record.take_in(describe_source(source, len(record.images)), pixels):
                    yield pixels
                on_step(i + 1, len(sources) + 1)

        prepared = [
            kept for _, kept in prepare_support(self.model, read_new(), count + len(sources))
        ]
        if not prepared:
            raise ValueError(
                f"nothing to add: of the {len(sources)} images given, none is new to the detector. "
                f"Give other normal images."
            )
        record.warn()
        seed = self.provenance["seed"]
        result, how = extend(
            self.model,
            self.adapted,
            prepared,
            scores=[score["raw_score"] for score in self.provenance["support_scores"]],
            count=count,
            pixel_threshold=self.calibration.pixel_threshold,
            false_alarm_rate=rate,
            seed=seed,
        )
        on_step(len(sources) + 1, len(sources) + 1)
        addition = {
            "first": count,
            "count": len(prepared),
            "seed": seed,
            "calibration": how,
            **when_and_with_what(),
        }
        provenance = {
            **self.provenance,
            "white_level": white_level,
            "support": record.images,
            "support_scores": [asdict(score) for score in result.support_scores],
            "additions": [*self.provenance.get("additions", []), addition],
        }
        warn_about_odd(result.support_scores, [image["name"] for image in record.images])
        return Detector(
            self.model, result.adapted, result.calibration, provenance, tuple(record.thumbnails)
        )

    def nearest_good(self, pixels: NDArray[np.uint8]) -> GoodExample | None:
        """The support image that looks most like an image (H, W, 3) uint8 RGB, as a thumbnail.

        None if the detector holds no thumbnails, as files of earlier versions do.
        """
        names = [support["name"] for support in self.provenance["support"]]
        return nearest(self.thumbnails[: len(names)], names, pixels)

    @property
    def guarantee(self) -> str:
        """What the threshold promises, for people; how it was extended is taken into account."""
        return guarantee_of(self.calibration, self.provenance.get("additions", []))

    def info(self) -> dict[str, Any]:
        """How the detector was made and what its threshold promises, ready for JSON."""
        _, settings = self.adapted.state()
        return {
            **self.provenance,
            "settings": settings,
            "calibration": self.calibration.to_dict(),
            "guarantee": self.guarantee,
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
            "made": self.provenance,
            "settings": settings,
            "calibration": self.calibration.to_dict(),
        }
        write_detector_file(Path(path), header, tensors | to_tensors(self.thumbnails))

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        backbone_weights: Path | str | None = None,
        backbone: nn.Module | None = None,
        device: str = "cpu",
    ) -> Detector:
        """Read a detector file; scores are bit-identical to those before saving.

        Args:
            backbone_weights: for a detector made with a backbone of timm, the file of its weights;
                looked for as in ``Metaformer.from_pretrained`` if None. They have to be the same,
                byte for byte.
            backbone: for a detector made with ``Metaformer.from_backbone``, the same module.
            device: that the backbone computes on; scores on others than the CPU differ a little.

        Raises:
            FileNotFoundError: there is no such file.
            DetectorFileError: the file is not a detector, is damaged, holds NaN or infinite
                weights, was written by a newer version, or the weights of its backbone are not
                to be had.
            DeviceError: there is no such device.
        """
        header, tensors = read_detector_file(Path(path))
        file = None if backbone_weights is None else Path(backbone_weights)
        try:
            thumbnails = take_from(tensors)
            provenance = header["made"]
            model, adapted = restore_preset(
                provenance["preset"],
                tensors,
                header["settings"],
                backbone_weights=file,
                backbone=backbone,
                device=device,
            )
            calibration = Calibration.from_dict(header["calibration"])
        except DeviceError:
            raise
        except (BackboneError, EarlierVersionError) as error:
            raise DetectorFileError(f"{path}: {error}") from error
        except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            raise DetectorFileError(
                f"{path}: a detector file with something missing or wrong inside ({error!r}). It "
                f"is damaged, or was changed by hand; adapt again."
            ) from error
        return cls(model, adapted, calibration, provenance, thumbnails)
