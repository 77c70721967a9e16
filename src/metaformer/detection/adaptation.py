"""A few normal images -> an adapted model, its threshold, and doubts about the images.

The threshold needs scores of normal images by a model that has not seen them. With two or more
images each is scored by a model of the others; with one image, changed views of it stand in, and
the calibration says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metaformer.detection.augmentation import VIEWS, perturbed_views
from metaformer.detection.preprocessing import to_tensor
from metaformer.detection.preset import Adapted, OnStep, P, Preset
from metaformer.detection.scoring.anomaly_map import image_score
from metaformer.detection.scoring.calibration import Calibration, calibrate, check_rate
from metaformer.detection.support.support_set import SupportScore, judge_support
from metaformer.io.images import Image, shrink
from metaformer.io.workers import ordered_map, usual_workers

VIEW_DETAIL = 4
"""Views are made at no more than this many times the working resolution. What is finer is lost on
the model, and views of a 24-megapixel photo would take gigabytes."""
PIXEL_FALSE_ALARM_RATE = 0.002
"""Share of normal pixels that may lie above the pixel threshold. Pixels are marked on images
already found anomalous, so this sets how tight the outline is and not how often one is drawn."""
TYPICAL_PIXELS = 1.15
"""The pixel threshold of a lone image over its typical score: the mean of eight sets with four."""
ALIGNED_MOVES = 0.1
"""How much less views move where parts stand in the same place."""


@dataclass(frozen=True)
class Calibrated:
    """An adapted model with its threshold and the scores of its support."""

    adapted: Adapted[Any]
    calibration: Calibration
    support_scores: tuple[SupportScore, ...]
    """Left-out scores in the order of the support; empty with one image."""


def adapt_to_support(
    preset: Preset[P],
    support: Iterable[Image],
    *,
    count: int,
    false_alarm_rate: float,
    seed: int,
    on_step: OnStep = lambda done, total: None,
) -> Calibrated:
    """Adapt ``preset`` to normal images (H, W, 3) uint8 and calibrate it on them alone.

    Args:
        support: iterated once; a worker holds one image at a time.
        count: how many images ``support`` gives at most.
        on_step: called with (steps done, steps in all) for a progress bar.

    Raises:
        ValueError: the support is empty, or the rate is not accepted.
    """
    check_rate(false_alarm_rate)
    prepared: list[P] = []
    image: Image | None = None
    for each, kept in prepare_support(preset, support, count):
        prepared.append(kept)
        image = each
        on_step(len(prepared), 2 * count)
    if image is None:
        raise ValueError("the support is empty: give at least one normal image.")
    told = len(prepared)

    def on_part(step: int, steps: int) -> None:
        nonlocal told
        reached = count + count * step // max(1, steps)
        if reached > told:  # a preset may take several steps an image
            told = reached
            on_step(reached, 2 * count)

    done = preset.adapt(prepared, seed=seed, on_step=on_part)
    if len(prepared) > 1:
        return calibrated(done.adapted, done.left_out, false_alarm_rate)
    # Another part differs from this one by more than a changed view of it does.
    views = views_of(preset, image, seed)
    maps = [preset.view_factor * done.adapted.anomaly_maps(view) for view in views]
    on_step(2, 2)
    typical = done.adapted.typical_score
    calibration = calibrate(
        scores_of(done.adapted, maps),
        false_alarm_rate,
        pixel_threshold=pixel_threshold_of(maps) if typical is None else TYPICAL_PIXELS * typical,
        from_views=True,
        typical_score=typical,
    )
    return Calibrated(done.adapted, calibration, ())


def calibrated(adapted: Adapted[P], left_out: Sequence[Tensor], rate: float) -> Calibrated:
    """With the threshold that left-out maps (M, h, w) of two or more support images give."""
    scores = scores_of(adapted, left_out)
    calibration = calibrate(
        scores,
        rate,
        pixel_threshold=pixel_threshold_of(left_out),
        typical_score=adapted.typical_score,
    )
    return Calibrated(adapted, calibration, judge_support(scores))


def views_of(preset: Preset[P], image: Image, seed: int) -> list[P]:
    """Changed views of a lone support image, prepared at the size of the whole image."""
    size = preset.working_size(*image.shape[:2])
    detail = shrink(image, VIEW_DETAIL * preset.config.resolution)
    moves = ALIGNED_MOVES if preset.config.aligned else 1.0
    views = perturbed_views(detail, VIEWS, seed, moves=moves)
    return [preset.prepare(to_tensor(view, size)) for view in views]


def scores_of(adapted: Adapted[P], maps: Sequence[Tensor]) -> list[float]:
    """Raw image scores of images' raw maps (M, h, w)."""
    return [image_score(grids[0], adapted.config.score_share) for grids in maps]


def pixel_threshold_of(maps: Sequence[Tensor]) -> float:
    """The value that a share ``PIXEL_FALSE_ALARM_RATE`` of the pixels of normal maps (M, h, w)
    exceed."""
    pixels = torch.cat([grids[-1].flatten() for grids in maps])
    kept = max(1, round(PIXEL_FALSE_ALARM_RATE * len(pixels)))
    return float(pixels.topk(kept).values[-1])


def prepare(preset: Preset[P], image: Image, *, support_size: int | None = None) -> P:
    """``preset.prepare`` of an image (H, W, 3) uint8, at the size the preset works at."""
    return preset.prepare(at_working_size(preset, image), support_size=support_size)


def prepare_support(
    preset: Preset[P], images: Iterable[Image], count: int
) -> Iterator[tuple[Image, P]]:
    """Each of the images with what ``prepare`` makes of it, several at a time, in their order.

    Never by all of PyTorch's threads at once, so that an image is prepared to the same bits
    whether it is alone or one of many.

    Args:
        count: how many images the support has in all.
    """

    def prepare_one(image: Image) -> tuple[Image, P]:
        return image, prepare(preset, image, support_size=count)

    return ordered_map(prepare_one, images, usual_workers())


def at_working_size(preset: Preset[P], image: Image) -> Tensor:
    """(H, W, 3) uint8 -> (1, 3, h, w) in [0, 1] at the size the preset works at."""
    return to_tensor(image, preset.working_size(*image.shape[:2]))
