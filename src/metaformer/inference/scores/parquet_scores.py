"""Scores as a folder of Parquet files, each written whole or not at all (extra ``parquet``).

``pyarrow.dataset.dataset("out/scores")``, pandas, DuckDB and Spark read the folder as one table.
Rows wait in memory until there are ``PART_ROWS`` of them or ``PART_SECONDS`` have passed; a run
that is killed scores those again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from metaformer.inference.scores.rows import COLUMNS, OutputFolderError, ScoreRow
from metaformer.io.atomic_files import atomic_path
from metaformer.io.omissions import SKIPPED, UNREADABLE, Omission
from metaformer.io.sources.naming import as_text

PART_ROWS = 5000
PART_SECONDS = 30.0
FAILURES_KEY = b"metaformer.failures"
"""In a file's metadata, what of its shard is not scored: JSON [[path, reason, category], ...]."""
EXTRA = "pip install 'metaformer-ad[parquet]'"


def arrow() -> Any:
    """pyarrow with its Parquet module.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f"Parquet needs the package pyarrow. Install it: {EXTRA}.") from None
    return pyarrow


def schema() -> Any:
    pa = arrow()
    kinds = {
        "path": pa.string(),
        "score": pa.float64(),
        "is_anomalous": pa.bool_(),
        "p_value": pa.float64(),
        "p_value_kind": pa.string(),
        "raw_score": pa.float64(),
        "regions": pa.int32(),
        "largest_region_box": pa.string(),
        "largest_region_area": pa.int64(),
        "map": pa.string(),
        "size": pa.int64(),
        "mtime_ns": pa.int64(),
        "truth": pa.string(),
    }
    return pa.schema([(column, kinds[column]) for column in COLUMNS])


def write_part(path: Path, rows: Sequence[ScoreRow], failures: Sequence[Omission] = ()) -> None:
    """Write one Parquet file in one step.

    Names that are no text have their odd bytes escaped: Parquet holds UTF-8 only.

    Raises:
        OSError: the folder cannot be written to, or the disk is full.
    """
    pa = arrow()
    listed = json.dumps([[as_text(f.path), as_text(f.reason), f.category] for f in failures])
    clean = [{**asdict(row), "path": as_text(row.path), "map": as_text(row.map)} for row in rows]
    table = pa.Table.from_pylist(clean, schema().with_metadata({FAILURES_KEY: listed.encode()}))
    with atomic_path(path) as temporary:
        pa.parquet.write_table(table, temporary, compression="zstd")


def read_part(path: Path) -> Iterator[ScoreRow]:
    """The rows of one file, a batch in memory at a time.

    Raises:
        OutputFolderError: the file is damaged or not as this program writes it.
    """
    pa = arrow()
    try:
        with pa.parquet.ParquetFile(path) as file:
            there = [column for column in COLUMNS if column in file.schema_arrow.names]
            for batch in file.iter_batches(PART_ROWS, columns=there):
                yield from (ScoreRow(**values) for values in batch.to_pylist())
    except (pa.ArrowException, TypeError) as error:
        raise not_ours(path, error) from error


def read_failures(path: Path) -> list[tuple[str, str]]:
    """(path, reason) of what ``read_omissions`` gives and was not passed over on purpose."""
    omissions = read_omissions(path)
    return [(o.path, o.reason) for o in omissions if o.category != SKIPPED]


def read_omissions(path: Path) -> list[Omission]:
    """Images of this file's shard that were not scored.

    Raises:
        OutputFolderError: the file is damaged or not as this program writes it.
    """
    pa = arrow()
    try:
        metadata = pa.parquet.read_schema(path).metadata or {}
        listed = json.loads(metadata.get(FAILURES_KEY, b"[]"))
        return [
            Omission(*(failure if len(failure) == 3 else [*failure, UNREADABLE]))
            for failure in listed
        ]
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise not_ours(path, error) from error


def not_ours(path: Path, error: Exception) -> OutputFolderError:
    return OutputFolderError(
        f"{path}: not as this program wrote it ({error}), so the run cannot go on. Choose another "
        f"folder, or pass --overwrite to replace it."
    )


class ParquetScores:
    """Appends numbered files to ``scores/`` in the folder ``output``; a context manager."""

    def __init__(self, output: Path) -> None:
        self.folder = output / "scores"
        self._rows: list[ScoreRow] = []
        self._began = 0.0

    def parts(self) -> list[Path]:
        """The files of earlier runs: numbered ones and those of shards."""
        return sorted([*self.folder.glob("part-*.parquet"), *self.folder.glob("shard-*.parquet")])

    def exist(self) -> bool:
        return bool(self.parts())

    def read(self) -> Iterator[ScoreRow]:
        """All rows, a batch in memory at a time.

        Raises:
            OutputFolderError: a file is damaged or not as this program writes it.
        """
        for part in self.parts():
            yield from read_part(part)

    def rewrite(self, change: Callable[[ScoreRow], ScoreRow | None]) -> None:
        """Replace every row by what ``change`` makes of it, None being none, file by file.

        Raises: as ``read``.
        """
        for part in self.parts():
            rows = [change(row) for row in read_part(part)]
            write_part(part, [row for row in rows if row is not None], read_omissions(part))

    def mend(self) -> None:
        """Remove the temporary files that a killed run may have left."""
        for pattern in (".part-*.parquet", ".shard-*.parquet"):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        self.mend()
        for part in self.parts():
            part.unlink()
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def __enter__(self) -> Self:
        arrow()
        self.folder.mkdir(parents=True, exist_ok=True)
        numbers = [
            int(path.stem.removeprefix("part-")) for path in self.folder.glob("part-*[0-9].parquet")
        ]
        self._number = max(numbers, default=-1) + 1
        return self

    def write(self, row: ScoreRow) -> None:
        if not self._rows:
            self._began = time.monotonic()
        self._rows.append(row)
        if len(self._rows) >= PART_ROWS or time.monotonic() - self._began >= PART_SECONDS:
            self._flush()

    def __exit__(self, *_: object) -> None:
        self._flush()

    def _flush(self) -> None:
        if self._rows:
            write_part(self.folder / f"part-{self._number:06d}.parquet", self._rows)
            self._number += 1
            self._rows = []
