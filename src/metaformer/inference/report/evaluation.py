"""The report of an evaluation: one seed's verdicts beside the truth, at calibrated scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metaformer.evaluation.detector_method import FittedDetector
from metaformer.evaluation.protocol import ScoredSample
from metaformer.inference.report.html import ReportBuilder

LINES = 2000
"""Most images that are listed, the highest scores."""


class EvaluationReport:
    """Collects the test images of one seed while they are scored; ``write`` makes the file.

    Args:
        data: what is evaluated, for the title.
        seed: the seed whose images are collected.
        path: of the HTML file.

    Raises:
        FileNotFoundError: the folder of ``path`` does not exist.
    """

    def __init__(self, data: Path, seed: int, path: Path) -> None:
        if not path.parent.is_dir():
            raise FileNotFoundError(
                f"{path}: its folder {path.parent} does not exist. Create it first."
            )
        self.seed = seed
        self.path = path
        self.settings: dict[str, Any] = {"title": f"Evaluation: {data.name or data}"}
        self.builder = ReportBuilder(self.settings, max_lines=LINES)

    def add(self, scored: ScoredSample) -> None:
        """Take in a test image; those of other seeds are passed over.

        Raises:
            TypeError: it was scored by something else than a detector.
        """
        if scored.seed != self.seed:
            return
        if not isinstance(scored.fitted, FittedDetector):
            raise TypeError(f"a report needs a detector, got {type(scored.fitted).__name__}.")
        detector = scored.fitted.detector
        prediction = detector.judge(scored.score, scored.anomaly_map, str(scored.sample.image))
        self.builder.add(
            scored.image, prediction, truth=scored.sample, find_good=detector.nearest_good
        )

    def write(self, results: dict[str, Any]) -> Path:
        """Write the page, with the results of the evaluation in its table of settings.

        Raises: as ``ReportBuilder.write``.
        """
        self.settings["preset"] = results["preset"]
        self.settings["normal images adapted to"] = results["shots"]
        self.settings["seed"] = self.seed
        metrics = {name: value for name, value in results["mean"].items() if value is not None}
        self.settings[f"mean over seeds {', '.join(map(str, results['seeds']))}"] = metrics
        self.settings["version"] = results["version"]
        return self.builder.write(self.path)
