"""What a method is fitted to in an evaluation, and which value of those images means white."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Literal

from metaformer.data.datasets.loading import Category, Sample, draw_support
from metaformer.evaluation.samples import template_of
from metaformer.io.images import guess_white_level
from metaformer.io.pixels import check_white_level

Shots = int | Literal["full"]


def support_of(category: Category, shots: Shots, seed: int) -> list[Path]:
    return draw_support(category, None if shots == "full" else shots, seed)


def all_supports(
    category: Category, samples: Sequence[Sample], shots: Shots, seeds: Sequence[int]
) -> list[Path]:
    """The images that some seed fits a method to, to score ``samples``, once each."""
    if category.is_paired:
        return list(dict.fromkeys(template_of(sample) for sample in samples))
    drawn = (path for seed in seeds for path in support_of(category, shots, seed))
    return list(dict.fromkeys(drawn))


def white_levels(
    supports: Mapping[str, Sequence[Path]], given: int | None, unified: bool
) -> dict[str, int | None]:
    """The white level of each category by its name: the one given, or guessed from its supports,
    or with ``unified`` from those of all of them.

    Raises:
        ValueError: the one given is not in 1..65535.
        ImageError: an image to guess from cannot be read.
    """
    if given is not None:
        check_white_level(given)
        return dict.fromkeys(supports, given)
    if unified:
        return dict.fromkeys(supports, guess_white_level(chain(*supports.values())))
    return {name: guess_white_level(paths) for name, paths in supports.items()}
