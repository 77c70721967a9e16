"""How near each step of scoring one image comes to what one core can do.

Floating-point operations are counted by PyTorch's counter (matrix products and convolutions) and
bytes are those of a step's inputs, weights and outputs, each once. The peak is that of the machine
as measured here: the faster of a matrix product and a convolution in float32, one thread. A step is
as fast as the machine allows where its share of the peak is 1, or where its bytes at the measured
bandwidth take as long as it does.

    python -m benchmarks.speed.roofline CATEGORY_FOLDER [--images 10] [--output roofline.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from metaformer import Detector, Metaformer
from metaformer.data.datasets.loading import load_categories
from metaformer.detection.adaptation import at_working_size
from metaformer.detection.engines.engine import ENGINES, make_engine
from metaformer.detection.feature.adapted import AdaptedFeature
from metaformer.detection.feature.comparison import fuse
from metaformer.detection.feature.gap_distances import OF_BACKBONE, measure_to, of_core
from metaformer.detection.feature.memory_bank import describe
from metaformer.detection.scoring.anomaly_map import smooth
from metaformer.evaluation.aggregate import machine
from metaformer.io.atomic_files import write_text
from metaformer.io.images import read_image
from metaformer.networks.feature_maps import with_detail

ROUNDS = 15


def fastest_half(run: Callable[[], object]) -> float:
    """Median of the faster half of processor seconds: what others do disturbs it least."""
    run()
    seconds = []
    for _ in range(ROUNDS):
        started = time.process_time()
        run()
        seconds.append(time.process_time() - started)
    return statistics.median(sorted(seconds)[: ROUNDS // 2 + 1])


def measured_peak() -> dict[str, float]:
    """Operations a second of products and convolutions, bytes a second of copying."""
    a, b = torch.rand(512, 256), torch.rand(256, 512)
    x, kernel = torch.rand(1, 128, 32, 32), torch.rand(128, 128, 3, 3)
    large = torch.rand(2**24)
    product = 2 * 512 * 256 * 512 / fastest_half(lambda: a @ b)
    convolution = 2 * 128 * 128 * 9 * 1024 / fastest_half(lambda: F.conv2d(x, kernel, padding=1))
    return {
        "product": product,
        "convolution": convolution,
        "bandwidth": 2 * 4 * large.numel() / fastest_half(large.clone),
    }


def size_of(*values: Any) -> int:
    """Bytes of all tensors and arrays in ``values``."""
    total = 0
    for value in values:
        if isinstance(value, Tensor):
            total += value.numel() * value.element_size()
        elif isinstance(value, dict):
            total += size_of(*value.values())
        elif isinstance(value, (list, tuple)):
            total += size_of(*value)
        elif isinstance(value, torch.nn.Module):
            total += size_of(*value.parameters(), *value.buffers())
        else:
            total += getattr(value, "nbytes", 0)
    return total


def steps_of(detector: Detector, path: Path) -> list[tuple[str, Callable[[], Any], list[Any]]]:
    """Name, what it does, and what it reads, of each step from the file to the verdict."""
    adapted = detector.adapted
    assert isinstance(adapted, AdaptedFeature)
    config, correction, frame = adapted.config, adapted.correction, adapted.frame
    assert correction is not None and frame is not None
    pixels = read_image(path)
    image = at_working_size(detector.model, pixels)
    features = with_detail(adapted.backbone(image), image)
    described = describe(features, config.levels, config.cosine_share)
    distances = adapted.distances(described)
    view = correction.view
    found = measure_to(OF_BACKBONE.stride_grids(features), view.patches, of_core(distances))
    readings, own = OF_BACKBONE.together(found, features)
    maps = adapted.maps_of(features, distances)
    score, full = detector.score_pixels(pixels)
    return [
        ("read the file", lambda: read_image(path), [path.read_bytes()]),
        ("resize", lambda: at_working_size(detector.model, pixels), [pixels]),
        ("backbone", lambda: adapted.backbone(image), [image, adapted.backbone]),
        ("descriptors", lambda: describe(features, config.levels, 0.2), [features]),
        ("distances", lambda: adapted.distances(described), [described, adapted.compare]),
        ("fusion, blur", lambda: smooth(fuse(distances, config), 0.6), [distances]),
        (
            "distances of the transformer",
            lambda: measure_to(
                OF_BACKBONE.stride_grids(features), view.patches, of_core(distances)
            ),
            [features, view.patches],
        ),
        (
            "transformer",
            lambda: correction.network(features, readings, own, view.description),
            [features, readings, correction.network, view.description.keys],
        ),
        ("frame check", lambda: frame(maps, features), [features]),
        ("verdict, map, regions", lambda: detector.judge(score, full), [full]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("category", type=Path)
    parser.add_argument("--images", type=int, default=10, help="normal images adapted to")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    (category,) = load_categories(options.category)
    detector = Metaformer.from_pretrained().adapt(list(category.train[: options.images]))
    path = category.test[0].image
    with torch.inference_mode():
        peak = measured_peak()
        best = max(peak["product"], peak["convolution"])
        rows = []
        for name, run, inputs in steps_of(detector, path):
            with FlopCounterMode(display=False) as counter:
                result = run()
            operations, moved = counter.get_total_flops(), size_of(*inputs, result)
            seconds = fastest_half(run)
            bound = max(operations / best, moved / peak["bandwidth"])
            rows.append(
                {
                    "step": name,
                    "mega_operations": operations / 1e6,
                    "megabytes": moved / 1e6,
                    "milliseconds": 1e3 * seconds,
                    "share_of_peak": operations / best / seconds,
                    "share_of_bound": bound / seconds,
                }
            )
        image = at_working_size(detector.model, read_image(path))
        operations = 1e6 * sum(row["mega_operations"] for row in rows)
        engines = {}
        for name in ENGINES:
            run = partial(make_engine(detector, name), image)
            engines[name] = operations / best / fastest_half(run)
    content = {
        "date": date.today().isoformat(),
        "machine": machine(),
        "peak": peak,
        "steps": rows,
        "share_of_peak_by_engine": engines,
    }
    write_text(options.output, json.dumps(content, indent=1) + "\n")
    text = table(peak, rows, engines)
    write_text(options.output.with_suffix(".md"), text)
    print(text)


def table(peak: dict[str, float], rows: list[dict[str, Any]], engines: dict[Any, float]) -> str:
    lines = [
        f"Peak of one core: matrix product {peak['product'] / 1e9:.0f}, convolution "
        f"{peak['convolution'] / 1e9:.0f} GFLOP/s; bandwidth {peak['bandwidth'] / 1e9:.0f} GB/s.",
        "",
        "| step | MFLOP | MB | ms | share of peak | share of what peak and bandwidth allow |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['step']} | {row['mega_operations']:.0f} | {row['megabytes']:.1f} | "
        f"{row['milliseconds']:.2f} | {row['share_of_peak']:.2f} | {row['share_of_bound']:.2f} |"
        for row in rows
    ]
    lines += ["", "Networks and distances together, share of the peak: "]
    lines[-1] += ", ".join(f"{name} {share:.2f}" for name, share in engines.items()) + "."
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
