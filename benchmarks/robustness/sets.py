"""What ``blank_frames`` and ``camera`` share: options, sets, and where a run was made."""

from __future__ import annotations

import argparse
import importlib.metadata
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.ablations.leave_one_product_out import SETS
from benchmarks.accuracy.baselines.feature_cache import keep_features
from metaformer.data.datasets.loading import Category, draw_support, load_categories
from metaformer.evaluation.aggregate import machine
from metaformer.io.images import read_image

Image = NDArray[np.uint8]
MEGABYTES_KEPT = 500
"""Of features, for the methods that share a backbone."""
PACKAGES = ("metaformer-ad", "torch", "numpy", "opencv-python-headless")


def parse(
    description: str, methods: Sequence[str], limit: int, arguments: Sequence[str] | None
) -> argparse.Namespace:
    """Options of both; prepares PyTorch and OpenCV for one thread."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("data", type=Path, help="folder that holds the sets")
    parser.add_argument("--output", type=Path, required=True, help="JSON; .md is written beside")
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--methods", nargs="+", default=list(methods))
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 4, 10])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--limit", type=int, default=limit, help="test images of each set")
    options = parser.parse_args(arguments)
    if options.output.suffix != ".json":
        parser.error(f"--output must end in .json, got {options.output}")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    keep_features(MEGABYTES_KEPT)
    return options


def load(data: Path, name: str) -> Category:
    """A set of one category."""
    (category,) = load_categories(data / name)
    return category


def supports(
    category: Category, shots: Sequence[int], seeds: Sequence[int]
) -> Iterator[tuple[int, int, list[Image]]]:
    """Number of images, seed and support; numbers that the set does not have are told of."""
    for count in shots:
        if count > len(category.train):
            print(f"{category.name}: {len(category.train)} normal images, so none with {count}")
            continue
        for seed in seeds:
            paths = draw_support(category, count, seed)
            yield count, seed, [read_image(path) for path in paths]


def provenance(options: argparse.Namespace) -> dict[str, Any]:
    """Goes into the results."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "shots": options.shots,
        "seeds": options.seeds,
        "limit": options.limit,
    }


def in_words(content: dict[str, Any]) -> str:
    """The same for people."""
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    return (
        f"{content['date'][:10]}; {content['machine']['platform']}, "
        f"{content['machine']['processor']}; {versions}; {content['shots']} normal images, support "
        f"seeds {content['seeds']}, at most {content['limit']} test images of each set."
    )
