"""What to do with scores of earlier images that cannot be computed anew: three rules compared.

    python -m benchmarks.extension_rules DATA_ROOT... --output results.json

For detectors whose memory is cut, so that an extension has to estimate (docs/decisions/0003). The
memory is the same under all rules, only the normal scores that the threshold is made from differ:

* ``kept``: earlier scores as they were, and the new images' out-of-sample scores;
* ``new alone``: the new images' scores;
* ``lowered``: earlier scores times the ``shrinkage`` of the new ones (the rule taken);
* ``all at once``: adapted to all images from the start, for comparison.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.extension import RATES, scorer, universal_of
from metaformer.benchmark import save_results
from metaformer.benchmark_samples import limit_samples
from metaformer.calibration import calibrate
from metaformer.datasets import draw_support, load_categories
from metaformer.extension import shrinkage
from metaformer.images import read_image
from metaformer.summary import machine

SIZES = ((4, 6), (4, 12), (10, 4), (10, 6))
"""Images adapted to, and images added."""
LIMIT = 100


def main() -> None:
    parser = argparse.ArgumentParser(description="Rules for scores that cannot be computed anew.")
    parser.add_argument("roots", nargs="+", type=Path, metavar="DATA_ROOT")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2,3")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    universal = universal_of("capped")
    rows: list[dict[str, Any]] = []
    for root in options.roots:
        (category,) = load_categories(root)
        test = limit_samples(category.test, LIMIT)
        labels = np.array([sample.is_anomalous for sample in test])
        score = scorer(universal, test)
        for first, added in SIZES:
            for seed in (int(part) for part in options.seeds.split(",")):
                support = draw_support(category, first + added, seed)
                detector = universal.adapt(support[:first], seed=seed)
                extended = detector.extended_with(support[first:])
                whole = universal.adapt(support, seed=seed)
                earlier, estimated, anew = (
                    [score["raw_score"] for score in made["support_scores"]]
                    for made in (detector.made, extended.made, whole.made)
                )
                new = estimated[first:]
                before = [detector.score_pixels(read_image(path))[0] for path in support[first:]]
                factor = shrinkage(before, new)
                assert np.allclose(estimated[:first], [factor * s for s in earlier])
                found = {"extended": np.array(score(extended)), "whole": np.array(score(whole))}
                rules = {
                    "kept": ("extended", [*earlier, *new]),
                    "new alone": ("extended", new),
                    "lowered": ("extended", estimated),
                    "all at once": ("whole", anew),
                }
                for rule, (scored, normal) in rules.items():
                    row = {"data": root.name, "first": first, "added": added, "seed": seed}
                    row |= {"rule": rule, "shrinkage": factor}
                    for rate in RATES:
                        threshold = calibrate(normal, rate, pixel_threshold=1.0).threshold
                        above = found[scored] >= threshold
                        row[f"false_alarms_at_{rate}"] = float(above[~labels].mean())
                        row[f"found_at_{rate}"] = float(above[labels].mean())
                    rows.append(row)
                print(root.name, first, added, seed, f"shrinkage {factor:.2f}", flush=True)
    means = []
    for first, added in SIZES:
        for rule in ("kept", "new alone", "lowered", "all at once"):
            same = [r for r in rows if (r["first"], r["added"], r["rule"]) == (first, added, rule)]
            keys = [f"{kind}_at_{rate}" for rate in RATES for kind in ("false_alarms", "found")]
            mean = {key: round(float(np.mean([r[key] for r in same])), 4) for key in keys}
            means.append({"first": first, "added": added, "rule": rule, **mean})
            print(means[-1])
    save_results(
        {"limit": LIMIT, "mean": means, "rows": rows, "machine": machine()}, options.output
    )


if __name__ == "__main__":
    main()
