"""What a preset offers: from images to features, and from a support to an adapted model.

``detection/feature`` and ``detection/pixel`` fill this interface. Whoever adapts, extends, scores
or exports asks for no more than it, so that a third preset would be one more folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

from torch import Tensor, nn

from metaformer.detection.scoring.frame_check import FrameCheck

P = TypeVar("P")
"""What a preset keeps of one image."""
A_co = TypeVar("A_co", covariant=True)
"""An adapted model."""
OnStep = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""
Tensors = dict[str, Tensor]
Settings = dict[str, Any]
"""JSON-able."""
How = Literal["recomputed", "estimated"]
PARTS = ("transformer", "response", "gap", "adaptation")
"""What a preset can have, and can be measured without. transformer: the correction of the map.
response: what the transformer knows of where the object is. gap: what differs between the image, or
its features, and what is rebuilt of it. adaptation: weights fitted to the support."""


class EarlierVersionError(ValueError):
    """A detector file of an earlier version, whose model is gone; the message says what to do."""


class PresetConfig(Protocol):
    """The settings that every preset has."""

    @property
    def resolution(self) -> int:
        """Images are resized to about this many pixels squared, aspect kept."""

    @property
    def aligned(self) -> bool:
        """Every image shows the part in the same place."""

    @property
    def score_share(self) -> float:
        """The image score is the mean of this share of the highest cells of the map, at least of
        one; 0 for the maximum."""


class Adapted(Protocol[P]):
    """A preset adapted to one product."""

    @property
    def frame(self) -> FrameCheck | None:
        """Refuses frames that do not show the product; part of ``anomaly_maps`` and
        ``as_module``."""

    @property
    def config(self) -> PresetConfig: ...

    def anomaly_maps(self, image: P) -> Tensor:
        """(M, h, w) raw maps, blurred, 0 or more: the first scores the image, the last marks its
        pixels; M is 1 or 2. They depend on this image and the support alone."""

    @property
    def products(self) -> int:
        """How many products have a model of their own. A traced graph computes the maps of each."""

    @property
    def graph(self) -> str | None:
        """Name of the graph inside the package that fits ``as_module``; None if it has to be
        traced."""

    @property
    def typical_score(self) -> float | None:
        """Raw score of a good image of a typical product with as many support images; None if not
        known for these settings."""

    def kept_support(self) -> list[P] | None:
        """The support as ``Preset.prepare`` gave it, to adapt anew; None if not all is kept."""

    def extend(self, new: Sequence[P], *, seed: int) -> Adaptation[Adapted[P]]:
        """With more support images, where the support itself is not kept. Does not change this one.

        Raises:
            ValueError: of a lone earlier image too little was kept to compare it with a lone new
                one.
        """

    def state(self) -> tuple[Tensors, Settings]:
        """What a detector file stores; ``from_state`` restores the same scores bit for bit."""

    def as_module(self) -> nn.Module:
        """(N, 3, H, W) in [0, 1] at a working size -> (N, M, h, w) raw maps: the same computation
        as ``anomaly_maps``, traceable for export."""


class Preset(Protocol[P]):
    """The universal part: knows no product yet."""

    @property
    def config(self) -> PresetConfig: ...

    size_multiple: int
    """Both sides of a working size are multiples of it."""
    view_factor: float
    """With one support image: how many times the score of a changed view of it another good part
    scores."""

    def without(self, parts: Sequence[str]) -> Preset[P]:
        """The same with some parts left out, to see what they are worth; ``PARTS`` has their names.

        Raises:
            ValueError: it has no such part.
        """

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        """Sides (H, W) that an image of these sides is resized to."""

    def prepare(self, image: Tensor, *, support_size: int | None = None) -> P:
        """Everything of one image (1, 3, H, W) in [0, 1] that needs no support.

        Args:
            support_size: the image belongs to a support of so many; None for a test image.
        """

    def adapt(self, support: Sequence[P], *, seed: int, on_step: OnStep) -> Adaptation[Adapted[P]]:
        """Adapt to one or more normal images. Deterministic."""


@dataclass(frozen=True)
class Adaptation(Generic[A_co]):
    """An adapted model, and what it takes to calibrate it."""

    adapted: A_co
    left_out: list[Tensor]
    """(M, h, w) raw maps of each support image by a model that has not seen it; empty with one
    image."""
    how: How = "recomputed"
    """``estimated``: images were added, and the maps are those of the new images alone."""


def changes_without(
    parts: Sequence[str], settings: Mapping[str, str], preset: str
) -> dict[str, Any]:
    """The changes of a preset's settings that leave parts out.

    Args:
        settings: part that the preset has -> the setting that is False without it.
        preset: its name and mode, for the message.

    Raises:
        ValueError: there is a part that it does not have.
    """
    missing = [part for part in parts if part not in settings]
    if missing:
        has = " and ".join([", ".join([*settings][:-1]), [*settings][-1]]) if settings else "none"
        raise ValueError(
            f"without {', '.join(missing)}: {preset} has no such part. It can leave out: "
            f"{has.removeprefix(' and ')}."
        )
    return {settings[part]: False for part in parts}
