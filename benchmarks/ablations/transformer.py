"""What the transformer's correction is worth on real products, and how much of it to make.

The sets, the draw of images and the metrics are those of ``leave_one_product_out.py``; maps are
judged on a square of 128 pixels. The control, ``off``, is the preset without the transformer. A
change is a metric's difference to it, averaged over numbers of images and supports.

The rule, for the map that marks pixels and for the score of an image separately:

* A candidate is a weights file and the size of its correction. Pixels are marked by the corrected
  map. The image score is its maximum, or the geometric mean (``mean log``) of its maximum and that
  of the map without the transformer.
* A candidate loses on a set if a metric there falls by more than half the standard deviation of
  ``off`` over supports, averaged over numbers of images.
* For each set left out, of the candidates that lose on none of the other sets the one with the
  largest mean change there is chosen: of pixel AP and AUPRO for the map, of image AUROC and
  defects caught at 5 % false alarms for the score. ``off`` is among the candidates.
* It is judged by its changes on the set left out.

    python -m benchmarks.ablations.transformer DATA 100000=WEIGHTS ... --output results.json

``--preset pixel`` asks the same of the autoencoder's features; ``--without response gap`` of a
transformer that is not told where the object is, or where it is rebuilt badly.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from safetensors.torch import load_file

from benchmarks.ablations.leave_one_product_out import (
    MOST_TESTED,
    SEED,
    SETS,
    Results,
    Row,
    SampledTests,
    drawn_support,
    means,
    save,
    spreads,
)
from metaformer.detection.adaptation import prepare
from metaformer.detection.feature.adapted import AdaptedFeature, from_support
from metaformer.detection.feature.comparison import fuse
from metaformer.detection.feature.config import FeatureConfig
from metaformer.detection.feature.feature_image import FeatureImage
from metaformer.detection.feature.gap_correction import (
    build_correction,
    from_tensors,
    load_transformer,
)
from metaformer.detection.feature.gap_distances import (
    OF_BACKBONE,
    Readings,
    measure_to,
    of_core,
)
from metaformer.detection.feature.memory_bank import describe
from metaformer.detection.feature.preset import FeaturePreset
from metaformer.detection.pixel.config import PixelConfig
from metaformer.detection.pixel.preset import PixelPreset
from metaformer.detection.preset import Preset
from metaformer.detection.scoring.anomaly_map import image_score, smooth
from metaformer.evaluation.aggregate import machine
from metaformer.io.images import read_image
from metaformer.networks.feature_maps import RESPONSE
from metaformer.networks.gap_transformer import GapTransformer, corrected
from metaformer.training.transformer.reading import WithResponse

SHOTS = (1, 4, 10)
SIZES = (0.0, 0.125, 0.25, 0.5)
SIDE = 128
OFF = "off"
SHIPPED = "shipped"
MEAN_LOG, HIGHEST = "mean log", "maximum"
CHOSEN_BY = {"pixels": ("pixel_ap", "aupro"), "score": ("image_auroc", "caught_at_5")}
"""What is chosen -> the metrics that choose."""


Core = tuple[AdaptedFeature, list[FeatureImage], Callable[[Any], FeatureImage]]
"""A model without a transformer, the features of its support, and how it reads a test image."""


def core_model(preset: FeaturePreset | PixelPreset, support: list[Any], seed: int) -> Core:
    """Of prepared support images."""
    if isinstance(preset, PixelPreset):
        backbone, images = preset.fit_backbone(support, seed=seed)
        config = replace(preset.config.comparison, transformer=False)
        adapted = from_support(config, backbone, images, seed=seed)
        return adapted, images, lambda pixels: FeatureImage(backbone(pixels))
    config = replace(preset.config, transformer=False)
    adapted = from_support(config, preset.backbone, support, seed=seed)
    return adapted, support, lambda image: image


def measure_tests(
    preset: FeaturePreset | PixelPreset,
    networks: Mapping[str, GapTransformer],
    sizes: list[float],
    tests: SampledTests,
    shots: int,
    supports: int,
    blind: Sequence[str] = (),
) -> dict[str, list[Row]]:
    """Candidate -> one row a support. Distances are computed once for all networks and sizes.

    Args:
        blind: labels of the networks that are not given the response map.
    """
    any_preset: Preset[Any] = preset
    readings = readings_of(preset)
    rows: dict[str, list[Row]] = {}
    for seed in range(supports):
        prepared: list[Any] = [
            prepare(any_preset, read_image(path), support_size=shots)
            for path in drawn_support(tests.train, shots, seed)
        ]
        adapted, support, read = core_model(preset, prepared, seed)
        config = adapted.config
        first = next(iter(networks.values()))
        features = [image.features for image in support]
        left_out = []
        if shots > 1:
            left_out = [adapted.left_out_distances(image, i) for i, image in enumerate(support)]
        view = build_correction(first, readings, features.__getitem__, shots, left_out)[0].view
        maps: dict[str, list[torch.Tensor]] = {}
        for test in tests.images:
            image = read(test)
            described = describe(image.features, config.levels, config.cosine_share)
            of_bank = adapted.distances(described)
            core = fuse(of_bank, config)
            maps.setdefault(OFF, []).append(smooth(core, config.sigma)[0])
            found = measure_to(
                readings.stride_grids(image.features), view.patches, of_core(of_bank)
            )
            distances, own_core = readings.together(found, image.features)
            for label, network in networks.items():
                response = None if label in blind else image.features.get(RESPONSE)
                correction = network(
                    image.features, distances, own_core, view.description, response
                )
                for size in sizes:
                    marked = corrected(core[:, None], correction, size)[:, 0]
                    name = candidate_of(label, size)
                    maps.setdefault(name, []).append(smooth(marked, 2 * config.sigma)[0])
        scores = {
            name: np.array([image_score(grid, config.score_share) for grid in of_name])
            for name, of_name in maps.items()
        }
        for name, of_name in maps.items():
            row = tests.judge_pixels(of_name)
            if name == OFF:
                row |= tests.judge_scores(scores[OFF])
            else:
                both = np.sqrt(scores[OFF] * scores[name])
                rows.setdefault(f"{name}, {MEAN_LOG}", []).append(tests.judge_scores(both))
                highest = tests.judge_scores(scores[name])
                rows.setdefault(f"{name}, {HIGHEST}", []).append(highest)
            rows.setdefault(name, []).append(row)
    return rows


def candidate_of(label: str, size: float) -> str:
    return f"{label} x {size:g}"


def change(results: Results, set_name: str, candidate: str) -> dict[str, float]:
    """Metric -> difference to the preset without the transformer."""
    control = means(results, set_name, OFF)
    return {name: v - control[name] for name, v in means(results, set_name, candidate).items()}


def candidates_for(results: Results, metrics: tuple[str, ...]) -> list[str]:
    """Those that are judged by these metrics on any set, ``off`` the first."""
    found = [OFF]
    for name in results:
        for candidate in next(iter(results[name].values())):
            if candidate not in found and metrics[0] in change(results, name, candidate):
                found.append(candidate)
    return found


def mean_change(
    results: Results, sets: list[str], candidate: str, metrics: tuple[str, ...]
) -> float:
    """Over sets that have the metrics and over these; minus infinity if it loses on one."""
    changes = []
    for name in sets:
        found, spread = change(results, name, candidate), spreads(results, name, OFF)
        for metric in metrics:
            if metric in found:
                changes.append(found[metric])
                if found[metric] < -spread[metric] / 2:
                    return -math.inf
    return float(np.mean(changes)) if changes else 0.0


def decide(results: Results) -> dict[str, Any]:
    """The rule of this file's head: what is chosen -> set left out -> candidate and changes."""
    decided: dict[str, Any] = {}
    for what, metrics in CHOSEN_BY.items():
        candidates = candidates_for(results, metrics)
        decided[what] = {}
        judged = [name for name in results if metrics[0] in change(results, name, OFF)]
        for left_out in [*judged, "none"]:
            others = [name for name in results if name != left_out]
            gains = {name: mean_change(results, others, name, metrics) for name in candidates}
            chosen = max(candidates, key=gains.__getitem__)  # the first of equals: off
            decided[what][left_out] = {"chosen": chosen, "mean_on_others": gains[chosen]}
            if left_out in judged:
                decided[what][left_out]["changes"] = change(results, left_out, chosen)
    return decided


def tables(results: Results, decided: dict[str, Any]) -> str:
    lines = ["Points against the preset without the transformer, mean over numbers of images and"]
    lines += [f"supports; {OFF} in percent. Maps are judged at {SIDE} pixels.", ""]
    for what, metrics in CHOSEN_BY.items():
        lines += [
            f"**{what}: {' / '.join(metrics)}**",
            "",
            f"| candidate | {' | '.join(results)} | mean | worst |",
            "|---" * (len(results) + 3) + "|",
        ]
        for candidate in candidates_for(results, metrics):
            is_off = candidate == OFF
            of_sets = {
                name: (means if is_off else change)(results, name, candidate) for name in results
            }
            cells = [shown([row.get(m) for m in metrics], not is_off) for row in of_sets.values()]
            by_metric = [[row[m] for row in of_sets.values() if m in row] for m in metrics]
            summary = [
                shown([float(np.mean(v)) if v else None for v in by_metric], not is_off),
                shown([min(v, default=None) for v in by_metric], not is_off),
            ]
            lines.append(f"| {candidate} | {' | '.join(cells + summary)} |")
        lines += ["", "| left out | chosen on the others | mean there | changes on it |"]
        lines.append("|---|---|---|---|")
        for name, row in decided[what].items():
            found = shown([row.get("changes", {}).get(m) for m in metrics], signed=True)
            mean = f"{100 * row['mean_on_others']:+.1f}"
            lines.append(f"| {name} | {row['chosen']} | {mean} | {found} |")
        lines.append("")
    return "\n".join(lines)


def shown(values: list[float | None], signed: bool) -> str:
    """Percent; a dash for what is not known."""
    form = "+.1f" if signed else ".1f"
    return " / ".join("-" if value is None else format(100 * value, form) for value in values)


def readings_of(preset: FeaturePreset | PixelPreset) -> Readings:
    config = preset.config.comparison if isinstance(preset, PixelPreset) else preset.config
    assert config.readings is not None
    return config.readings


def load_networks(given: list[str], readings: Readings = OF_BACKBONE) -> dict[str, GapTransformer]:
    """The shipped transformer, and those given as ``PAIRS=path``.

    Raises:
        SystemExit: one is not given so, or a label is given twice.
    """
    networks = {SHIPPED: load_transformer(readings)}
    for text in given:
        label, is_named, path = text.partition("=")
        if not is_named or label in networks:
            raise SystemExit(
                f"{text}: found no label, or one that is taken; give each weights file as "
                f"PAIRS=path, 100000=gap_transformer-100000.safetensors for example."
            )
        try:
            networks[label] = from_tensors(load_file(path), readings)
        except Exception as error:
            raise SystemExit(
                f"{path}: no weights of the transformer ({error}). Give a file that "
                f"`metaformer pretrain transformer` wrote."
            ) from error
    return networks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, help="folder that holds the sets")
    parser.add_argument(
        "weights", nargs="*", help="PAIRS=path of each weights file, beside the shipped one"
    )
    parser.add_argument("--preset", choices=("feature", "pixel"), default="feature")
    parser.add_argument(
        "--response",
        nargs="*",
        default=[],
        metavar="PAIRS",
        help="weights of `feature` that read it",
    )
    parser.add_argument("--without", nargs="*", default=[], metavar="PART")
    parser.add_argument("--sizes", nargs="+", type=float, default=SIZES)
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--seeds", type=int, default=2, help="supports of each number of images")
    parser.add_argument("--limit", type=int, default=MOST_TESTED, help="most test images of a set")
    parser.add_argument(
        "--quick", action="store_true", help="1 and 4 images, one support, at most 30 test images"
    )
    parser.add_argument("--output", type=Path, required=True, help="a .json file; .md beside it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    preset: FeaturePreset | PixelPreset = (
        PixelPreset.from_pretrained(PixelConfig(transformer=True))
        if options.preset == "pixel"
        else FeaturePreset.of(FeatureConfig())
    )
    preset = preset.without(options.without)
    networks = load_networks(options.weights, readings_of(preset))
    blind: list[str] = []
    if isinstance(preset, FeaturePreset):
        blind = [label for label in networks if label not in options.response]
        if options.response:
            preset = FeaturePreset(preset.config, WithResponse(preset.backbone))
    for network in networks.values():
        network.reads_gap = "gap" not in options.without
    shots_asked: tuple[int, ...] = SHOTS
    seeds, limit = options.seeds, options.limit
    if options.quick:
        shots_asked, seeds, limit = SHOTS[:2], 1, min(limit, 30)
    sizes = [size for size in options.sizes if size != 0]  # 0 is off, the control
    results: Results = {}
    for name in options.sets:
        with torch.no_grad():
            tests = SampledTests(preset, options.data / name, most=limit, side=SIDE)
            results[name] = {
                str(shots): measure_tests(preset, networks, sizes, tests, shots, seeds, blind)
                for shots in shots_asked
                if shots <= len(tests.train)
            }
        print(name, flush=True)
    decided = decide(results)
    content = {
        "date": date.today().isoformat(),
        "machine": machine(),
        "preset": options.preset,
        "without": options.without,
        "seed": SEED,
        "supports": seeds,
        "most_tested": limit,
        "side": SIDE,
        "weights": [*networks],
        "sizes": [*options.sizes],
        "decided": decided,
        "results": results,
    }
    save(options.output, content, tables(results, decided))


if __name__ == "__main__":
    main()
