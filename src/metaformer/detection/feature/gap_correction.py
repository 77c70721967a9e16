"""The transformer beside a memory bank: it corrects the anomaly map."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from metaformer.detection.feature.gap_distances import (
    OF_BACKBONE,
    Readings,
    measure_alone,
    measure_to,
    of_core,
    some_patches,
)
from metaformer.networks.feature_maps import GAP, RESPONSE, Features
from metaformer.networks.gap_transformer import GapTransformer, GapTransformerConfig, corrected
from metaformer.networks.named_buffers import NamedBuffers, under
from metaformer.networks.support_description import (
    COARSE,
    FINE,
    SupportDescription,
    describe_support,
)
from metaformer.networks.weight_files import load_weights, refuse_not_finite

MOST_IMAGES = 16
"""Support images that the transformer looks at; bounds time and memory."""


class TransformerWeightsError(ValueError):
    """Weights that cannot be used; the message says which and why."""


def load_transformer(readings: Readings = OF_BACKBONE) -> GapTransformer:
    """The transformer with the weights inside the package, frozen.

    Raises:
        TransformerWeightsError: the file is missing or damaged, or holds something else.
    """
    return load_weights(
        "transformer",
        readings.weights,
        lambda tensors: from_tensors(tensors, readings),
        TransformerWeightsError,
        None,
    )


def new_transformer(readings: Readings = OF_BACKBONE) -> GapTransformer:
    """The network for these readings, not trained."""
    distances = len(readings.distances)
    return GapTransformer(GapTransformerConfig(readings.channels, distances, readings.gaps))


def from_tensors(tensors: Mapping[str, Tensor], readings: Readings = OF_BACKBONE) -> GapTransformer:
    """Raises: ValueError, RuntimeError: names, shapes or values are not those of the network."""
    refuse_not_finite(tensors)
    network = new_transformer(readings)
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return network.requires_grad_(False).eval()


@dataclass(frozen=True)
class SupportView:
    """Patches and statistics of a support, or of a support without one image."""

    patches: dict[str, Tensor]
    """Name -> (M, C) support patches to measure distances to."""
    description: SupportDescription

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, as a detector file has it."""
        about = self.description
        found = {f"patches.{name}": rows for name, rows in self.patches.items()}
        for stride in about.keys:
            found[f"mean.{stride}"] = about.mean[stride]
            found[f"deviation.{stride}"] = about.deviation[stride]
            found[f"keys.{stride}"] = about.keys[stride]
        found["log_mean"], found["log_deviation"] = about.log_mean, about.log_deviation
        found["loudest"] = about.loudest
        return found

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> SupportView:
        """What ``tensors`` gave. Raises: KeyError: something is missing."""

        def by_stride(name: str) -> dict[int, Tensor]:
            return {stride: tensors[f"{name}.{stride}"] for stride in (FINE, COARSE)}

        description = SupportDescription(
            by_stride("mean"),
            by_stride("deviation"),
            by_stride("keys"),
            tensors["log_mean"],
            tensors["log_deviation"],
            tensors["loudest"],
        )
        return cls(under("patches.", tensors), description)


class GapCorrection(nn.Module):
    """Corrects maps of images by their features."""

    def __init__(self, network: GapTransformer, view: SupportView, readings: Readings) -> None:
        super().__init__()
        self.network = network
        self.readings = readings
        # In the layout that a detector file has, so that sums round alike after loading.
        self.seen = NamedBuffers({n: t.contiguous() for n, t in view.tensors().items()})

    @property
    def view(self) -> SupportView:
        """What is known of the support."""
        return SupportView.of(self.seen.tensors())

    def forward(
        self,
        maps: Tensor,
        features: Features,
        distances: Mapping[str, Tensor],
        view: SupportView | None = None,
    ) -> Tensor:
        """(B, h, w) maps at stride 8 -> (B, 2 h, 2 w), corrected.

        Args:
            distances: descriptor -> (B, h, w), which ``maps`` were made of.
            view: what is known of the support without the image itself; None for all of it.
        """
        known = self.view if view is None else view
        readings = self.readings
        own = measure_to(readings.stride_grids(features), known.patches, of_core(distances))
        found, core = readings.together(own, features)
        correction = self.network(features, found, core, known.description, features.get(RESPONSE))
        return corrected(maps[:, None], correction, readings.size)[:, 0]

    def state(self) -> dict[str, Tensor]:
        """Tensors for a detector file."""
        tensors = {f"transformer.{n}": t for n, t in self.network.state_dict().items()}
        tensors |= {f"seen.{n}": t for n, t in self.seen.tensors().items()}
        return {name: tensor.contiguous() for name, tensor in tensors.items()}

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], readings: Readings) -> GapCorrection:
        """Raises: KeyError, ValueError, RuntimeError: something is missing or does not fit."""
        view = SupportView.of(under("seen.", tensors))
        return cls(from_tensors(under("transformer.", tensors), readings), view, readings)


@torch.no_grad()
def build_correction(
    network: GapTransformer,
    readings: Readings,
    features_of: Callable[[int], Features],
    count: int,
    left_out: Sequence[Mapping[str, Tensor]],
) -> tuple[GapCorrection, dict[int, SupportView]]:
    """Describe a support to the transformer.

    Args:
        features_of: index of a support image -> its features, a batch of one.
        count: number of support images; at most ``MOST_IMAGES`` of them are looked at.
        left_out: distances of each image to the others, by descriptor; not read for a lone image.

    Returns:
        The correction, and by index the view without each image looked at; none for one image.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randperm(count, generator=generator)[:MOST_IMAGES].sort().values.tolist()
    images = []
    for index in drawn:
        features = features_of(index)
        kept = [name for name in (*readings.strides, GAP) if name in features]
        images.append({name: features[name] for name in kept})
    described = [readings.stride_grids(image) for image in images]
    others: list[dict[str, Tensor]] = []
    measured = []
    if len(images) == 1:
        measured.append(readings.together(measure_alone(readings.grids(images[0])), images[0]))
    else:
        for i, own in enumerate(described):
            rest = [grid for j, grid in enumerate(described) if j != i]
            others.append(some_patches(joined(rest), generator))
            found = measure_to(own, others[-1], of_core(left_out[drawn[i]]))
            measured.append(readings.together(found, images[i]))
    patches = some_patches(joined(described), generator)
    description = describe_support(
        [{stride: image[stride][0] for stride in (FINE, COARSE)} for image in images],
        [distances[0] for distances, _ in measured],
        [core[0] for _, core in measured],
    )
    without = {
        index: SupportView(other, replace(description, keys=without_image(description.keys, i)))
        for i, (index, other) in enumerate(zip(drawn, others, strict=False))
    }
    return GapCorrection(network, SupportView(patches, description), readings), without


def joined(images: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Name -> (1, C, 1, cells of all images), whatever their sizes."""
    return {
        name: torch.cat([image[name].flatten(2) for image in images], dim=2)[:, :, None]
        for name in images[0]
    }


def without_image(keys: Mapping[int, Tensor], position: int) -> dict[int, Tensor]:
    """Stride -> the keys (k - 1, m, C) without those of one support image."""
    return {s: torch.cat([k[:position], k[position + 1 :]]) for s, k in keys.items()}
