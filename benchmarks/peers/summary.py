"""Ours beside the best peer, metric by metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metaformer.tables import HEADINGS

OURS = ("feature", "feature-aligned", "feature-aligned-512")
"""Our detector as users get it, and told that parts stand in the same place on every image."""
COMPARED = ("image_auroc", "pixel_auroc", "pixel_ap", "aupro")


def comparison(results: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row for each data set, number of shots and way of ours with a peer to it.

    A cell holds ours, the best peer's value and its name, in percent. The best peer is another
    one in every cell: it is chosen by the test images themselves, which favours the peers.
    """
    headings = ["data", "shots", "ours", *(HEADINGS[metric] for metric in COMPARED)]
    lines = [
        "Ours / the best peer of that cell, percent, mean over seeds. The peers include our own",
        "control without learning (`nearest-patch`); the choice of the best by its test result",
        "favours them.",
        "",
        f"| {' | '.join(headings)} |",
        f"|{' --- |' * len(headings)}",
    ]
    keys = list(dict.fromkeys((r["data"], str(r["shots"])) for r in results))
    for data, shots in keys:
        rows = [r for r in results if (r["data"], str(r["shots"])) == (data, shots)]
        peers = [r for r in rows if r["preset"] not in OURS]
        for own in (r for r in rows if r["preset"] in OURS and peers):
            cells = [_cell(own, peers, metric) for metric in COMPARED]
            lines.append(f"| {data} | {shots} | {own['preset']} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _cell(ours: dict[str, Any], peers: Sequence[dict[str, Any]], metric: str) -> str:
    own = ours["mean"][metric]
    known = [peer for peer in peers if peer["mean"][metric] is not None]
    if own is None or not known:
        return "–"
    best = max(known, key=lambda peer: peer["mean"][metric])
    return f"{100 * own:.1f} / {100 * best['mean'][metric]:.1f} {best['preset']}"
