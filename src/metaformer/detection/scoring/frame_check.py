"""Whether a frame shows the product at all.

A memory bank asks of each patch whether it is normal, and a patch of a plain background is. A lens
cap, an overexposed frame or one whose lower half is lost can therefore score as low as a good
image. This check asks of the frame as a whole: are the mean and the deviation of its features like
those of any support image, over the frame and over each of its halves? And does each half show a
quarter at least of the detail of a support image's? Ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.detection.scoring.calibration import LOWEST_RATE, Calibration
from metaformer.networks.feature_maps import DETAIL
from metaformer.networks.named_buffers import NamedBuffers

LOST_DETAIL = 0.75
"""A frame is refused if this share of the detail is lost, in any half, against every support image.
Good test images of eight sets lose 0.71 of it at most (one support image; 0.42 with four), frames
of an empty background 0.79 at least (``docs/decisions/10-measured-core.md``)."""
MOST_REFERENCES = 64
"""Support images compared with; bounds the time."""
MARGIN = 1.25
"""A frame is refused if it is this many times as far from the support as any support image from
the others, and beyond the fixed limits."""
ABOVE = 1.01
"""How many times the highest threshold a refused frame scores: no rounding lets it pass."""
MARKED_RATE = 5e-3
"""A refused frame's map that marks pixels reaches at least the image threshold of this rate."""
EPS = 1e-6
"""Added to that map: where it is zero everywhere, all of it is marked."""


@dataclass(frozen=True)
class FrameRule:
    """How frames are compared.

    Good test images of eight sets come with one support image to 0.36 of the deviations and 0.58 of
    the means at most, in the features of EfficientNet-Lite0; frames without the product exceed one
    of ``OF_STRENGTH``'s limits (``benchmarks/robustness``).
    """

    deviations: float
    """Distance of the deviations from which on a frame is refused, in units of a support image's
    deviation over the frame."""
    means: float
    """The same of the means."""
    by_direction: bool
    """Features are brought to unit length first."""


OF_STRENGTH = FrameRule(0.45, 0.65, by_direction=False)
OF_DIRECTIONS = FrameRule(0.48, 1e6, by_direction=True)
"""For the autoencoder's features: of unit length they say little by their mean, and as they are
light changes them too much."""

Statistics = dict[int, tuple[Tensor, Tensor]]
"""Stride, or ``DETAIL``, -> mean and standard deviation, (B, 5, C) each: of the frame and of its
four halves."""


def frame_statistics(
    features: Mapping[int, Tensor], strides: Sequence[int], rule: FrameRule
) -> Statistics:
    """Mean and deviation over the frame of features (B, C, h, w), by stride."""
    found = {}
    for stride in strides:
        x = features[stride]
        if rule.by_direction and stride != DETAIL:
            x = F.normalize(x, dim=1)
        rows, columns = x.shape[2] // 2, x.shape[3] // 2
        halves = (x[:, :, :rows], x[:, :, rows:], x[:, :, :, :columns], x[:, :, :, columns:])
        means, deviations = [], []
        for part in (x, *halves):
            mean = part.mean((2, 3), keepdim=True)
            means.append(mean[:, :, 0, 0])
            deviations.append((part - mean).square().mean((2, 3)).sqrt())
        found[stride] = torch.stack(means, 1), torch.stack(deviations, 1)
    return found


def joined(images: Sequence[Statistics]) -> Statistics:
    """Batches of one as one batch, by what all of them have: earlier versions had no detail."""
    shared = [stride for stride in images[0] if all(stride in each for each in images)]
    return {
        stride: (
            torch.cat([each[stride][0] for each in images]),
            torch.cat([each[stride][1] for each in images]),
        )
        for stride in shared
    }


def drawn_references(count: int) -> list[int]:
    """Indices of the support images that are compared with: all, or ``MOST_REFERENCES`` at
    random."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return [int(i) for i in order[:MOST_REFERENCES].sort().values]


class FrameCheck(nn.Module):
    """Raises the anomaly map where a frame does not show the product.

    Args:
        references: statistics of K support images.
    """

    level: Tensor
    """() raw score that a refused frame has at least."""
    marked_level: Tensor
    """() a map that marks pixels is enlarged where it does not reach this anywhere."""
    limit: Tensor
    """() distance from which on a frame is refused."""

    def __init__(self, references: Statistics, rule: FrameRule) -> None:
        super().__init__()
        self.rule = rule
        self.has_levels = False
        """Whether ``set_levels`` was called, now or before the file was written."""
        self.keys = tuple(references)
        named = {f"mean.{key}": mean for key, (mean, _) in references.items()}
        named |= {f"deviation.{key}": deviation for key, (_, deviation) in references.items()}
        self.known = NamedBuffers(named)
        self.register_buffer("level", torch.tensor(0.0))
        self.register_buffer("marked_level", torch.tensor(0.0))
        limit = 1.0
        if self.count > 1:
            between = self.distances(references).fill_diagonal_(torch.inf)
            limit = max(limit, MARGIN * float(between.amin(1).max()))
        self.register_buffer("limit", torch.tensor(limit))

    @property
    def references(self) -> Statistics:
        known = self.known.tensors()
        return {key: (known[f"mean.{key}"], known[f"deviation.{key}"]) for key in self.keys}

    @classmethod
    def of(cls, support: Sequence[Statistics], rule: FrameRule) -> FrameCheck:
        """From the statistics of each support image, a batch of one each."""
        return cls(joined([support[i] for i in drawn_references(len(support))]), rule)

    def extended(self, support: Sequence[Statistics]) -> FrameCheck:
        """With the statistics of more support images."""
        return FrameCheck.of([*self.each(), *support], self.rule)

    @property
    def count(self) -> int:
        """Support images compared with."""
        return len(next(iter(self.references.values()))[0])

    @property
    def reads_detail(self) -> bool:
        """Files of earlier versions had no detail."""
        return DETAIL in self.keys

    def each(self) -> list[Statistics]:
        """Statistics of each of them, a batch of one each."""
        return [
            {s: (mean[i : i + 1], std[i : i + 1]) for s, (mean, std) in self.references.items()}
            for i in range(self.count)
        ]

    def distances(self, statistics: Statistics) -> Tensor:
        """(B, K) distance of each frame to each support image, 1 at the limits."""
        relative = []
        for stride, (mean, deviation) in statistics.items():
            if stride == DETAIL:
                continue
            known_mean, known_deviation = self.references[stride]  # (K, 5, C)
            unit = known_deviation[:, 0].norm(dim=1).clamp_min(1e-6)  # (K,)
            pairs = ((deviation, known_deviation), (mean, known_mean))
            limits = (self.rule.deviations, self.rule.means)
            for (found, known), limit in zip(pairs, limits, strict=True):
                # One axis of pairs: of two, OpenVINO swaps the frames and the support images.
                apart = (found[:, None] - known[None]).flatten(0, 1).norm(dim=2).amax(1)
                apart = apart.reshape(found.shape[0], known.shape[0])  # (B, K)
                relative.append(apart / unit / limit)
        return reduce(torch.maximum, relative)

    def lost_detail(self, statistics: Statistics) -> Tensor:
        """(B,) share of the detail that the worst half lacks, against the most similar image."""
        found, known = statistics[DETAIL][0], self.references[DETAIL][0]  # (B, 5, 1), (K, 5, 1)
        pairs = (1 - found[:, None] / known[None]).flatten(0, 1).amax((1, 2))
        return pairs.reshape(found.shape[0], known.shape[0]).amin(1)

    def statistics(self, features: Mapping[int, Tensor]) -> Statistics:
        return frame_statistics(features, self.keys, self.rule)

    def refuses(self, features: Mapping[int, Tensor]) -> Tensor:
        """(B,) bool: the frame does not show the product."""
        statistics = self.statistics(features)
        is_far = self.distances(statistics).amin(1) > self.limit
        if not self.reads_detail:
            return is_far
        return is_far | (self.lost_detail(statistics) > LOST_DETAIL)

    def set_levels(self, calibration: Calibration) -> None:
        """So that a refused frame is flagged at every false-alarm rate there is. They do not depend
        on the rate that ``calibration`` is made for."""
        strictest, strict = (
            max(calibration.with_false_alarm_rate(rate).threshold, calibration.pixel_threshold)
            for rate in (LOWEST_RATE, MARKED_RATE)
        )
        self.level, self.marked_level = torch.tensor(ABOVE * strictest), torch.tensor(strict)
        self.has_levels = True

    def forward(self, maps: Tensor, features: Mapping[int, Tensor]) -> Tensor:
        """(B, M, h, w) maps, the first of a refused frame raised to ``level`` everywhere: it scores
        the image. The last, which marks pixels, is enlarged until its highest value marks some: a
        refused frame can show a large defect, too."""
        is_refused = self.refuses(features)  # (B,)
        raised = (self.level * is_refused.to(maps.dtype))[:, None, None, None]
        scored = torch.maximum(maps[:, :1], raised)
        marked = maps[:, 1:] + EPS  # none where one map does both
        factor = (self.marked_level / marked.amax((2, 3), keepdim=True)).clamp_min(1)
        enlarged = torch.where(is_refused[:, None, None, None], factor * marked, maps[:, 1:])
        return torch.cat([scored, enlarged], dim=1)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and settings for a detector file."""
        tensors = {f"frame.{name}": t.contiguous() for name, t in self.known.tensors().items()}
        return tensors, {
            "limits": [self.rule.deviations, self.rule.means],
            "by_direction": self.rule.by_direction,
            "limit": float(self.limit),
            "level": float(self.level),
            "marked_level": float(self.marked_level),
        }

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], settings: dict[str, Any]) -> FrameCheck:
        """Raises: KeyError, TypeError, ValueError: something is missing or wrong."""
        start = "frame.mean."
        strides = sorted(int(name[len(start) :]) for name in tensors if name.startswith(start))
        references = {
            stride: (tensors[f"{start}{stride}"], tensors[f"frame.deviation.{stride}"])
            for stride in strides
        }
        shapes = {tuple(t.shape) for pair in references.values() for t in pair}
        if not references or any(len(shape) != 3 or shape[1] != 5 for shape in shapes):
            raise ValueError(f"frame: found shapes {sorted(shapes)}, needed are (K, 5, C)")
        deviations, means = settings["limits"]
        by_direction = bool(settings.get("by_direction", False))
        check = cls(references, FrameRule(float(deviations), float(means), by_direction))
        check.limit = torch.tensor(float(settings["limit"]))
        check.has_levels = "marked_level" in settings  # earlier versions had one level alone
        if check.has_levels:
            check.level = torch.tensor(float(settings["level"]))
            check.marked_level = torch.tensor(float(settings["marked_level"]))
        return check
