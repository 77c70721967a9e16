"""Scoring what arrives in a folder: ``watch``."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from metaformer.cli.shared.arguments import check_detector_argument, note_sub_folders
from metaformer.cli.shared.options import (
    INTERRUPTED,
    SOME_UNREADABLE,
    BackboneWeights,
    Quiet,
    clear_errors,
)
from metaformer.cli.shared.screen import Ending, command_line, flag, tell, warn


class WatchEngineOption(StrEnum):
    auto = "auto"
    torch = "torch"
    onnxruntime = "onnxruntime"
    openvino = "openvino"


def watch(
    detector_file: Annotated[
        Path, typer.Argument(metavar="DETECTOR", help="Detector made by `adapt`.")
    ],
    folder: Annotated[Path, typer.Argument(help="Folder in which images arrive.")],
    jsonl: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="JSON lines file to append to, and to go on from; - for standard output, which "
            "is usual unless there is a webhook.",
        ),
    ] = None,
    webhook: Annotated[
        str | None, typer.Option(metavar="URL", help="Address to POST each result to, as JSON.")
    ] = None,
    recursive: Annotated[bool, typer.Option("--recursive", help="Watch sub-folders too.")] = False,
    once: Annotated[
        bool, typer.Option("--once", help="End when the images that are there have been scored.")
    ] = False,
    poll: Annotated[float, typer.Option(help="Seconds from one look to the next.", min=0.05)] = 1.0,
    grace: Annotated[
        float,
        typer.Option(help="Seconds that a file may be unreadable before it is recorded.", min=0),
    ] = 10.0,
    drift_rate: Annotated[
        float,
        typer.Option(
            help="Warn of changed scores, falsely once in 1 / RATE images on average at most; 0: "
            "never.",
            min=0,
            max=0.5,
        ),
    ] = 0.0001,
    false_alarm_rate: Annotated[
        float | None, typer.Option(help="Another rate than the detector was made with.")
    ] = None,
    engine: Annotated[
        WatchEngineOption,
        typer.Option(help="What computes; auto: onnxruntime, or torch if that differs."),
    ] = WatchEngineOption.auto,
    backbone_weights: BackboneWeights = None,
    quiet: Quiet = False,
) -> None:
    """Score images as they arrive in a folder. Stops in good order on Ctrl-C or SIGTERM."""
    stop = threading.Event()

    ending = Ending()

    with clear_errors(), stopped_by_signals(stop):
        from metaformer.detection.detector import Detector
        from metaformer.inference.scores.json_lines import JsonLines, Nowhere, StandardOutput
        from metaformer.inference.watch import Watch
        from metaformer.inference.webhook import Webhook
        from metaformer.io.folders import check_folder

        check_detector_argument("watch", detector_file, [folder])
        check_folder(folder)
        is_for_people = jsonl is None and sys.stdout.isatty()
        record: JsonLines | StandardOutput | Nowhere
        if jsonl is not None and jsonl != "-":
            record = JsonLines(Path(jsonl))
        else:
            is_wanted = jsonl == "-" or (webhook is None and not is_for_people)
            record = StandardOutput() if is_wanted else Nowhere()
        detector = Detector.load(detector_file, backbone_weights=backbone_weights)
        if false_alarm_rate is not None:
            detector = detector.with_false_alarm_rate(false_alarm_rate)
        if not (engine is WatchEngineOption.auto and once):
            from metaformer.export.backends import with_engine

            detector = with_engine(detector, engine.value)

        def show(entry: dict[str, Any]) -> None:
            if entry["event"] == "drift":
                warn(entry["message"])
            elif quiet:
                return
            elif entry["event"] == "start":
                tell(f"watching {folder} (Ctrl-C stops)")
            elif entry["event"] == "unreadable":
                tell(f"not scored: {entry['path']}: {entry['reason']}")
            elif is_for_people:
                typer.echo(describe_score(entry))
            elif entry["is_anomalous"]:
                tell(f"anomalous: {entry['path']} ({entry['score']:.2f})")

        if not recursive and not quiet:
            note_sub_folders([str(folder)])
        post = None if webhook is None else Webhook(webhook, tell=warn)
        job = Watch(
            detector,
            folder,
            record,
            webhook=post,
            recursive=recursive,
            poll=poll,
            grace=grace,
            drift_rate=drift_rate or None,
            on_entry=show,
            tell=warn,
        )
        if isinstance(record, JsonLines) and record.size() > 10_000_000 and not quiet:
            tell(f"reading {jsonl}")  # takes seconds
        try:
            result = job.run(stop, once=once)
        finally:
            if post is not None:
                post.close()
        if not quiet:
            tell(
                f"{result.scored} images scored ({result.known} before), {result.anomalous} "
                f"anomalous, {result.unreadable} unreadable, {result.drifts} drift warnings."
            )
            ending.say(next_step(detector_file, folder, jsonl), err=True)
        if result.interrupted:
            raise typer.Exit(INTERRUPTED)
        if result.unreadable or (post is not None and post.failed + post.dropped):
            raise typer.Exit(SOME_UNREADABLE)


def describe_score(entry: dict[str, Any]) -> str:
    """One line a person reads: when, verdict, score, name."""
    from metaformer.detection.scoring.overlays import format_score

    verdict = flag("defective" if entry["is_anomalous"] else "normal   ", entry["is_anomalous"])
    return f"{entry['time'][11:19]}  {verdict}  {format_score(entry['score'])}  {entry['path']}"


def next_step(detector_file: Path, folder: Path, jsonl: str | None) -> str:
    if jsonl is None:
        again = command_line("watch", detector_file, folder, "--jsonl", "results.jsonl")
        return f"to keep results and go on from them, {again}"
    return "the same command goes on after what has been scored"


@contextmanager
def stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM sets ``stop``; a second one ends the program at once."""
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_signal(number: int, frame: object) -> None:
        # In a thread of its own: this one may hold the event's lock, about to wait for it.
        threading.Thread(target=stop.set).start()
        restore()

    def restore() -> None:
        for number, handler in usual.items():
            signal.signal(number, handler)

    for number in usual:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        restore()
