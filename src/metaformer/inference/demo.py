"""The demonstration: bundled real images in, a report out, in seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path

from metaformer.detection.detector import Detector, Metaformer
from metaformer.inference.report.html import ReportBuilder
from metaformer.io.images import list_images, read_image

CIRCUIT_BOARD_RESOLUTION = 512
"""The boards' defects are 20 of 640 pixels wide; the preset's 256 would blur them away."""


def run_demo(output: Path, on_step: Callable[[int, int], None] = lambda done, total: None) -> Path:
    """Adapt to bundled good images, score others, write ``output``/report.html and return it.

    Circuit boards: eight designs, for each one golden sample and one tested board with real
    defects (DeepPCB). Wall covering: one clean photo, then clean, streaked and stained ones.

    Raises:
        OSError: ``output`` cannot be written to.
    """
    output.mkdir(parents=True, exist_ok=True)
    with resources.as_file(resources.files("metaformer.data") / "demo_images") as bundled:
        boards = list_images(bundled / "circuit_board" / "test")
        walls = list_images(bundled / "wall_covering" / "test")
        total = len(boards) + len(walls)
        settings: dict[str, object] = {"title": "Demonstration: circuit boards, wall covering"}
        report = ReportBuilder(settings)
        for i, (detector, image) in enumerate(_detectors(bundled, boards, walls)):
            if i == 0:
                settings["circuit boards"] = (
                    f"{len(boards)} designs, each with a detector of its own made from one golden "
                    f"sample at {CIRCUIT_BOARD_RESOLUTION} pixels, compared place by place"
                )
                settings["wall covering"] = "one detector made from one clean photo"
                settings["false-alarm rate asked"] = f"{detector.calibration.false_alarm_rate:.1%}"
                settings["what the thresholds promise"] = detector.calibration.guarantee
                settings["versions"] = detector.made["versions"]
            pixels = read_image(image)
            report.add(
                pixels,
                detector.predict_pixels(pixels, image.name),
                find_good=detector.nearest_good,
            )
            on_step(i + 1, total)
        return report.write(output / "report.html")


def _detectors(
    bundled: Path, boards: list[Path], walls: list[Path]
) -> Iterator[tuple[Detector, Path]]:
    """Each image to score, with the detector to score it with."""
    by_place = Metaformer.from_pretrained(resolution=CIRCUIT_BOARD_RESOLUTION, aligned=True)
    for board in boards:
        yield by_place.adapt([bundled / "circuit_board" / "template" / board.name]), board
    wall_detector = Metaformer.from_pretrained().adapt(bundled / "wall_covering" / "good")
    for wall in walls:
        yield wall_detector, wall
