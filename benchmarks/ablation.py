"""What each part of the universal model is worth: short meta-trainings that differ in one thing.

    python -m benchmarks.ablation PHOTOS DATA_ROOT... --work FOLDER --output results.json

Every variant starts from the same plainly pre-trained A, sees the same episodes for the same number
of steps, and is measured on held-out episodes and, adapted to real products, on their test images.
Variants are compared with each other; none is trained as long as what is shipped. A run that was
stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from metaformer.autoencoder import AutoencoderConfig
from metaformer.benchmark import evaluate, save_results
from metaformer.datasets import Category, load_categories
from metaformer.detector_method import DetectorMethod
from metaformer.episode_loss import LossWeights
from metaformer.files import write_text
from metaformer.model import UniversalConfig
from metaformer.summary import machine
from metaformer.tables import cell
from metaformer.training.meta import meta_train
from metaformer.training.meta_config import MetaConfig, describe

COLUMNS = ("image_auroc", "pixel_auroc", "pixel_ap", "aupro")
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
    base = MetaConfig(
        data=options.photos,
        output=options.work,
        start=options.start,
        model=UniversalConfig(),
        queries=(4, 5),
        steps=options.steps,
        inner_steps=2,
        inner_lr=0.01,
        multi_step_share=0.0,
        validate_every=options.steps,
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
) -> dict[str, Any]:
    method = DetectorMethod(
        "pixel", resolution=options.resolution, universal_weights=folder, name=folder.name
    )
    found = evaluate(
        categories,
        method,
        shots=options.shots,
        seeds=options.seeds,
        test_limit=options.test_limit,
        quiet=True,
    )
    return {"mean": found["mean"], "std": found["std"], "shots": found["shots"]}


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
        f"{options.steps} steps of meta-training each, one training seed; support seeds "
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
        lines += ["", f"## {data}", "", f"| variant | {' | '.join(COLUMNS)} |"]
        lines.append(f"|{' --- |' * (1 + len(COLUMNS))}")
        for result in results:
            found = result["sets"][data]
            cells = [cell(found, name) for name in COLUMNS]
            lines.append(f"| {result['variant']} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Ablations of the universal model.")
    parser.add_argument("photos", type=Path, help="unlabelled photos, as for pretraining")
    parser.add_argument("roots", nargs="+", type=Path, metavar="DATA_ROOT")
    parser.add_argument("--work", type=Path, required=True, help="folder for the trainings")
    parser.add_argument("--start", type=Path, help="weights of a plainly pre-trained A")
    parser.add_argument("--output", type=Path, required=True, help="JSON; .md is written beside")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--shots", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--test-limit", type=int, default=60)
    parser.add_argument("--only", nargs="*", help="variants by name")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
