"""A few normal images -> an adapted model, its threshold, and doubts about the images.

The threshold needs scores of normal images by a model that has not seen them. With two or more
images the support is split in folds, and each fold is scored by a model adapted to the others;
with one image, changed views of it stand in, and the calibration says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metaformer.detection.augmentation import VIEWS, other_views, perturbed_views
from metaformer.detection.feature.adapted import AdaptedFeature, Rows
from metaformer.detection.feature.position_memory import measure_alignment, products_in
from metaformer.detection.feature.preset import FeatureModel
from metaformer.detection.pixel.finetuning import train_transformer
from metaformer.detection.pixel.preset import AdaptedPixel, PixelModel
from metaformer.detection.preprocessing import to_tensor
from metaformer.detection.scoring.anomaly_map import image_score, smooth
from metaformer.detection.scoring.calibration import Calibration, calibrate, check_rate
from metaformer.detection.support_set import SupportScore, judge_support, make_folds
from metaformer.io.images import Image, shrink
from metaformer.networks.patch_metric import FINE

Model = FeatureModel | PixelModel
Adapted = AdaptedFeature | AdaptedPixel

VIEWED_IMAGES = 8
"""Most support images that are also remembered in other light and mirrored
(``docs/decisions/04-memory-size.md``); more show enough by themselves."""
VIEW_DETAIL = 4
"""Views are made at no more than this many times the working resolution. What is finer is lost on
the model, and views of a 24-megapixel photo would take gigabytes."""
PIXEL_FALSE_ALARM_RATE = 0.002
"""Share of normal pixels that may lie above the pixel threshold. Pixels are marked on images
already found anomalous, so this sets how tight the outline is and not how often one is drawn."""


@dataclass(frozen=True)
class Adaptation:
    """What adapting to a support gives."""

    adapted: Adapted
    calibration: Calibration
    support_scores: tuple[SupportScore, ...]
    """Out-of-sample scores in the order of the support; empty with one image."""


def adapt_to_support(
    model: Model,
    support: Iterable[Image],
    *,
    count: int,
    false_alarm_rate: float,
    seed: int,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Adaptation:
    """Adapt ``model`` to normal images (H, W, 3) uint8 and calibrate it on them alone.

    Args:
        support: gone through once; one image is held at a time.
        count: how many images ``support`` gives.
        on_step: called with (steps done, steps in all) for a progress bar.

    Raises:
        ValueError: the support is empty, or the rate is not in (0, 1).
    """
    if count < 1:
        raise ValueError("the support is empty: give at least one normal image.")
    check_rate(false_alarm_rate)
    total = count + len(make_folds(count, model.max_folds)) + 1
    prepared, views = [], []
    for i, image in enumerate(support):
        prepared.append(prepare(model, image))
        if has_views(model, count):
            views.append(prepare_views(model, image))
        on_step(i + 1, total)
    if count > 1:
        return adapt_to_prepared(
            model,
            prepared,
            views,
            false_alarm_rate=false_alarm_rate,
            seed=seed,
            on_step=lambda done, _: on_step(count + done, total),
        )

    adapted = adapt_model(
        model, prepared, views, seed, alignment=lone_alignment(model, image, prepared)
    )
    if isinstance(adapted, AdaptedPixel):
        adapted.readings = []
    detail = shrink(image, VIEW_DETAIL * model.config.resolution)
    changed = perturbed_views(detail, VIEWS, seed, moves=0.1 if is_aligned(model) else 1.0)
    # Another part differs from this one by more than a changed view of it does.
    tokens = prepare_at_size_of(image, model, changed)
    maps = [model.view_factor * raw_maps(model, adapted, view) for view in tokens]
    on_step(total, total)
    calibration = calibrate(
        scores_of(model, maps),
        false_alarm_rate,
        pixel_threshold=pixel_threshold_of(maps),
        from_views=True,
    )
    return Adaptation(adapted, calibration, ())


def adapt_to_prepared(
    model: Model,
    prepared: Sequence[Any],
    views: Sequence[Rows],
    *,
    false_alarm_rate: float,
    seed: int,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Adaptation:
    """``adapt_to_support`` for two or more images that have gone through ``prepare``.

    Args:
        views: what ``prepare_views`` gave for each; nothing where ``has_views`` says no.
    """
    folds = make_folds(len(prepared), model.max_folds)
    maps: list[Tensor] = [torch.empty(0)] * len(prepared)
    adapted: Adapted
    if isinstance(model, FeatureModel):
        same_place = model.in_place(prepared)
        distances = model.left_out_distances(
            prepared,
            views,
            seed=seed,
            products=products_in(same_place),
            on_fold=lambda done: on_step(done, len(folds) + 1),
        )
        adapted = model.adapt(
            prepared, seed=seed, views=views, left_out=distances, same_place=same_place
        )
        for fold in folds:
            for i in fold:
                left_out = adapted.read(prepared[i], distances[i], without=fold)
                maps[i] = smooth(left_out, model.config.sigma)
        on_step(len(folds) + 1, len(folds) + 1)
    else:
        adapted = adapt_model(model, prepared, views, seed)
        assert isinstance(adapted, AdaptedPixel)
        on_step(1, len(folds) + 1)
        for number, fold in enumerate(folds):
            # Only the memory forgets an image: a fit of A for every fold would take most of the
            # time. What A has learned of it in its few steps stays (decision 08).
            for i, left_out in adapted.left_out_maps(fold, seed=seed).items():
                maps[i] = smooth(left_out[None], model.config.sigma)
            on_step(number + 2, len(folds) + 1)
        adapted.readings = []
    scores = scores_of(model, maps)
    calibration = calibrate(scores, false_alarm_rate, pixel_threshold=pixel_threshold_of(maps))
    return Adaptation(adapted, calibration, judge_support(scores))


def adapt_model(
    model: Model,
    prepared: Sequence[Any],
    views: Sequence[Rows],
    seed: int,
    *,
    alignment: float | None = None,
) -> Adapted:
    """``model.adapt``, and the long training where it is asked for."""
    if isinstance(model, FeatureModel):
        return model.adapt(prepared, seed=seed, views=views, alignment=alignment)
    adapted = model.adapt(prepared, seed=seed)
    if adapted.config.mode == "long":
        train_transformer(adapted, prepared, seed=seed)
    return adapted


def lone_alignment(model: Model, image: Image, prepared: Sequence[Any]) -> float | None:
    """How far places say what is to be seen there, by a lone image and its mirror image: parts that
    stand in the same way on every photo are mostly symmetric, and stand in the middle. None where
    it does not matter."""
    if not isinstance(model, FeatureModel) or not model.config.has_same_place:
        return None
    mirrored = prepare(model, np.ascontiguousarray(image[:, ::-1]))
    return measure_alignment([prepared[0][FINE], mirrored[FINE]])


def scores_of(model: Model, maps: Sequence[Tensor]) -> list[float]:
    """Raw image scores of images' raw maps (M, h, w)."""
    return [image_score(m[0], model.config.score_share) for m in maps]


def pixel_threshold_of(maps: Sequence[Tensor]) -> float:
    """What ``PIXEL_FALSE_ALARM_RATE`` of the pixels of normal images' maps (M, h, w) reach."""
    pixels = torch.cat([m[-1].flatten() for m in maps])
    kept = max(1, round(PIXEL_FALSE_ALARM_RATE * len(pixels)))
    return float(pixels.topk(kept).values[-1])


def prepare(model: Model, image: Image) -> Any:
    """What the model keeps of one image: the part of the work that needs no support."""
    return model.prepare(at_working_size(model, image))


def has_views(model: Model, count: int) -> bool:
    """Whether ``count`` support images are also remembered in other light and mirrored: the
    learned metric is measured to gain by it, and a small support."""
    learned = isinstance(model, FeatureModel) and model.metric is not None
    return learned and count <= VIEWED_IMAGES


def prepare_views(model: Model, image: Image) -> Rows:
    """What is kept of an image in other light, and mirrored."""
    assert isinstance(model, FeatureModel)
    detail = shrink(image, VIEW_DETAIL * model.config.resolution)
    return model.sample_views([*prepare_at_size_of(image, model, other_views(detail))])


def prepare_at_size_of(image: Image, model: Model, views: Iterable[Image]) -> Iterator[Any]:
    """``prepare`` for views of an image, which may be smaller than it: at what size they are worked
    at, the pixels of the whole image say."""
    size = model.working_size(*image.shape[:2])
    return (model.prepare(to_tensor(view, size)) for view in views)


def at_working_size(model: Model, image: Image) -> Tensor:
    """(H, W, 3) uint8 -> (1, 3, h, w) in [0, 1] at the size the model works at."""
    return to_tensor(image, model.working_size(*image.shape[:2]))


def raw_maps(model: Model, adapted: Adapted, prepared: Any) -> Tensor:
    """(M, h, w) raw anomaly maps, blurred: the first is what the image is scored by, the last marks
    pixels. M is 1 or 2."""
    if isinstance(adapted, AdaptedFeature):
        return smooth(adapted.anomaly_maps(prepared), model.config.sigma)
    return smooth(adapted.anomaly_map(prepared)[None], model.config.sigma)


def is_aligned(model: Model) -> bool:
    """Whether parts are promised to stand in the same place on every image."""
    return model.config.aligned
