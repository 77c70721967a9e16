"""Images a second with each engine, and how far A, P and T are from the machine's peak.

    python -m benchmarks.speed.engines FOLDER_OF_NORMAL_IMAGES
        --output benchmarks/results/engines.json

Engines take turns in one process on one number of threads; figures are medians over the rounds, and
ratios are medians of the ratios within a round, which a busy machine disturbs least.
``--clock cpu`` counts the processor's time instead of the wall's: with one thread it says on a busy
machine about what the wall clock says on an idle one. "pixels in" is
everything from an image in memory to score and map; "networks" leaves out resizing and scoring. The
peak is that of the largest square float32 product, measured in the same run. Results of other
programs, measured elsewhere, join the table with ``--peers FILE``: {"peers": {name: {"1": images a
second, "16": ...}}}.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from metaformer.detection.detector import Detector
from metaformer.detection.metaformer import Metaformer
from metaformer.detection.presets import PRESETS
from metaformer.evaluation.aggregate import machine
from metaformer.evaluation.protocol import save_results
from metaformer.export.backends import installed_engines, make_engine, test_image, with_engine
from metaformer.inference.allocator import keep_freed_memory
from metaformer.io.atomic_files import write_text
from metaformer.io.images import list_images, read_image
from metaformer.networks.autoencoder import Autoencoder
from metaformer.networks.instance_prior import load_prior
from metaformer.networks.pixel_transformer import GapTransformer, GapTransformerConfig

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Clock = Callable[[], float]
Tasks = dict[str, Callable[[], object]]

BATCHES = (1, 16)
SUPPORT = 10
PEAK_SIDE = 2048
"""Side of the square product that stands for the peak: large enough to hide its own overheads."""
TOKENS, SUPPORT_TOKENS, CHANNELS = 32 * 32, 4096, 152
"""T's work here: a 256 x 256 image at stride 8, four support images, both levels' channels."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of engines and networks.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--presets", default=",".join(PRESETS))
    parser.add_argument("--peers", type=Path)
    options = parser.parse_args()
    keep_freed_memory()  # as the command does
    torch.set_num_threads(options.threads)

    clock = CLOCKS[options.clock]
    images = [read_image(path) for path in list_images(options.folder)[:SUPPORT]]
    result: dict[str, Any] = {
        "machine": machine(),
        "threads": options.threads,
        "rounds": options.rounds,
        "clock": options.clock,
        "image_size": list(images[0].shape[:2]),
        "support": len(images),
        "presets": {},
    }
    for preset in PRESETS:
        if preset not in options.presets.split(","):
            continue
        detector = Metaformer.from_pretrained(preset).adapt(images)
        result["presets"][preset] = time_engines(detector, images[0], options.rounds, clock)
    result["peak"] = time_networks(options.rounds, clock)
    if options.peers:
        result["peers"] = json.loads(options.peers.read_text())["peers"]
    save_results(result, options.output)
    write_text(options.output.with_suffix(".md"), table(result))


def in_turns(tasks: Tasks, rounds: int, clock: Clock) -> dict[str, list[float]]:
    """Seconds of each task in each round; the first round plans memory and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for round in range(rounds + 1):
        for name, task in tasks.items():
            started = clock()
            task()
            if round > 0:
                seconds[name].append(clock() - started)
    return seconds


def time_engines(
    detector: Detector, image: np.ndarray[Any, Any], rounds: int, clock: Clock
) -> dict[str, Any]:
    """Images a second by engine and batch, and their ratios to PyTorch."""
    names = installed_engines()
    result: dict[str, Any] = {}
    engines = {name: make_engine(detector, name) for name in names}
    for batch in BATCHES:
        x = test_image(detector).expand(batch, -1, -1, -1).contiguous()
        tasks: Tasks = {name: partial(engine, x) for name, engine in engines.items()}
        result[f"networks, batch {batch}"] = rates(in_turns(tasks, rounds, clock), batch)
    detectors = {name: with_engine(detector, name) for name in names}
    tasks = {name: partial(d.predict_pixels, image) for name, d in detectors.items()}
    result["pixels in, one at a time"] = rates(in_turns(tasks, rounds, clock), 1)
    return result


def rates(seconds: dict[str, list[float]], images: int) -> dict[str, dict[str, float]]:
    return {
        name: {
            "images_per_second": images / statistics.median(times),
            "ratio_to_torch": statistics.median(
                torch_time / own for torch_time, own in zip(seconds["torch"], times, strict=True)
            ),
        }
        for name, times in seconds.items()
    }


def time_networks(rounds: int, clock: Clock) -> dict[str, Any]:
    """Of A, P and T: multiplications, share of the peak as they are used and in other forms."""
    left, right = torch.rand(2, PEAK_SIDE, PEAK_SIDE)
    tasks: Tasks = {"peak": lambda: left @ right}
    macs = {"peak": float(PEAK_SIDE**3)}
    for name, run in networks().items():
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            run()
        macs[name] = counter.get_total_flops() / 2
        tasks[name] = run
    with torch.inference_mode():
        seconds = in_turns(tasks, rounds, clock)
    result: dict[str, Any] = {}
    for name, times in seconds.items():
        shares = [
            (macs[name] / own) / (macs["peak"] / peak)
            for own, peak in zip(times, seconds["peak"], strict=True)
        ]
        result[name] = {
            "gmac": macs[name] / 1e9,
            "milliseconds": 1000 * statistics.median(times),
            "gmac_per_second": macs[name] / statistics.median(times) / 1e9,
            "share_of_peak": statistics.median(shares),
        }
    return result


def networks() -> Tasks:
    """One image through each network at the size it works at; A at 256 x 256."""
    torch.manual_seed(0)
    image = torch.rand(1, 3, 256, 256)
    a, a_last = (Autoencoder().eval() for _ in range(2))
    moments = a.support_moments(image)
    moments = {
        name: (mean.detach(), variance.detach()) for name, (mean, variance) in moments.items()
    }
    channels_last(a_last)
    image_last = image.contiguous(memory_format=torch.channels_last)
    p, p_last = load_prior().eval(), load_prior().eval()
    channels_last(p_last)
    small = torch.rand(1, 3, p.config.side, p.config.side)
    small_last = small.contiguous(memory_format=torch.channels_last)
    t = GapTransformer(GapTransformerConfig(CHANNELS)).eval()
    tokens, support = torch.rand(1, TOKENS, CHANNELS), torch.rand(SUPPORT_TOKENS, CHANNELS)
    cues, places = torch.rand(1, TOKENS, 1), torch.rand(TOKENS, 2)
    support_places = torch.rand(SUPPORT_TOKENS, 2)
    return {
        "A": lambda: a(image, moments),
        "A, channels last": lambda: a_last(image_last, moments),
        "P": lambda: p(small),
        "P, channels last": lambda: p_last(small_last),
        "T": lambda: t(tokens, cues, places, support, support_places),
    }


def channels_last(network: nn.Module) -> None:
    """Lay out the weights of convolutions with channels innermost, in place."""
    for weight in network.parameters():
        if weight.dim() == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)


def table(result: dict[str, Any]) -> str:
    """The results in Markdown."""
    lines = [
        "# Speed of engines and networks",
        "",
        f"{result['machine']['processor']}, {result['threads']} thread(s), "
        f"{result['clock']} clock, images of {result['image_size'][1]} x "
        f"{result['image_size'][0]} pixels, {result['support']} support images, "
        f"medians of {result['rounds']} alternating rounds. Made by "
        f"`python -m benchmarks.speed.engines`.",
        "",
        "| preset | what | engine | images a second | times PyTorch |",
        "|---|---|---|---|---|",
    ]
    for preset, figures in result["presets"].items():
        for what, engines in figures.items():
            for engine, figure in engines.items():
                rate, ratio = figure["images_per_second"], figure["ratio_to_torch"]
                lines.append(f"| {preset} | {what} | {engine} | {rate:.2f} | {ratio:.2f} |")
    lines += ["", "| network | GMAC | ms | GMAC/s | share of peak |", "|---|---|---|---|---|"]
    for name, figure in result["peak"].items():
        lines.append(
            f"| {name} | {figure['gmac']:.3f} | {figure['milliseconds']:.1f} "
            f"| {figure['gmac_per_second']:.0f} | {figure['share_of_peak']:.0%} |"
        )
    if "peers" in result:
        lines += ["", "| peer | batch | images a second |", "|---|---|---|"]
        for name, by_batch in result["peers"].items():
            lines += [f"| {name} | {batch} | {rate:.2f} |" for batch, rate in by_batch.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
