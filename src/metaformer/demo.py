"""The demonstration: bundled real images in, a report out, in seconds."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path

from metaformer.batch import report_settings
from metaformer.detector import Metaformer
from metaformer.images import list_images, read_image
from metaformer.report import ReportBuilder

CIRCUIT_BOARD_RESOLUTION = 512
"""The boards' defects are 20 of 640 pixels wide; the preset's 256 would blur them away."""


def run_demo(output: Path, on_step: Callable[[int, int], None] = lambda done, total: None) -> Path:
    """Adapt to bundled good images, score others, write ``output``/report.html and return it.

    Circuit boards: one golden sample each, real defects (DeepPCB). Fabric: eight good samples,
    then good and damaged ones.

    Raises:
        OSError: ``output`` cannot be written to.
    """
    output.mkdir(parents=True, exist_ok=True)
    with resources.as_file(resources.files("metaformer") / "demo_images") as bundled:
        boards = list_images(bundled / "circuit_board" / "test")
        total = 2 * len(boards)
        universal = Metaformer.from_pretrained(resolution=CIRCUIT_BOARD_RESOLUTION, aligned=True)
        report: ReportBuilder | None = None
        for i, board in enumerate(boards):
            golden = bundled / "circuit_board" / "template" / board.name
            detector = universal.adapt([golden])
            on_step(2 * i + 1, total)
            if report is None:
                report = ReportBuilder(report_settings(detector))
            pixels = read_image(board)
            report.add(pixels, detector.predict_pixels(pixels, board.name))
            on_step(2 * i + 2, total)
    assert report is not None
    return report.write(output / "report.html")
