"""What normal images show at the same place, and how far a place says what is to be seen there.

A token may be normal elsewhere on a part and not here. Where parts stand in much the same way on
every image, the tokens around the same place of some support images are the better comparison; on
a surface that looks alike everywhere, or on parts that lie anyhow, they are a poor sample of what
is normal. Which of the two a product is can be seen on its good images alone
(``measure_alignment``); of several products in one detector, for each of them, and an image is
taken for one of the product that it is most like.
Ours (``docs/decisions/06-position.md``, ``07-self-similarity.md``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from metaformer.detection.feature.clustering import ASKED, COMPARED, find_products
from metaformer.detection.nearest_neighbors import cosine_distance, fit_grid
from metaformer.networks.patch_metric import FINE, HERE, RAW

MOST_IMAGES = 16
"""Support images whose places are remembered, drawn at random of more. Four do as well; of a
support of several products those are told that have three among them."""
REACH = 1
"""Cells of stride 8 that the same place may be apart, for tokens compared by direction."""
APART = 1e-6
"""By less than this, everything on a product looks alike."""


@dataclass
class SamePlace:
    """Grids of some support images: (K, C, h, w) of stride 8, on the grid of the first."""

    fine: Tensor
    """Tokens of the metric, of unit length."""
    raw: Tensor
    """Features as they are."""
    products: tuple[int, ...] = ()
    """Number of the product that each image shows; empty: all show one."""
    alignments: tuple[float, ...] = (0.0,)
    """Of each product, how far places say what is to be seen there, 0 to 1."""
    _windows: dict[tuple[int, int], Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        # The channels of a cell side by side, as those of the tokens that are compared with them.
        self.raw = self.raw.contiguous(memory_format=torch.channels_last)

    @classmethod
    def of(cls, images: Sequence[Mapping[str, Tensor]]) -> SamePlace:
        """Of images as ``FeatureModel.prepare`` gives them, of any sizes."""
        chosen = some(len(images))
        size = images[chosen[0]][FINE].shape[1:]
        return cls(
            torch.stack([fit_grid(images[i][FINE], size) for i in chosen]),
            torch.cat([on_grid(images[i][RAW][None], size) for i in chosen]),
        )

    def measured(self) -> SamePlace:
        """With what the images, two or more, say of products and places."""
        products = find_products(rows_of(self.fine))
        of_each = [
            [grid for grid, shown in zip(self.fine, products, strict=True) if shown == product]
            for product in range(max(products) + 1)
        ]
        alignments = tuple(measure_alignment(grids) for grids in of_each)
        return replace(self, products=products, alignments=alignments)

    def product_of(self, tokens: Mapping[str, Tensor]) -> int:
        """Number of the product of the remembered image that an image is most like, place by
        place."""
        if len(self.alignments) == 1:
            return 0
        query = tokens[FINE]
        cosines = around_each(query.flatten(1).T, self.windows(query.shape[1:]))  # (h * w, K * N)
        alike = cosines.unflatten(1, (len(self.fine), -1)).amax(2).mean(0)  # (K,)
        return self.products[int(alike.argmax())]

    def merged(self, other: SamePlace) -> SamePlace:
        """With the images of ``other`` as far as there is room; not ``measured`` yet."""
        room = MOST_IMAGES - len(self.fine)
        size = self.fine.shape[2:]
        fine = [fit_grid(grid, size) for grid in other.fine[:room]]
        raw = on_grid(other.raw[:room], size)
        return SamePlace(
            torch.cat([self.fine, *(grid[None] for grid in fine)]), torch.cat([self.raw, raw])
        )

    def distances(self, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """(h, w) of an image: ``HERE``, 1 - cosine to the nearest token around the same place, and
        ``RAW``, Euclidean distance to the nearest features at the place itself."""
        query = tokens[FINE]
        size = query.shape[1:]
        cosine = best_cosine(query.flatten(1).T, self.windows(size))  # (h * w, 1)
        raw = on_grid(self.raw, size)
        apart = torch.linalg.vector_norm(raw - tokens[RAW], dim=1).amin(0)
        return {HERE: (1 - cosine).clamp_min(0).reshape(size), RAW: apart}

    def windows(self, size: torch.Size) -> Tensor:
        """(h * w, N, C) tokens around each place of a grid. Those of the last size are kept."""
        key = (size[0], size[1])
        windows = self._windows.get(key)
        if windows is None:
            rows = rows_of(torch.stack([fit_grid(grid, size) for grid in self.fine]))
            windows = gathered(rows, around(size))
            self._windows = {key: windows}  # another thread may put another size here
        return windows


def products_in(same_place: SamePlace | None) -> int:
    """How many products a support shows; one where its places do not matter."""
    return 1 if same_place is None else len(same_place.alignments)


def some(count: int) -> list[int]:
    """Indices of the images whose places are remembered, in their order."""
    generator = torch.Generator().manual_seed(0)
    chosen: list[int] = (
        torch.randperm(count, generator=generator)[:MOST_IMAGES].sort().values.tolist()
    )
    return chosen


def on_grid(features: Tensor, size: torch.Size) -> Tensor:
    """(K, C, h, w) resampled; unchanged if they fit."""
    if features.shape[2:] == size:
        return features
    return F.interpolate(features, tuple(size), mode="bilinear")


def rows_of(grids: Tensor) -> Tensor:
    """(K, C, h, w) -> (K, h * w, C), the channels of a cell side by side."""
    return grids.flatten(2).transpose(1, 2).contiguous()


def around(size: torch.Size) -> Tensor:
    """(h * w, N) of each place of a grid the places at most ``REACH`` away, row by row; beyond the
    border the outermost again."""
    height, width = size
    steps = torch.arange(-REACH, REACH + 1)
    rows = (torch.arange(height)[:, None] + steps).clamp(0, height - 1)  # (h, 3)
    columns = (torch.arange(width)[:, None] + steps).clamp(0, width - 1)  # (w, 3)
    places = rows[:, None, :, None] * width + columns[None, :, None, :]  # (h, w, 3, 3)
    return places.reshape(height * width, -1)


@torch.inference_mode()
def measure_alignment(images: Sequence[Tensor]) -> float:
    """How far a place says what is to be seen there, from 0 (nothing) to 1 (all that can be known),
    by the unit tokens (C, h, w) of two normal images or more.

    Tokens of each image are compared with those around the same place of the others, with as many
    drawn anywhere, and with all of them: the first distance is as large as the second if places
    say nothing, and as small as the third if they say all.
    """
    chosen = some(len(images))
    size = images[chosen[0]].shape[1:]
    rows = rows_of(torch.stack([fit_grid(images[i], size) for i in chosen]))  # (K, h * w, C)
    generator = torch.Generator().manual_seed(0)
    cells, most = size.numel(), max(1, COMPARED // len(rows))
    asked = torch.randperm(cells, generator=generator)[:ASKED]  # the same of every image
    around_them = around(size)[asked]  # (Q, side^2)
    elsewhere = torch.randint(cells, around_them.shape, generator=generator)
    kept = torch.randperm(cells, generator=generator)[:most]
    here, anywhere, nearest = 0.0, 0.0, 0.0
    for i, image in enumerate(rows):
        query = image[asked]  # (Q, C)
        others = torch.cat([rows[:i], rows[i + 1 :]])
        here += float(1 - best_cosine(query, gathered(others, around_them)).mean())
        anywhere += float(1 - best_cosine(query, gathered(others, elsewhere)).mean())
        nearest += float(cosine_distance(query, others[:, kept].flatten(0, 1)).mean())
    if anywhere - nearest <= APART * len(rows):
        return 0.0
    return min(1.0, max(0.0, (anywhere - here) / (anywhere - nearest)))


def gathered(images: Tensor, places: Tensor) -> Tensor:
    """Tokens of ``images`` (K, h * w, C) at ``places`` (Q, N), together: (Q, K * N, C)."""
    return torch.cat([image[places] for image in images], dim=1)


def best_cosine(query: Tensor, windows: Tensor) -> Tensor:
    """(Q, 1) of unit tokens (Q, C), each with the nearest of its own in ``windows`` (Q, N, C)."""
    return around_each(query, windows).amax(1, keepdim=True)


def around_each(query: Tensor, windows: Tensor) -> Tensor:
    """(Q, N) cosines of unit tokens (Q, C), each with all of its own in ``windows`` (Q, N, C)."""
    # The other way round, (windows @ query[:, :, None]), takes more than twice as long.
    return torch.bmm(query[:, None], windows.transpose(1, 2))[:, 0]
