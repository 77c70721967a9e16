"""The accuracy tables: ours beside the control and the best other method, then every method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.accuracy.methods import CONTROL, OURS
from metaformer.evaluation.table import HEADINGS

UNIFIED = "one detector for all"
"""Results of one detector for all data sets are kept under this name, in place of a data set's."""
COMPARED = ("recall_at_5", "image_auroc", "pixel_auroc", "pixel_ap", "aupro")
LISTED = (*COMPARED, "recall", "false_alarm_rate")
LOW = ("false_alarm_rate",)
"""Less is better."""


def report(results: Sequence[dict[str, Any]], packages: Mapping[str, str]) -> str:
    """Markdown: where and when, the comparison, then a table for each data set and metric."""
    apart = [result for result in results if result["data"] != UNIFIED]
    parts = [provenance(results, packages), comparison(apart), one_for_all(results)]
    return "\n".join([*parts, every_method(apart)])


def provenance(results: Sequence[dict[str, Any]], packages: Mapping[str, str]) -> str:
    dates = sorted({result["date"][:10] for result in results})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    machines = {
        f"{m['platform']}, {m['processor']}, Python {m['python']}, torch {m['torch']}"
        for m in (result["machine"] for result in results)
    }
    versions = "".join(f", {name} {version}" for name, version in packages.items())
    return "\n".join(
        [
            f"{when}; {'; '.join(sorted(machines))}{versions}. Support images are drawn from the",
            "normal training images by the seed, the same for all methods. Where a number of test",
            "images is given, that many of a category were drawn once, the same for all methods,",
            "shots and seeds, with the set's share of defective ones.",
            "",
        ]
    )


def comparison(results: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row for each data set, number of shots and method of ours.

    A cell holds ours, the control, and the best other method's value and name, in percent. The
    best is another one in every cell: it is chosen by the test images, which favours the others.
    """
    headings = ["data", "shots", "ours", *(HEADINGS[metric] for metric in COMPARED)]
    lines = [
        f"Ours / `{CONTROL}` / the best other method of that cell, percent, mean over seeds.",
        f"`{CONTROL}` is the control: the distance to the nearest patch of the same features, and",
        "nothing else. Choosing the best by its test result favours the others.",
        "",
        f"| {' | '.join(headings)} |",
        f"|{' --- |' * len(headings)}",
    ]
    for data in dict.fromkeys(result["data"] for result in results):
        of_data = [result for result in results if result["data"] == data]
        for shots in sorted({result["shots"] for result in of_data}, key=order):
            rows = [result for result in of_data if result["shots"] == shots]
            others = [row for row in rows if row["preset"] not in OURS]
            for own in (row for row in rows if row["preset"] in OURS and others):
                cells = [_cell(own, others, metric) for metric in COMPARED]
                lines.append(f"| {data} | {shots} | {own['preset']} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _cell(ours: dict[str, Any], others: Sequence[dict[str, Any]], metric: str) -> str:
    own = ours["mean"].get(metric)
    known = {
        other["preset"]: value
        for other in others
        if (value := other["mean"].get(metric)) is not None
    }
    if own is None or not known:
        return "–"
    control = percent(known.pop(CONTROL, None))
    best = max(known, key=lambda name: known[name], default=None)
    last = "–" if best is None else f"{percent(known[best])} {best}"
    return f"{percent(own)} / {control} / {last}"


def one_for_all(results: Sequence[dict[str, Any]]) -> str:
    """Markdown: one detector for all data sets against one for each; empty without such results.

    A data set's row needs its own result with the same method, shots, seeds and test images.
    """
    lines = []
    for joint in (result for result in results if result["data"] == UNIFIED):
        keys = ("preset", "shots", "seeds", "test_limit")
        alike = [r for r in results if r is not joint and all(r[k] == joint[k] for k in keys)]
        for name, inside in joint["categories"].items():
            for own in (r for r in alike if r.get("category") == name):
                cells = [_pair(inside, own, metric) for metric in COMPARED]
                first = [joint["preset"], str(joint["shots"]), name]
                lines.append(f"| {' | '.join([*first, *cells])} |")
    if not lines:
        return ""
    headings = ["method", "shots of each", "data", *(HEADINGS[metric] for metric in COMPARED)]
    head = [
        "One detector for all data sets, not told which an image is of / one for each, percent,",
        "mean over seeds.",
        "",
        f"| {' | '.join(headings)} |",
        f"|{' --- |' * len(headings)}",
    ]
    return "\n".join([*head, *lines, ""])


def _pair(joint: dict[str, Any], own: dict[str, Any], metric: str) -> str:
    a, b = joint["mean"].get(metric), own["mean"].get(metric)
    return "–" if a is None or b is None else f"{percent(a)} / {percent(b)}"


def every_method(results: Sequence[dict[str, Any]]) -> str:
    """Markdown: for each data set and metric, methods down and shots across."""
    lines = [
        "Every method, percent, mean ± sample standard deviation over the support seeds. Bold: the",
        "best of the column. `full`: all normal training images. `caught` and `false alarms` are",
        "at the threshold that the detector ships, which other methods do not have.",
        "",
    ]
    for data in dict.fromkeys(result["data"] for result in results):
        rows = [result for result in results if result["data"] == data]
        lines += [f"## {data}", "", f"{_counts(rows)}.", ""]
        for metric in LISTED:
            known = [row for row in rows if row["mean"].get(metric) is not None]
            lines += _metric_table(known, metric)
        for kind in ("image", "pixel"):
            if kind in rows[0]["undefined"]:
                lines += [f"No {kind} metrics: {rows[0]['undefined'][kind]}.", ""]
    return "\n".join(lines)


def _metric_table(rows: Sequence[dict[str, Any]], metric: str) -> list[str]:
    if not rows:
        return []
    shots = sorted({row["shots"] for row in rows}, key=order)
    cells = {(row["preset"], row["shots"]): row for row in rows}
    choose = min if metric in LOW else max
    best = {k: choose(r["mean"][metric] for r in rows if r["shots"] == k) for k in shots}
    lines = [
        f"| {HEADINGS[metric]} | {' | '.join(f'{k} shots' if k != 'full' else k for k in shots)} |",
        f"|{' --- |' * (len(shots) + 1)}",
    ]
    for name in dict.fromkeys(row["preset"] for row in rows):
        values = []
        for k in shots:
            row = cells.get((name, k))
            if row is None:
                values.append("–")
                continue
            mean, std = row["mean"][metric], row["std"][metric]
            text = percent(mean) + ("" if std is None else f" ± {percent(std)}")
            values.append(f"**{text}**" if mean == best[k] else text)
        lines.append(f"| {name} | {' | '.join(values)} |")
    return [*lines, ""]


def _counts(rows: Sequence[dict[str, Any]]) -> str:
    """Test images and seeds of a data set's rows; more than one entry where they differ."""
    found: dict[str, set[str]] = {}
    for row in rows:
        counts, seeds = row["counts"], len(row["seeds"])
        text = (
            f"{counts['test_normal']} normal and {counts['test_defective']} defective test images"
        )
        text += f", {seeds} seed{'' if seeds == 1 else 's'}"
        found.setdefault(text, set()).add(str(row["shots"]))
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(
        f"{text} ({', '.join(sorted(shots, key=order))})" for text, shots in found.items()
    )


def order(shots: Any) -> float:
    """Numbers of images in order, all of them last."""
    return float("inf") if shots == "full" else float(shots)


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
