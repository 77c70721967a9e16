"""The demonstration: bundled real images in, a report out, in seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from metaformer.data.datasets.category import Sample
from metaformer.data.datasets.truth import Outcomes
from metaformer.detection.detector import Detector
from metaformer.detection.metaformer import Metaformer
from metaformer.detection.scoring.prediction import Prediction
from metaformer.inference.report.html import ReportBuilder
from metaformer.io.images import list_images, read_image

CIRCUIT_BOARD_RESOLUTION = 512
"""The boards' defects are 20 of 640 pixels wide; the preset's 256 would blur them away."""
SOUND_WALLS = frozenset({"wall_003.jpg"})
"""Clean, as the good one is; the other walls are streaked, stained or damaged."""


@dataclass(frozen=True)
class Demonstration:
    """Results of the demonstration."""

    report: Path
    pictures: tuple[Path, ...]
    """The clearest defect of either product and the most normal image, as marked."""
    outcomes: Outcomes

    @property
    def summary(self) -> str:
        """``all 12 defective found, 0 of 1 others``."""
        found, others = self.outcomes.caught, self.outcomes.false_alarms + self.outcomes.passed
        defective = found + self.outcomes.missed
        which = f"all {found}" if found == defective else f"{found} of {defective}"
        return f"{which} defective found, {self.outcomes.false_alarms} of {others} others"


def run_demo(
    output: Path, on_step: Callable[[int, int], None] = lambda done, total: None
) -> Demonstration:
    """Adapt to bundled good images, score others, write ``output``/report.html and pictures.

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
        outcomes, found = Outcomes(), []
        for i, (detector, image) in enumerate(_detectors(bundled, boards, walls)):
            if i == 0:
                settings["circuit boards"] = (
                    f"{len(boards)} designs, each with a detector of its own made from one golden "
                    f"sample at {CIRCUIT_BOARD_RESOLUTION} pixels, compared place by place"
                )
                settings["wall covering"] = "one detector made from one clean photo"
                settings["false-alarm rate asked"] = f"{detector.calibration.false_alarm_rate:.1%}"
                settings["what the thresholds promise"] = detector.calibration.guarantee
                settings["versions"] = detector.provenance["versions"]
            pixels = read_image(image)
            prediction = detector.predict_pixels(pixels, image.name)
            truth = truth_of(image)
            report.add(pixels, prediction, truth=truth, find_good=detector.nearest_good)
            outcomes.add(truth, prediction.is_anomalous)
            found.append((image, prediction))
            on_step(i + 1, total)
        pictures = tuple(save_telling(output, found))
        return Demonstration(report.write(output / "report.html"), pictures, outcomes)


def truth_of(image: Path) -> Sample:
    """Truth of a bundled image: every tested board has real defects."""
    is_sound = image.name in SOUND_WALLS
    return Sample(image, not is_sound, masks=(), kind="good" if is_sound else "defect")


def save_telling(output: Path, found: list[tuple[Path, Prediction]]) -> Iterator[Path]:
    """Write the highest score of either product and the lowest of all, marked, and name them."""
    by_product: dict[str, list[tuple[Path, Prediction]]] = {}
    for image, prediction in found:
        by_product.setdefault(image.parent.parent.name, []).append((image, prediction))
    # Of equal scores the last: the most damaged wall.
    told = [max(reversed(each), key=lambda pair: pair[1].score) for each in by_product.values()]
    told.append(min(found, key=lambda pair: pair[1].score))
    for i, (image, prediction) in enumerate(told, start=1):
        verdict = "defective" if prediction.is_anomalous else "normal"
        target = output / f"{i}-{image.parent.parent.name}-{verdict}.png"
        prediction.save(target, image)
        yield target


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
