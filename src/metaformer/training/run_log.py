"""The log of a training: one JSON line for each entry, and TensorBoard events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from metaformer.io.atomic_files import write_text

LOG = "log.jsonl"


class RunLog:
    """``log.jsonl`` and, where tensorboard is installed, its events.

    A resumed run drops the lines after its checkpoint: those steps are about to be done again.
    """

    def __init__(self, folder: Path, *, from_step: int, active: bool) -> None:
        self.path, self.active = folder / LOG, active
        self.pending: list[Mapping[str, Tensor | float]] = []
        self.events = None
        if not active:
            return
        if from_step and self.path.is_file():
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            write_text(self.path, "".join(x for x in lines if _step_of(x) <= from_step))
        elif not from_step:
            self.path.unlink(missing_ok=True)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self.events = SummaryWriter(str(folder), purge_step=from_step or None)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *error: object) -> None:
        if self.events is not None:
            self.events.close()

    def add(self, values: Mapping[str, Tensor | float]) -> None:
        """Keep one step's values until the next ``write``."""
        if self.active:
            self.pending.append(values)

    def write(self, step: int, seconds: float) -> None:
        """Write the means of the values since the last time."""
        if not self.pending:
            return
        means: dict[str, float] = {}
        for name in sorted(set().union(*self.pending)):  # not every step has every value
            present = [float(values[name]) for values in self.pending if name in values]
            means[name] = sum(present) / len(present)
        self.pending.clear()
        self.write_watch(step, seconds, means)

    def write_watch(
        self,
        step: int,
        seconds: float,
        values: Mapping[str, float | None],
        *,
        validation: str | None = None,
    ) -> None:
        """Write ``values`` as they are; ``validation`` names the held-out tasks they are of."""
        if not self.active:
            return
        known = {name: value for name, value in values.items() if value is not None}
        rounded = {name: float(f"{value:.6g}") for name, value in known.items()}
        kind = {} if validation is None else {"validation": validation}
        line = {"step": step, **kind, "seconds": round(seconds, 1), **rounded}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self.events is not None:
            for name, value in known.items():
                tag = name if validation is None else f"{validation}/{name}"
                self.events.add_scalar(tag, value, step)


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # a line cut short by a kill
        return float("inf")
