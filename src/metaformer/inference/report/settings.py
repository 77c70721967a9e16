"""The settings table of a report."""

from __future__ import annotations

from typing import Any

from metaformer.detection.detector import Detector


def report_settings(detector: Detector) -> dict[str, Any]:
    """Rows of the report's settings table."""
    info = detector.info()
    calibration = detector.calibration
    kinds = {
        "conformal": "rank among the scores of other good images",
        "views": "rank among views of the one image adapted to; no promise for other parts",
    }
    return {
        "preset": info["preset"],
        "false-alarm rate asked": f"{calibration.false_alarm_rate:.1%}",
        "threshold (raw score)": f"{calibration.threshold:.6g}",
        "what the threshold promises": info["guarantee"],
        "p-values": kinds[calibration.p_value_kind],
        "normal images adapted to": len(info["support"]),
        "seed": info["seed"],
        "made": info["made"],
        "versions": ", ".join(f"{k} {v}" for k, v in info["versions"].items()),
        "support_scores": [calibration.score(raw) for raw in calibration.normal_scores],
    }
