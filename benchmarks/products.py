"""How well images of several products are told apart without labels.

    python -m benchmarks.products CATEGORY_FOLDER... --output products.json

Normal images of each category alone, and of all of them together, by five seeds: how far (in times
of their nearest) the images of one category have to be chained to be one product, and how far two
categories are from being one; how often there are as many products as categories; and which
product the test images are taken for. Nothing of the test images but their category is looked at.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metaformer.adaptation import prepare
from metaformer.benchmark import save_results
from metaformer.datasets import Category, draw_support, load_categories
from metaformer.feature_model import FeatureModel
from metaformer.files import write_text
from metaformer.images import read_image
from metaformer.metric import FINE, RAW
from metaformer.products import TIMES, find_products, times_as_far
from metaformer.same_place import SamePlace, rows_of
from metaformer.summary import machine

SEEDS = range(5)
ALONE = (6, 8, 16)
"""Images of one category."""
TOGETHER = (3, 4)
"""Images of each of all."""
TESTED = 60
"""Test images of each category, drawn."""

Tokens = dict[str, Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description="Products told apart without labels.")
    parser.add_argument("roots", type=Path, nargs="+", help="folders of categories")
    parser.add_argument("--output", type=Path, required=True, help="JSON; .md beside it")
    options = parser.parse_args()
    model = FeatureModel.from_pretrained()
    categories = [category for root in options.roots for category in load_categories(root)]
    tested = [test_images(model, category) for category in categories]
    rows = []
    for seed in SEEDS:
        drawn = [support(model, category, seed) for category in categories]
        rows.append(measure([c.name for c in categories], drawn, tested))
    result = {"times": TIMES, "seeds": [*SEEDS], "rows": rows, "machine": machine()}
    save_results(result, options.output)
    write_text(options.output.with_suffix(".md"), markdown(result))
    print(markdown(result))


def support(model: FeatureModel, category: Category, seed: int) -> list[Tokens]:
    return [tokens_of(model, path) for path in draw_support(category, max(ALONE), seed)]


def test_images(model: FeatureModel, category: Category) -> list[Tokens]:
    order = np.random.default_rng(0).permutation(len(category.test))[:TESTED]
    return [tokens_of(model, category.test[i].image) for i in order]


def tokens_of(model: FeatureModel, path: Path) -> Tokens:
    tokens = prepare(model, read_image(path))
    return {name: tokens[name] for name in (FINE, RAW)}


def measure(
    names: Sequence[str], drawn: Sequence[list[Tokens]], tested: Sequence[list[Tokens]]
) -> dict[str, Any]:
    """Of one draw of images."""
    alone = {
        name: {f"{count}": chain(between(images[:count])) for count in ALONE}
        for name, images in zip(names, drawn, strict=True)
    }
    together = {}
    for each in TOGETHER:
        shown = np.repeat(np.arange(len(names)), each)
        place = SamePlace.of([tokens for images in drawn for tokens in images[:each]])
        times = times_as_far(rows_of(place.fine)).numpy()
        found = find_products(rows_of(place.fine))
        place.products, place.alignments = tuple(shown.tolist()), (0.0,) * len(names)
        together[f"{each}"] = {
            "apart": {
                f"{names[b]}, {names[a]}": float(times[np.ix_(shown == a, shown == b)].min())
                for a in range(len(names))
                for b in range(a)
            },
            "products": found,
            "taken for their own": {
                name: float(np.mean([place.product_of(tokens) == number for tokens in images]))
                for number, (name, images) in enumerate(zip(names, tested, strict=True))
            },
        }
    return {"alone": alone, "together": together}


def between(images: Sequence[Tokens]) -> Tensor:
    """(K, K) how many times as far as their nearest images are apart."""
    return times_as_far(rows_of(SamePlace.of(images).fine))


def chain(times: Tensor) -> float:
    """The least limit at which chains lead from each image to each."""
    joined, limit = [0], 1.0
    while len(joined) < len(times):
        rest = [i for i in range(len(times)) if i not in joined]
        nearest = times[joined][:, rest].amin(0)
        limit = max(limit, float(nearest.min()))
        joined.append(rest[int(nearest.argmin())])
    return limit


def markdown(result: dict[str, Any]) -> str:
    rows = result["rows"]
    lines = [
        f"Two images are of one product up to {result['times']} times as far as their nearest. "
        f"Seeds {', '.join(map(str, result['seeds']))}; {result['machine']['processor']}.",
        "",
        f"| images of one category | {' | '.join(f'{count}' for count in ALONE)} |",
        f"|{' --- |' * (len(ALONE) + 1)}",
    ]
    for name in rows[0]["alone"]:
        worst = [max(row["alone"][name][f"{count}"] for row in rows) for count in ALONE]
        lines.append(f"| {name}, chained by at most | {' | '.join(f'{x:.2f}' for x in worst)} |")
    each = [f"{count} of each" for count in TOGETHER]
    lines += ["", f"| two categories together | {' | '.join(each)} |"]
    lines.append(f"|{' --- |' * (len(TOGETHER) + 1)}")
    for pair in rows[0]["together"][f"{TOGETHER[0]}"]["apart"]:
        cells = []
        for count in TOGETHER:
            apart = [row["together"][f"{count}"]["apart"][pair] for row in rows]
            cells.append(f"{min(apart):.2f} (middle {float(np.median(apart)):.2f})")
        lines.append(f"| {pair}, apart by at least | {' | '.join(cells)} |")
    lines += ["", "| products found in all together | seed by seed |", "| --- | --- |"]
    for count, name in zip(TOGETHER, each, strict=True):
        found = ["".join(map(str, row["together"][f"{count}"]["products"])) for row in rows]
        lines.append(f"| {name} | {', '.join(found)} |")
    lines += ["", "| test images taken for their own product | of 4 each, worst seed |"]
    lines.append("| --- | --- |")
    last = [row["together"][f"{TOGETHER[-1]}"]["taken for their own"] for row in rows]
    lines += [f"| {name} | {min(row[name] for row in last):.0%} |" for name in last[0]]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
