"""What int8 and bf16 cost: accuracy, scores and time of exported models against float32.

    python -m benchmarks.speed.precision DATA_ROOT... --output benchmarks/results/precision.json

For each set and seed a detector of the feature preset is adapted to ten images and exported in
every precision, without the check that would refuse a poor one. int8 takes its ranges from the same
ten images. bf16 is measured where the processor has it and left out elsewhere. Times are processor
time on one thread, medians over the test images; ``refused`` says whether ``metaformer export``
would have refused the model, with the ten images as ``--check``. A run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metaformer.data.datasets.loading import Category, Sample, draw_support, load_categories
from metaformer.detection.detector import Detector
from metaformer.detection.engines.sessions import PrecisionError, RunModel, compile_model, versions
from metaformer.detection.metaformer import Metaformer
from metaformer.evaluation.aggregate import machine
from metaformer.evaluation.metrics import image_metrics
from metaformer.evaluation.protocol import save_results
from metaformer.evaluation.samples import limit_samples
from metaformer.export.exporter import quantise
from metaformer.export.onnx.detector import full_model
from metaformer.export.verification import (
    ExportRefusedError,
    Image,
    compare,
    measure,
    refuse_if_poor,
    with_defects,
)
from metaformer.io.atomic_files import write_text
from metaformer.io.images import read_image

SHOTS = 10
REFERENCE = "onnxruntime f32"


def main() -> None:
    parser = argparse.ArgumentParser(description="What int8 and bf16 cost.")
    parser.add_argument("roots", nargs="+", type=Path, metavar="DATA_ROOT")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument(
        "--limit", type=int, default=60, help="test images, drawn once, of each set"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    seeds = [int(part) for part in options.seeds.split(",")]
    rows: list[dict[str, Any]] = []
    if options.output.is_file():
        rows = json.loads(options.output.read_text(encoding="utf-8"))["rows"]
    for root in options.roots:
        (category,) = load_categories(root)
        test = limit_samples(category.test, options.limit)
        for seed in seeds:
            if any((row["data"], row["seed"]) == (root.name, seed) for row in rows):
                continue
            for row in measure_precisions(category, test, seed):
                rows.append({"data": root.name, "seed": seed, **row})
                print(rows[-1], flush=True)
            save(rows, seeds, options)
    save(rows, seeds, options)


def save(rows: list[dict[str, Any]], seeds: list[int], options: argparse.Namespace) -> None:
    result: dict[str, Any] = {
        "preset": "feature",
        "shots": SHOTS,
        "seeds": seeds,
        "limit": options.limit,
        "machine": machine(),
        "versions": versions("onnxruntime") | versions("openvino"),
        "bf16": any("bf16" in row["model"] for row in rows),
        "mean": summarise(rows),
        "rows": rows,
    }
    save_results(result, options.output)
    write_text(options.output.with_suffix(".md"), table(result))


def measure_precisions(
    category: Category, test: Sequence[Sample], seed: int
) -> Iterator[dict[str, Any]]:
    """One row a model: what it scores, beside what float32 scores."""
    support = [read_image(path) for path in draw_support(category, SHOTS, seed)]
    detector = Metaformer.from_pretrained("feature").adapt(support, seed=seed)
    images = [read_image(sample.image) for sample in test]
    labels = np.array([sample.is_anomalous for sample in test])
    expected: np.ndarray[Any, Any] | None = None
    for name, run, size in models(detector, support):
        scores, seconds = score(run, images)
        expected = scores if expected is None else expected
        check = measure(compare(detector, run, with_defects(support)))
        try:
            refuse_if_poor(check, name)
            refused = False
        except ExportRefusedError:
            refused = True
        yield {
            "model": name,
            "image_auroc": float(image_metrics(labels, scores)["image_auroc"] or 0),
            "max_score_change": float(np.abs(scores - expected).max()),
            "mean_score_change": float(np.abs(scores - expected).mean()),
            "verdicts_changed": int(((scores >= 0.5) != (expected >= 0.5)).sum()),
            "images": len(images),
            "milliseconds": 1000 * statistics.median(seconds),
            "megabytes": size / 1e6,
            "refused": refused,
        }


def models(detector: Detector, support: Sequence[Image]) -> Iterator[tuple[str, RunModel, int]]:
    """Name, model and bytes of its file; float32 in ONNX Runtime first."""
    whole = full_model(detector)
    small = quantise(whole, support)
    f32, int8 = whole.SerializeToString(), small.SerializeToString()
    yield REFERENCE, compile_model(f32, "onnxruntime", threads=1), len(f32)
    yield "onnxruntime int8", compile_model(int8, "onnxruntime", threads=1), len(int8)
    yield "openvino f32", compile_model(f32, "openvino", threads=1), len(f32)
    yield "openvino int8", compile_model(int8, "openvino", threads=1), len(int8)
    try:
        run = compile_model(f32, "openvino", precision="bf16", threads=1)
    except PrecisionError as error:
        print(error)
        return
    yield "openvino bf16", run, len(f32)


def score(run: RunModel, images: Sequence[Image]) -> tuple[np.ndarray[Any, Any], list[float]]:
    """Calibrated scores (N), and seconds of processor time for each image."""
    run(images[0][None])  # plans memory
    scores, seconds = [], []
    for image in images:
        started = time.process_time()
        scores.append(float(run(image[None])["score"][0]))
        seconds.append(time.process_time() - started)
    return np.array(scores), seconds


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Over seeds: means, the largest change of a score, sums of verdicts and refusals."""
    means = []
    for data, model in dict.fromkeys((row["data"], row["model"]) for row in rows):
        same = [row for row in rows if (row["data"], row["model"]) == (data, model)]
        means.append(
            {
                "data": data,
                "model": model,
                **{
                    key: float(np.mean([row[key] for row in same]))
                    for key in ("image_auroc", "mean_score_change", "milliseconds", "megabytes")
                },
                "max_score_change": max(row["max_score_change"] for row in same),
                **{
                    key: sum(row[key] for row in same)
                    for key in ("verdicts_changed", "images", "refused")
                },
                "detectors": len(same),
            }
        )
    return means


def table(result: dict[str, Any]) -> str:
    """The means in Markdown."""
    lines = [
        f"`feature` preset, {result['shots']} normal images, seeds "
        f"{', '.join(map(str, result['seeds']))}; {result['machine']['processor']}, one thread, "
        f"processor time, pixels in to score and map. "
        + ("" if result["bf16"] else "This processor has no bf16."),
        "",
        "| set | model | image AUROC | a score moves by (mean / most) | verdicts changed "
        "| ms an image | MB | refused |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {mean['data']} | {mean['model']} | {100 * mean['image_auroc']:.1f} "
        f"| {mean['mean_score_change']:.4f} / {mean['max_score_change']:.3f} "
        f"| {mean['verdicts_changed']} of {mean['images']} | {mean['milliseconds']:.0f} "
        f"| {mean['megabytes']:.1f} | {mean['refused']} of {mean['detectors']} |"
        for mean in result["mean"]
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
