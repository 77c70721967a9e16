"""Table of P against its rivals, on photos with known mattes.

    pip install pysodmetrics
    python -m benchmarks.instance_prior DATA [--weights FOLDER] [--output results.json]
        [--keep-rivals]

DATA holds ``cutouts/``, ``bsds500/test/`` and ``photos/``. ``--weights`` names a folder with
``prior.safetensors`` and ``prior.json``; without it the shipped weights are evaluated. Rivals do
not change with the weights: ``--keep-rivals`` takes their numbers from the output of before.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.instance_prior.evaluation_sets import Pair, cutouts_on_photos, held_out_garments
from benchmarks.instance_prior.rivals import RIVALS
from metaformer.io.atomic_files import write_text
from metaformer.networks.autoencoder import Autoencoder
from metaformer.networks.instance_prior import (
    CARD,
    WEIGHTS,
    InstancePrior,
    load_prior,
    prior_from_bytes,
)

Map = NDArray[np.float32]
BETA_SQUARED = 0.3  # the field's usual weight of precision


def prior_of(folder: Path | None) -> InstancePrior:
    """P with the weights in ``folder``, or with the shipped ones."""
    if folder is None:
        return load_prior()
    return prior_from_bytes((folder / WEIGHTS).read_bytes(), (folder / CARD).read_text())


def response_of(prior: InstancePrior) -> Callable[[NDArray[np.uint8]], Map]:
    @torch.no_grad()
    def response(photo: NDArray[np.uint8]) -> Map:
        tensor = torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255
        return np.asarray(prior(tensor)[0, 0].numpy(), np.float32)

    return response


def measure(method: Callable[[NDArray[np.uint8]], Map], pairs: Iterable[Pair]) -> dict[str, float]:
    """IoU, F-beta, S-measure and MAE, means over photos.

    ``iou`` and ``f_beta`` binarise each map at twice its mean (the field's adaptive rule),
    ``iou_max`` and ``f_beta_max`` at the best of 256 thresholds common to all photos, and
    ``iou_half`` at 0.5.
    """
    from py_sod_metrics import (  # type: ignore[import-not-found, import-untyped, unused-ignore]
        FmeasureHandler,
        FmeasureV2,
        IOUHandler,
        Smeasure,
    )

    curves = FmeasureV2(
        {
            "iou": IOUHandler(with_dynamic=True, with_adaptive=True, with_binary=True),
            "f": FmeasureHandler(with_dynamic=True, with_adaptive=True, beta=BETA_SQUARED),
        }
    )
    structure = Smeasure()
    errors = []
    for photo, mask in pairs:
        found = np.clip(method(photo), 0, 1).astype(np.float64)
        curves.step(found, mask, normalize=False)
        structure.step(found, mask, normalize=False)
        errors.append(float(np.abs(found - mask).mean()))
    results = curves.get_results()
    return {
        "iou": float(results["iou"]["adaptive"]),
        "iou_max": float(np.max(results["iou"]["dynamic"])),
        "iou_half": float(results["iou"]["binary"]),
        "f_beta": float(results["f"]["adaptive"]),
        "f_beta_max": float(np.max(results["f"]["dynamic"])),
        "s_measure": float(structure.get_results()["sm"]),
        "mae": float(np.mean(errors)),
    }


def seconds_of(run: Callable[[], Any], repeats: int = 15) -> float:
    """Median wall time of ``run`` after two rounds of warming up."""
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return float(np.median(times[2:]))


@torch.no_grad()
def compare_speed(prior: InstancePrior) -> dict[str, float]:
    """Time of P and of A for one 256 x 256 image on one thread, and their ratio."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    autoencoder = Autoencoder().eval()
    image = torch.rand(1, 3, 256, 256)
    moments = autoencoder.support_moments(image)
    p = seconds_of(lambda: prior(image))
    a = seconds_of(lambda: autoencoder(image, moments))
    torch.set_num_threads(threads)
    return {"p_milliseconds": 1000 * p, "a_milliseconds": 1000 * a, "p_over_a": p / a}


def print_table(name: str, results: dict[str, dict[str, float]], console: Console) -> None:
    table = Table(title=name)
    headings = ("IoU", "IoU max", "IoU at 0.5", "F-beta", "F-beta max", "S-measure", "MAE")
    table.add_column("method")
    for heading in headings:
        table.add_column(heading, justify="right")
    for method, values in results.items():
        table.add_row(method, *(f"{value:.3f}" for value in values.values()))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, help="folder with prior.safetensors, prior.json")
    parser.add_argument("--output", type=Path, help="write the numbers here as JSON")
    parser.add_argument("--keep-rivals", action="store_true", help="measure P alone")
    parser.add_argument("--limit", type=int, help="photos of each set, for a quick look")
    arguments = parser.parse_args()

    prior = prior_of(arguments.weights)
    sets: dict[str, list[Pair]] = {
        "cutouts on BSDS500 photos": list(
            cutouts_on_photos(arguments.data / "cutouts", arguments.data / "bsds500" / "test")
        ),
        **held_out_garments(arguments.data / "photos", seed=0),
    }
    before: dict[str, Any] = {}
    if arguments.keep_rivals:
        before = json.loads(arguments.output.read_text(encoding="utf-8"))["sets"]
    methods = {"P (ours)": response_of(prior), **({} if before else RIVALS)}
    console = Console()
    report: dict[str, Any] = {"sets": {}}
    for name, pairs in sets.items():
        chosen = pairs[: arguments.limit]
        title = f"{name} ({len(chosen)} photos)"
        report["sets"][title] = before.get(title, {}) | {
            method: measure(find, track(chosen, f"{method}: {name}", console=Console(stderr=True)))
            for method, find in methods.items()
        }
    for name, results in report["sets"].items():
        print_table(name, results, console)
    report["speed"] = compare_speed(prior)
    console.print(
        "One 256 x 256 image, one thread: P {p_milliseconds:.1f} ms, A {a_milliseconds:.1f} ms, "
        "P / A = {p_over_a:.2f}".format(**report["speed"])
    )
    if arguments.output is not None:
        write_text(arguments.output, json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
