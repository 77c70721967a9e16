"""Time and memory of ours, our baselines, and anomalib's PatchCore and EfficientAD, in one run.

PatchCore has the same backbone as ours; PyTorch meets PyTorch, ONNX Runtime meets ONNX Runtime, and
OpenVINO meets OpenVINO.

    python -m benchmarks.speed.peers CATEGORY_FOLDER --output benchmarks/results/peers_speed.json
    python -m benchmarks.speed.peers CATEGORY_FOLDER --skip-tight \\
        --methods metaformer,nearest-patch,patchcore-256,pixel --output speed.json

The second command needs nothing beside this package.

Every subject runs in a process of its own, in turn, several times: figures are medians, and a
ratio is the median of the ratios within each round, which a busy machine disturbs least. Ours
includes its calibration (leave-one-out), which PatchCore does not do.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from benchmarks.speed.peer_subjects import (
    BATCH,
    CLOCKS,
    EXPORTED,
    SUBJECTS,
    TORCH,
    exported_from,
    measure,
    prepare,
)
from metaformer.data.datasets.loading import Category, draw_support, load_categories
from metaformer.evaluation.aggregate import machine
from metaformer.evaluation.protocol import save_results
from metaformer.io.atomic_files import write_text
from metaformer.io.images import read_image

SHOTS = 10
FIGURES = {
    "adapt_seconds": "adapt to 10 (s)",
    "seconds_at_1": "per image at batch 1 (ms)",
    f"seconds_at_{BATCH}": f"per image at batch {BATCH} (ms)",
    "peak_megabytes": "peak resident (MB)",
    "tight_megabytes": "peak, tight (MB)",
    "tight_above_imports": "of it above imports and weights (MB)",
}
TIGHT = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
"""Has glibc give back every freed block of a megabyte at once. Without it the heap of one subject
(anomalib's coreset) grew to six times what it held, by fragmentation alone; how much depends on
chance, so memory is also measured this way, in a process that is not timed."""
NO_TIGHT: dict[str, float | None] = {"tight_megabytes": None, "tight_above_imports": None}
MILLISECONDS = ("seconds_at_1", f"seconds_at_{BATCH}")
ENGINES = ("onnxruntime", "openvino")
CLOCK_NAMES = {"wall": "wall-clock time", "cpu": "processor time of all threads"}

Run = dict[str, float | None]


def main() -> None:
    options = _parse()
    if options.one:
        print(json.dumps(_child(options)))
        return
    with tempfile.TemporaryDirectory() as exported:
        asked = set(options.methods) & set(EXPORTED)
        failures = _ask(options, "prepare", exported) if asked else {}
        names = [n for n in options.methods if n in TORCH or exported_from(n) not in failures]
        tight = {
            name: NO_TIGHT if options.skip_tight else _tight(_ask(options, name, exported, TIGHT))
            for name in names
        }
        runs: dict[str, list[Run]] = {name: [] for name in names}
        with Progress(console=Console(stderr=True), disable=options.quiet) as bar:
            task = bar.add_task("timing", total=options.repeats * len(names))
            for done in range(options.repeats):
                for name in names:
                    runs[name].append(_ask(options, name, exported) | tight[name])
                    bar.advance(task)
                result = _result(options, done + 1, failures, runs)
                save_results(result, options.output)
                write_text(options.output.with_suffix(".md"), markdown(result))
    print(markdown(result))


def _result(
    options: argparse.Namespace, repeats: int, failures: dict[str, str], runs: dict[str, list[Run]]
) -> dict[str, Any]:
    return {
        "data": options.folder.name,
        "shots": SHOTS,
        "threads": options.threads,
        "clock": options.clock,
        "repeats": repeats,
        "not_exported": failures,
        "median": {name: _median(figures) for name, figures in runs.items()},
        "ratios": ratios(runs),
        "runs": runs,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
    }


def ratios(runs: dict[str, list[Run]]) -> dict[str, Run]:
    """Ours divided by each rival on the same engine: below 1 is less time or memory."""
    found = {}
    for rival in runs:
        engine = next((e for e in ENGINES if rival.endswith(e)), None)
        ours = f"metaformer-{engine}" if engine else "metaformer"
        if rival != ours and ours in runs:
            pairs = list(zip(runs[ours], runs[rival], strict=True))
            found[f"{ours} / {rival}"] = {figure: _ratio(pairs, figure) for figure in FIGURES}
    return found


def markdown(result: dict[str, Any]) -> str:
    """Medians, then ratios."""
    lines = [
        f"{result['data']}, {result['shots']} normal images, {result['threads']} threads of "
        f"{result['machine']['cpus']} processors ({result['machine']['processor']}), median of "
        f"{result['repeats']} runs of each in turn, {CLOCK_NAMES[result['clock']]}. Maps at the "
        "image's size are included.",
        "",
        *_table("subject", result["median"], is_ratio=False),
        "",
        "Tight: measured apart, with freed memory given back to the system at once.",
        "",
        "Ratios, median of the rounds; below 1 is less time or memory.",
        "",
        *_table("ours / rival", result["ratios"], is_ratio=True),
        "",
        "`anomalib-efficientad` is EfficientAD-S with random weights: its time is that of a "
        "trained one, its scores mean nothing. Adapting it takes hours and is not measured.",
    ]
    lines += [f"Not exported: {name}: {why}" for name, why in result["not_exported"].items()]
    return "\n".join([*lines, ""])


def _table(first: str, rows: dict[str, Run], *, is_ratio: bool) -> list[str]:
    headings = [h.split(" (")[0] if is_ratio else h for h in FIGURES.values()]
    lines = [f"| {first} | {' | '.join(headings)} |", f"|{' --- |' * (len(FIGURES) + 1)}"]
    for name, figures in rows.items():
        cells = []
        for figure in FIGURES:
            value = figures[figure]
            if value is None:
                cells.append("–")
            elif is_ratio or figure == "adapt_seconds":
                cells.append(f"{value:.2f}")
            else:
                cells.append(f"{1000 * value if figure in MILLISECONDS else value:.0f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _median(runs: Sequence[Run]) -> Run:
    return {figure: _middle([run[figure] for run in runs]) for figure in FIGURES}


def _ratio(pairs: Sequence[tuple[Run, Run]], figure: str) -> float | None:
    values = []
    for ours, theirs in pairs:
        a, b = ours[figure], theirs[figure]
        values.append(None if a is None or not b else a / b)
    return _middle(values)


def _middle(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


# ---------------------------------------------------------------------------------------- children


def _ask(
    options: argparse.Namespace, name: str, exported: str, settings: dict[str, str] | None = None
) -> Any:
    """Run one subject in a process of its own, with ``settings`` in its environment."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.speed.peers"]
    command += [str(options.folder), "--one", name, "--exported", exported]
    command += ["--threads", str(options.threads), "--clock", options.clock]
    environment = os.environ | (settings or {})
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _tight(run: dict[str, float]) -> Run:
    peak = run["peak_megabytes"]
    return {"tight_megabytes": peak, "tight_above_imports": peak - run["imports_megabytes"]}


def _child(options: argparse.Namespace) -> Any:
    (category,) = load_categories(options.folder)
    support = [read_image(path) for path in draw_support(category, SHOTS, 0)]
    if options.one == "prepare":
        return prepare(support, options.exported)
    tests = _of_one_size(category)
    clock = CLOCKS[options.clock]
    return measure(options.one, support, tests, options.exported, options.threads, clock)


def _of_one_size(category: Category) -> list[Any]:
    """The first test images that have the commonest size: a batch needs one."""
    images = [read_image(sample.image) for sample in category.test[: 4 * BATCH]]
    shapes = [image.shape for image in images]
    commonest = max(set(shapes), key=shapes.count)
    chosen = [image for image in images if image.shape == commonest][:BATCH]
    if len(chosen) < BATCH:
        raise SystemExit(f"{category.root}: needs {BATCH} test images of one size.")
    return chosen


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time and memory against the peers.")
    parser.add_argument("folder", type=Path, metavar="CATEGORY_FOLDER")
    parser.add_argument("--output", type=Path, help="JSON; .md is written beside")
    parser.add_argument("--methods", type=lambda text: text.split(","), default=list(SUBJECTS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--skip-tight", action="store_true", help="time only, not tight memory")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a child process measures this one
    parser.add_argument("--exported", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = [name for name in options.methods if name not in SUBJECTS]
    if unknown:
        parser.error(f"unknown method {unknown[0]!r}; there are {', '.join(SUBJECTS)}")
    if not options.one and (options.output is None or options.output.suffix != ".json"):
        parser.error("--output must be given and end in .json")
    return options


if __name__ == "__main__":
    main()
