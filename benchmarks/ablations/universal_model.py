"""What each part of the universal model is worth: short meta-trainings that differ in one thing.

    python -m benchmarks.ablations.universal_model PHOTOS DATA_ROOT... --work FOLDER
        --output results.json

Every variant starts from the same plainly pre-trained A, sees the same episodes for the same number
of steps, and is measured on held-out episodes and, adapted to real products, on their test images:
by the map before T, which the fast mode uses, and by the map after it. Variants are compared with
each other; none is trained as long as what is shipped. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from metaformer.data.datasets.loading import Category, load_categories
from metaformer.detection.adaptation import prepare
from metaformer.detection.pixel.adapted import AdaptedPixel
from metaformer.detection.pixel.config import PixelConfig
from metaformer.detection.pixel.prepared_image import PreparedImage
from metaformer.detection.pixel.preset import PixelPreset
from metaformer.detection.pixel.universal_model import Output, UniversalConfig
from metaformer.detection.scoring.anomaly_map import image_score, smooth, to_image_size
from metaformer.evaluation.aggregate import machine
from metaformer.evaluation.protocol import evaluate, save_results
from metaformer.evaluation.table import cell
from metaformer.io.atomic_files import write_text
from metaformer.networks.autoencoder import AutoencoderConfig
from metaformer.training.universal.config import MetaConfig, describe
from metaformer.training.universal.losses import LossWeights
from metaformer.training.universal.train import meta_train

COLUMNS = ("image_auroc", "pixel_auroc", "pixel_ap", "aupro")
MAPS = ("first", "anomaly")
"""Of an ``Output``: before T, and after it."""
HELD_OUT = ("gain", "image_auroc", "pixel_auroc", "first_image_auroc", "first_pixel_auroc")


def variants(base: MetaConfig) -> dict[str, MetaConfig]:
    """Each differs from the first in one thing."""

    def model(**changes: Any) -> MetaConfig:
        return replace(base, model=replace(base.model, **changes))

    return {
        "full (first order)": base,
        "second order": replace(base, first_order_share=0.0),
        # No inner steps at all: A is trained as it is used, by the support's moments alone.
        "no meta-learning": replace(base, inner_lr=0.0, rate_lr=0.0),
        "no R": model(response="none"),
        "R as gate": model(response="gate"),
        "R as key bias": model(response="bias"),
        "no T": model(transformer=False),
        "no support attention": model(support_attention=False),
        "group norm": model(autoencoder=AutoencoderConfig(norm="group")),
        "no synthetic defects": replace(
            base, losses=LossWeights(refine=0, locate=0, first=0, rank=0)
        ),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(1)
    base = MetaConfig(
        data=options.photos,
        output=options.work,
        start=options.start,
        model=UniversalConfig(),
        queries=(4, 5),
        meta_batch=options.meta_batch,
        steps=options.steps,
        warm_up=options.steps // 8,
        inner_steps=2,
        inner_lr=0.01,
        multi_step_share=0.0,
        validate_every=options.steps,
        validation_episodes=options.episodes,
        checkpoint_every=25,
        threads=options.threads,
    )
    sets = {root.name: load_categories(root) for root in options.roots}
    results = json.loads(options.output.read_text())["results"] if options.output.exists() else []
    done = {result["variant"] for result in results}
    for name, config in variants(base).items():
        if name in done or (options.only and name not in options.only):
            continue
        folder = options.work / name.replace(" ", "_")
        print(f"{name}: training", flush=True)
        train(replace(config, output=folder))
        print(f"{name}: measuring", flush=True)
        result = {
            "variant": name,
            "training": describe(config),
            "held_out": held_out(folder),
            "sets": {data: measure(found, folder, options) for data, found in sets.items()},
            **machine_and_settings(options),
        }
        results.append(result)
        save_results({"results": results}, options.output)
        write_text(options.output.with_suffix(".md"), markdown(results, options))


def train(config: MetaConfig) -> None:
    """To the end, from the last checkpoint if there is one."""
    log = config.output / "log.jsonl"
    if log.exists() and json.loads(log.read_text().splitlines()[-1])["step"] == config.steps:
        return
    resume = (config.output / "checkpoint.safetensors").exists()
    meta_train(config, resume=resume, quiet=True)


def held_out(folder: Path) -> dict[str, dict[str, float]]:
    """The last validation of each kind of episodes."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {line["validation"]: line for line in lines if "validation" in line}


def measure(
    categories: Sequence[Category], folder: Path, options: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Of both maps; one where the variant has no T."""
    config = PixelConfig(
        resolution=options.resolution, mode="long", long_steps=0
    )  # so that T is asked
    model = PixelPreset.from_pretrained(config, folder)
    outputs: dict[tuple[int, int], Output] = {}
    results = {}
    for name in MAPS if model.universal.transformer is not None else MAPS[:1]:
        found = evaluate(
            categories,
            OneMap(model, name, outputs),
            shots=options.shots,
            seeds=options.seeds,
            test_limit=options.test_limit,
            quiet=True,
        )
        results[name] = {"mean": found["mean"], "std": found["std"], "shots": found["shots"]}
    return results


class OneMap:
    """The universal model adapted by the learned steps alone: T is not trained on the support.

    ``outputs`` holds what was found for the other map: the harness asks for the same images in
    the same order, so that each is looked at once.
    """

    def __init__(
        self, model: PixelPreset, which: str, outputs: dict[tuple[int, int], Output]
    ) -> None:
        self.model, self.name, self.outputs = model, which, outputs
        self.settings = asdict(model.config)
        self.fits = 0

    def fit(self, support: Sequence[NDArray[np.uint8]], seed: int) -> FittedMap:
        self.fits += 1
        if (self.fits, 0) in self.outputs:
            return FittedMap(self, None)
        prepared = [prepare(self.model, image) for image in support]
        return FittedMap(self, self.adapted_to(prepared, seed))

    def adapted_to(self, prepared: Sequence[PreparedImage], seed: int) -> AdaptedPixel:
        adapted = self.model.adapt(prepared, seed=seed, on_step=lambda done, total: None).adapted
        assert isinstance(adapted, AdaptedPixel)
        return adapted


@dataclass
class FittedMap:
    method: OneMap
    adapted: AdaptedPixel | None
    """None where every image has been looked at."""
    scored: int = 0

    @torch.no_grad()
    def score(self, images: Sequence[NDArray[np.uint8]]) -> list[tuple[float, NDArray[np.float32]]]:
        config, outputs = self.method.model.config, self.method.outputs
        results = []
        for image in images:
            key = (self.method.fits, self.scored)
            self.scored += 1
            if key not in outputs:
                assert self.adapted is not None and self.adapted.memory is not None
                encoded = self.adapted.encode(prepare(self.method.model, image))
                outputs[key] = self.adapted.universal(encoded, self.adapted.memory)
            grid = smooth(getattr(outputs[key], self.method.name), config.sigma)[0]
            score = image_score(grid, config.score_share)
            results.append((score, to_image_size(grid, image.shape)))
        return results


def machine_and_settings(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "shots": options.shots,
        "seeds": options.seeds,
        "resolution": options.resolution,
        "test_limit": options.test_limit,
        "machine": machine(),
    }


def markdown(results: Sequence[dict[str, Any]], options: argparse.Namespace) -> str:
    """Held-out episodes first, then a table for each data set."""
    lines = [
        f"{options.steps} steps of {options.meta_batch} episodes each, one training seed; "
        f"{options.episodes} held-out episodes of each kind; support seeds "
        f"{', '.join(map(str, options.seeds))}, {options.shots} shots (pairs: 1), "
        f"{options.resolution} px, at most {options.test_limit} test images a set. Percent, mean "
        "and standard deviation over support seeds.",
        "",
        "## Held-out episodes",
        "",
        "`gain` is the query loss before the inner steps minus after; `first` is the map before "
        "T; AUROC within an episode. Novelty episodes show real photos only.",
        "",
        f"| variant | episodes | {' | '.join(HELD_OUT)} |",
        f"|{' --- |' * (2 + len(HELD_OUT))}",
    ]
    for result in results:
        for kind, found in result["held_out"].items():
            cells = [f"{found['gain']:.4f} ± {found['gain_std']:.4f}"]
            aurocs = {"mean": found, "std": dict.fromkeys(HELD_OUT)}  # of one training
            cells += [cell(aurocs, name) for name in HELD_OUT[1:]]
            lines.append(f"| {result['variant']} | {kind} | {' | '.join(cells)} |")
    for data in results[0]["sets"]:
        lines += ["", f"## {data}", "", f"| variant | map | {' | '.join(COLUMNS)} |"]
        lines.append(f"|{' --- |' * (2 + len(COLUMNS))}")
        for result in results:
            for which, found in result["sets"][data].items():
                cells = [cell(found, name) for name in COLUMNS]
                place = "after T" if which == "anomaly" else "before T"
                lines.append(f"| {result['variant']} | {place} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Ablations of the universal model.")
    parser.add_argument("photos", type=Path, help="unlabelled photos, as for pretraining")
    parser.add_argument("roots", nargs="+", type=Path, metavar="DATA_ROOT")
    parser.add_argument("--work", type=Path, required=True, help="folder for the trainings")
    parser.add_argument("--start", type=Path, help="weights of a plainly pre-trained A")
    parser.add_argument("--output", type=Path, required=True, help="JSON; .md is written beside")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--meta-batch", type=int, default=4)
    parser.add_argument("--episodes", type=int, default=24, help="held-out ones of each kind")
    parser.add_argument("--shots", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--test-limit", type=int, default=60)
    parser.add_argument("--only", nargs="*", help="variants by name")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
