"""From the start of a process to its first score: with PyTorch, and without it.

Three programs score one image, each in a process of its own, in turns: the command, a Python
program that loads a detector file, and ``examples/edge``, which runs an exported model by ONNX
Runtime and never loads PyTorch. Times are until the first line of output, of the quiet command
until its end; medians over the rounds, on one thread.

    python -m benchmarks.speed.starting SET --output starting.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from metaformer.data.datasets.loading import load_categories
from metaformer.detection.metaformer import Metaformer
from metaformer.evaluation.aggregate import machine
from metaformer.export.exporter import export_detector
from metaformer.io.atomic_files import write_text

EDGE = Path(__file__).parents[2] / "examples" / "edge" / "score.py"
API = """
import sys, metaformer
result = metaformer.Detector.load(sys.argv[1]).predict(sys.argv[2])
print(result.score, flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("category", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, required=True, help="a .json file; .md beside it")
    options = parser.parse_args()
    (category,) = load_categories(options.category)
    image = str(category.test[0].image)
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        detector, exported = folder / "part.metaformer", folder / "part.onnx"
        adapted = Metaformer.from_pretrained().adapt(list(category.train[:4]))
        adapted.save(detector)
        export_detector(adapted, exported)
        for number in range(options.rounds):
            out = str(folder / f"results{number}")
            command = [sys.executable, "-m", "metaformer.cli", "predict", str(detector), image]
            programs = {
                "metaformer predict, with its report": [*command, "-o", out, "-q"],
                "metaformer.Detector.load and predict": [
                    sys.executable,
                    "-c",
                    API,
                    str(detector),
                    image,
                ],
                "exported model, ONNX Runtime, no PyTorch": [
                    sys.executable,
                    str(EDGE),
                    str(exported),
                    image,
                ],
            }
            for label, program in programs.items():
                started = time.perf_counter()
                with (
                    tempfile.TemporaryFile() as errors,
                    subprocess.Popen(
                        program,
                        env={**os.environ, "OMP_NUM_THREADS": "1"},
                        stdout=subprocess.PIPE,
                        stderr=errors,
                    ) as process,
                ):
                    assert process.stdout is not None
                    process.stdout.readline()
                    seconds.setdefault(label, []).append(time.perf_counter() - started)
                    process.communicate()
                    if process.returncode != 0:
                        errors.seek(0)
                        raise SystemExit(f"{label}: {errors.read().decode()}")
    rows = [{"program": label, "seconds": of_program} for label, of_program in seconds.items()]
    content = {"date": date.today().isoformat(), "machine": machine(), "rows": rows}
    write_text(options.output, json.dumps(content, indent=1) + "\n")
    lines = ["| from the start of a process to its first score | seconds |", "|---|---|"]
    lines += [f"| {label} | {statistics.median(s):.2f} |" for label, s in seconds.items()]
    write_text(options.output.with_suffix(".md"), "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
