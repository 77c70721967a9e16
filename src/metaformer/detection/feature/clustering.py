"""Which of some normal images show the same product.

One detector may be of several products, which differ in how far a place says what is to be seen
there. No label says which image shows which, so it is asked of their tokens: those of an image are
nearer to other images of its product than to the rest.
Ours (``docs/decisions/07-self-similarity.md``).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

NEAREST = 2
"""Images that each shows one product with; one alone may be of the same part, seen again."""
FEWEST = 2 * (NEAREST + 1)
"""Images of which several products can be told."""
TIMES = 1.4
"""Two images show one product if both are no further from each other than so many times as far as
from those ``NEAREST``. Images of one product were chained by 1.25 at most; those of two, four of
each, were 1.7 apart and more but for one odd image (``07``)."""
ASKED, COMPARED = 256, 20_000
"""Tokens of an image, and of all images together, that are compared."""


@torch.inference_mode()
def find_products(rows: Tensor) -> tuple[int, ...]:
    """Number of the product that each image shows, from 0 in the order of the images.

    Two images are of one product if a chain of images leads from one to the other, of which each
    is among the nearest of the next, or they are about as near to each other as to their nearest.

    Args:
        rows: (K, N, C) unit tokens of each image.
    """
    if len(rows) < FEWEST:
        return (0,) * len(rows)
    is_near = times_as_far(rows) <= TIMES
    found = [-1] * len(rows)
    for first in range(len(rows)):
        if found[first] < 0:
            number = max(found) + 1
            for image in reached(is_near, first):
                found[image] = number
    return tuple(found)


def times_as_far(rows: Tensor) -> Tensor:
    """(K, K) how many times as far images are from each other as from their nearest, the larger of
    both; at most 1 where one is among the ``NEAREST`` of the other."""
    apart = distances_between(rows)
    nearest = apart.sort(1).values[:, NEAREST - 1 : NEAREST]  # (K, 1)
    times = apart / nearest.clamp_min(torch.finfo(apart.dtype).tiny)
    times = torch.where(apart <= nearest, times.clamp_max(1), times)
    either, both = torch.minimum(times, times.T), torch.maximum(times, times.T)
    return torch.where(either <= 1, either, both)


def distances_between(rows: Tensor) -> Tensor:
    """(K, K) mean of 1 - cosine of tokens of an image to the nearest of another; infinite from an
    image to itself."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randperm(rows.shape[1], generator=generator)
    kept = rows[:, drawn[: max(1, COMPARED // len(rows))]]  # (K, M, C)
    asked = rows[:, drawn[:ASKED]]  # (K, Q, C)
    apart = [
        1 - (image @ kept.flatten(0, 1).T).unflatten(1, kept.shape[:2]).amax(2).mean(0)
        for image in asked
    ]
    return torch.stack(apart).fill_diagonal_(torch.inf)


def reached(is_near: Tensor, first: int) -> Iterator[int]:
    """Images to which chains lead from the ``first``, itself included."""
    seen, ahead = {first}, [first]
    while ahead:
        image = ahead.pop()
        yield image
        near = set(is_near[image].nonzero().flatten().tolist()) - seen
        seen |= near
        ahead.extend(near)
