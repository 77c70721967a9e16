"""The bar of a training: step, loss, time gone and time left."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SMOOTHED = 0.95
"""Share of the loss shown that the steps before have: the losses of single steps jump."""
RATE_SECONDS = 600.0
"""The time left is told from the speed of so many seconds; steps of a training differ."""


class TrainingBar:
    """A bar on standard error, if that is a terminal.

    Args:
        label: what is trained.
        total: steps in all.
        first: steps that an earlier run has done.
        quiet: show nothing.
    """

    def __init__(self, label: str, total: int, *, first: int = 0, quiet: bool = False) -> None:
        console = Console(stderr=True)
        self.loss: float | None = None
        self.bar = Progress(
            TextColumn(label),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
            speed_estimate_period=RATE_SECONDS,
        )
        self.task = self.bar.add_task("", total=total, completed=first, loss="")

    def __enter__(self) -> TrainingBar:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def show(self, done: int, loss: float) -> None:
        """After step ``done``, with the loss of that step."""
        before = loss if self.loss is None else self.loss
        self.loss = SMOOTHED * before + (1 - SMOOTHED) * loss
        self.bar.update(self.task, completed=done, loss=f"loss {self.loss:.4g}")
