"""A detector's provenance and guarantee in words, for ``info`` and notebooks."""

from __future__ import annotations

import html
from typing import Any

SHOWN_NAMES = 3


def summary_rows(info: dict[str, Any]) -> list[tuple[str, str]]:
    """What ``Detector.info`` holds, as pairs of a name and a line of text."""
    config = info["settings"].get("config", {})
    calibration = info["calibration"]
    names = [image["name"] for image in info["support"]]
    shown = ", ".join(names[:SHOWN_NAMES]) + (", ..." if len(names) > SHOWN_NAMES else "")
    odd = [names[score["index"]] for score in info["support_scores"] if score["is_odd"]]
    rows = [
        ("preset", info["preset"]),
        ("backbone", config.get("backbone", "")),
        ("resolution", f"{config['resolution']} pixels" if "resolution" in config else ""),
        ("aligned", "yes: compared place by place" if config.get("aligned") else ""),
        ("normal images", f"{len(names)} ({shown})"),
        ("products", products_in_words(info["settings"])),
        ("unlike the rest", ", ".join(odd)),
        ("false-alarm rate", f"{calibration['false_alarm_rate']:.1%} asked"),
        ("promise", info["guarantee"]),
        ("white of 16-bit images", str(info["white_level"] or "not known")),
        ("added later", "; ".join(f"{a['count']} images" for a in info.get("additions", []))),
        ("seed", str(info["seed"])),
        ("made", info["made"]),
        ("made with", ", ".join(f"{name} {v}" for name, v in info["versions"].items())),
    ]
    return [(name, text) for name, text in rows if text]


def products_in_words(settings: dict[str, Any]) -> str:
    """Empty where the detector was adapted to one product."""
    counts = [str(len(members)) for members in settings.get("members", [])]
    if not counts:
        return ""
    return f"{len(counts)} ({', '.join(counts[:-1])} and {counts[-1]} images)"


def summary_html(info: dict[str, Any]) -> str:
    """``summary_rows`` as a table."""
    rows = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
        f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
        for name, text in summary_rows(info)
    )
    return f"<table><caption>Detector</caption>{rows}</table>"
