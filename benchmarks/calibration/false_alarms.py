"""How often good parts are flagged, against the rate asked for.

    python -m benchmarks.calibration.false_alarms DATA_ROOT... --output results.json

For each set, number of normal images k and seed: adapt to k images of train/good and score up to
60 other images of train/good. Test images are not touched. Prints and writes, per k and asked
rate, the share flagged, and the spread (standard deviation over mean) of normal scores, which is
what the prior of the tail rule in ``detection/scoring/calibration.py`` was chosen from.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metaformer.data.datasets.loading import draw_support, load_categories
from metaformer.detection.metaformer import Metaformer
from metaformer.evaluation.aggregate import machine
from metaformer.evaluation.protocol import save_results
from metaformer.io.images import read_image

RATES = (0.01, 0.05, 0.1, 0.2)
MOST_OTHERS = 60


def main() -> None:
    parser = argparse.ArgumentParser(description="Share of good images flagged, by rate asked.")
    parser.add_argument("roots", nargs="+", type=Path, metavar="DATA_ROOT")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--preset", default="feature", choices=["feature", "pixel"])
    parser.add_argument("--shots", default="1,2,4,10,20")
    parser.add_argument("--seeds", default="0,1,2")
    options = parser.parse_args()
    torch.set_num_threads(1)
    universal = Metaformer.from_pretrained(options.preset)
    rows: list[dict[str, Any]] = []
    for root in options.roots:
        (category,) = load_categories(root)
        for shots in (int(part) for part in options.shots.split(",")):
            if shots + 8 > len(category.train):
                continue
            for seed in (int(part) for part in options.seeds.split(",")):
                support = draw_support(category, shots, seed)
                others = [path for path in category.train if path not in set(support)]
                order = np.random.default_rng(seed).permutation(len(others))[:MOST_OTHERS]
                detector = universal.adapt(support)
                scores = [detector.score_pixels(read_image(others[i]))[0] for i in order]
                row: dict[str, Any] = {
                    "data": root.name,
                    "shots": shots,
                    "seed": seed,
                    "others": len(scores),
                    "relative_spread": float(np.std(scores) / np.mean(scores)),
                }
                for rate in RATES:
                    threshold = detector.calibration.with_false_alarm_rate(rate).threshold
                    row[f"flagged_at_{rate}"] = float(np.mean(np.array(scores) >= threshold))
                rows.append(row)
                print(row, flush=True)
    summary = {
        str(shots): {
            key: float(np.mean([row[key] for row in rows if row["shots"] == shots]))
            for key in ("relative_spread", *(f"flagged_at_{rate}" for rate in RATES))
        }
        for shots in sorted({row["shots"] for row in rows})
    }
    for count, means in summary.items():
        print(count, {key: round(value, 3) for key, value in means.items()})
    content = {"preset": options.preset, "mean": summary, "rows": rows, "machine": machine()}
    save_results(content, options.output)


if __name__ == "__main__":
    main()
