"""Benchmark results as a table for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from metaformer.evaluation.metrics import METRICS

HEADINGS = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_f1max": "image F1-max",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "pixel_f1max": "pixel F1-max",
    "aupro": "AUPRO",
    "recall": "caught",
    "false_alarm_rate": "false alarms",
    "recall_at_5": "caught at 5 %",
}


def results_table(results: dict[str, Any]) -> Table:
    """One row a category, and their mean; the notes say what could not be computed and why.

    Narrow enough for 80 columns: spreads stand below their means.

    Args:
        results: what ``metaformer.evaluation.protocol.evaluate`` returns, or its JSON read back.
    """
    shots = results["shots"]
    title = f"{results['preset']}, {shots} normal image{'' if shots == 1 else 's'}"
    title += f", {len(results['seeds'])} seed{'' if len(results['seeds']) == 1 else 's'}"
    metrics = [HEADINGS[metric].replace(" ", "\n") for metric in METRICS]
    table = _table(title, _notes(results), ["category", *metrics, "adapt\ns", "predict\nms"])
    categories = results.get("categories", {})
    for name, summary in categories.items():
        table.add_row(name, *_cells(summary))
    table.add_section()
    table.add_row("mean" if categories else results["category"], *_cells(results))
    return table


def threshold_table(results: dict[str, Any]) -> Table:
    """Defects caught and good images flagged: a row a kind, then all defects and all good images.

    Args:
        results: as for ``results_table``.
    """
    table = _table(
        "Images flagged, percent (95 % interval over test images)",
        "at threshold: the detector's own, from its normal images alone\n"
        "at 5 %: a threshold that at most 5 % of the good test images lie above",
        ["kind", "images", "at threshold", "at 5 %"],
    )
    for kind, row in results["kinds"].items():
        if row["is_defect"]:
            table.add_row(kind, str(row["images"]), *_flagged(row))
    table.add_section()
    mean, around, counts = results["mean"], results["mean_ci"], results["counts"]
    table.add_row(
        "defects caught",
        str(counts["test_defective"]),
        *(_percent(mean[key], around[key]) for key in ("recall", "recall_at_5")),
    )
    flagged = _percent(mean["false_alarm_rate"], around["false_alarm_rate"])
    table.add_row(
        "good flagged", str(counts["test_normal"]), flagged, "≤ 5" if counts["test_normal"] else "–"
    )
    return table


def _table(title: str, caption: str, headings: Sequence[str]) -> Table:
    """Without rows. The first column holds names, the others numbers."""
    table = Table(
        title=title,
        caption=caption,
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column(headings[0], overflow="fold", min_width=8)
    for heading in headings[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def print_results(results: dict[str, Any]) -> None:
    """Print both tables to stdout, what a threshold catches first."""
    console = Console()
    console.print(threshold_table(results))
    console.print(results_table(results))


def _flagged(row: dict[str, Any]) -> list[str]:
    return [_percent(row[name], row[f"{name}_ci"]) for name in ("flagged", "flagged_at_5")]


def _percent(value: float | None, around: Sequence[float] | None) -> str:
    """``93.1 (88.0 to 96.2)``; a dash where undefined."""
    if value is None or around is None:
        return "–"
    return f"{100 * value:.1f} ({100 * around[0]:.1f} to {100 * around[1]:.1f})"


def cell(summary: dict[str, Any], metric: str) -> str:
    """A metric in percent with its spread over seeds: ``93.1 ± 0.8``; a dash where undefined."""
    mean, std = summary["mean"][metric], summary["std"][metric]
    if mean is None:
        return "–"
    return f"{100 * mean:.1f}" if std is None else f"{100 * mean:.1f} ± {100 * std:.1f}"


def _cells(summary: dict[str, Any]) -> list[str]:
    seconds = summary["seconds"]
    return [
        *(cell(summary, metric).replace(" ± ", "\n±") for metric in METRICS),
        f"{seconds['adapt']:.2f}",
        f"{1000 * seconds['predict_per_image']:.0f}",
    ]


def _notes(results: dict[str, Any]) -> str:
    notes = ["Percent, mean ± standard deviation over seeds; seconds to adapt, ms an image."]
    notes += [f"No {kind} metrics: {why}." for kind, why in results["undefined"].items()]
    interval = results["mean_ci"]["image_auroc"]
    if interval is not None:
        low, high = interval
        notes.append(f"Image AUROC, 95 % interval over test images: {low:.3f} to {high:.3f}.")
    without = results["counts"]["defective_without_mask"]
    if without:
        notes.append(f"{without} defective images have no mask and count in image metrics only.")
    if results["test_limit"] is not None:
        notes.append(f"At most {results['test_limit']} test images a category: a quick look.")
    return "\n".join(notes)
