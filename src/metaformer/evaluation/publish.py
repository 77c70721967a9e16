"""Results as a Markdown or LaTeX table, for a README or a paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metaformer.evaluation.metrics import METRICS
from metaformer.evaluation.table import HEADINGS, cell
from metaformer.io.atomic_files import write_text

SUFFIXES = (".md", ".tex")


def check_table_path(path: Path) -> None:
    """Raises: ValueError: its ending says neither Markdown nor LaTeX."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: tables are written as .md (Markdown) or .tex (LaTeX). Name one.")


def write_table(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Write ``as_markdown`` or ``as_latex``, by the ending of ``path``.

    Raises:
        ValueError: another ending.
        OSError: the file cannot be written.
    """
    check_table_path(path)
    make = as_markdown if path.suffix.lower() == ".md" else as_latex
    write_text(path, make(runs) + "\n")


def as_markdown(runs: Sequence[dict[str, Any]]) -> str:
    """One row a category and number of normal images; percent, mean ± deviation over seeds."""
    head, rows = content(runs)
    rule = ["---", *("--:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def as_latex(runs: Sequence[dict[str, Any]]) -> str:
    """As ``as_markdown``, a ``tabular`` with rules of the booktabs package."""
    head, rows = content(runs)
    lines = [" & ".join(map(escape, row)) + r" \\" for row in (head, *rows)]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def content(runs: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Heading and rows; metrics that no run has are left out."""
    metrics = [m for m in METRICS if any(run["mean"][m] is not None for run in runs)]
    left_out = runs[0]["settings"].get("without")
    category = f"category (without {' and '.join(left_out)})" if left_out else "category"
    head = [category, "normal images", *(HEADINGS[metric] for metric in metrics)]
    rows = []
    for run in runs:
        categories = run.get("categories", {})
        named = [*categories.items(), ("mean" if categories else run["category"], run)]
        rows += [
            [name, str(run["shots"]), *(cell(each, metric) for metric in metrics)]
            for name, each in named
        ]
    return head, rows


def escape(text: str) -> str:
    """What LaTeX would take for commands; ``±`` and the dash as it writes them."""
    for found, written in (("_", r"\_"), ("%", r"\%"), ("&", r"\&"), ("#", r"\#")):
        text = text.replace(found, written)
    return text.replace(" ± ", r" $\pm$ ").replace("–", "--")
