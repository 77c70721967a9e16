"""What ``predict`` says on the screen of the images that it has scored."""

from __future__ import annotations

import heapq
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from metaformer.cli.shared.screen import flag

if TYPE_CHECKING:
    from metaformer.data.datasets.truth import Truth
    from metaformer.detection.scoring.prediction import Prediction
    from metaformer.inference.batch import BatchResult

SHOWN = 10
"""Images and files that are named at most, of each kind."""


class SeenImages:
    """What is shown of the images of this run.

    Args:
        truth: what is known of each image.
        keep_all: keep every prediction, for ``--json``.
    """

    def __init__(self, truth: Truth, *, keep_all: bool) -> None:
        self.truth, self.keep_all = truth, keep_all
        self.predictions: list[dict[str, Any]] = []
        self.highest: list[tuple[float, str]] = []
        """Scores and names of flagged images; a heap, the lowest score first."""

    def add(self, name: str, outcome: Prediction | str) -> None:
        """Take in a prediction, or the reason why there is none."""
        if isinstance(outcome, str):
            return
        if self.keep_all:
            known = self.truth(name)
            kind = None if known is None else known.kind
            self.predictions.append({**outcome.to_dict(), "truth": kind})
        if outcome.is_anomalous:
            heapq.heappush(self.highest, (outcome.score, name))
            if len(self.highest) > SHOWN:
                heapq.heappop(self.highest)

    def print_highest(self, anomalous: int) -> None:
        """Name the flagged images with the highest scores, of ``anomalous`` in all."""
        from metaformer.detection.scoring.overlays import format_score

        for score, name in sorted(self.highest, key=lambda flagged: (-flagged[0], flagged[1])):
            typer.echo(f"  {flag(format_score(score), True)}  {name}")
        if self.highest and anomalous > len(self.highest):
            typer.echo(f"  and {anomalous - len(self.highest)} more")


def print_omissions(result: BatchResult, output: Path, *, quiet: bool) -> None:
    """Say on standard error what was not scored and, unless quiet, what was passed over."""

    def say(kind: str, name: str, reason: str) -> None:
        typer.echo(f"{kind}: {reason if name in reason else f'{name}: {reason}'}", err=True)

    for name, reason in result.failures:
        say("not scored", name, reason)
    if result.failed > len(result.failures):
        more = result.failed - len(result.failures)
        typer.echo(f"not scored: {more} more, see {output / 'failures.csv'}", err=True)
    if quiet:
        return
    for name, reason in result.skipped_listed[:SHOWN]:
        say("note", name, reason)
    if result.skipped > SHOWN:
        more = result.skipped - SHOWN
        typer.echo(f"note: {more} more skipped, see {output / 'failures.csv'}", err=True)


def print_counts(result: BatchResult) -> None:
    """One line: how many images were scored, flagged and left out."""
    earlier = f" ({result.resumed} of them before)" if result.resumed else ""
    images_scored = f"{result.scored} image{'' if result.scored == 1 else 's'} scored"
    before = f" ({result.failed_before} of them before)" if result.failed_before else ""
    omitted = f", {result.failed} not scored{before}" if result.failed else ""
    typer.echo(f"{images_scored}{earlier}, {result.anomalous} anomalous{omitted}.")
