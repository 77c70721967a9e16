"""Scoring images: ``predict``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metaformer.cli.shared.arguments import (
    check_arguments,
    check_detector_argument,
    note_sub_folders,
    usual_results,
)
from metaformer.cli.shared.options import (
    INTERRUPTED,
    RARE,
    SOME_UNREADABLE,
    AsJson,
    BackboneWeights,
    Device,
    EngineOption,
    Every,
    Lists,
    Place,
    Quiet,
    Recursive,
    ScoresFormatName,
    clear_errors,
    progress_bar,
)
from metaformer.cli.shared.outcome import SeenImages, print_counts, print_omissions
from metaformer.cli.shared.screen import Ending, command_line

if TYPE_CHECKING:
    from metaformer.io.sources.shards import Sources


def predict(
    detector_file: Annotated[Path, typer.Argument(help="Detector made by `adapt`.")],
    images: Annotated[
        list[str] | None,
        typer.Argument(
            help="Images, folders, zip or tar archives, videos, addresses (s3://...), or @LIST."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder for scores, maps/, report.html; if unset, named after detector and "
            "images, here.",
        ),
    ] = None,
    lists: Lists = None,
    recursive: Recursive = False,
    every: Every = 1,
    false_alarm_rate: Annotated[
        float | None, typer.Option(help="Another rate than the detector was made with.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="What is known of the images, as CSV: file,label[,mask]; unless given, folders "
            "named good, test/<kind> and masks beside the images are understood.",
        ),
    ] = None,
    scores_format: Annotated[
        ScoresFormatName | None,
        typer.Option(
            "--format",
            help="csv: scores.csv (usual); parquet: files in scores/.",
            rich_help_panel=RARE,
        ),
    ] = None,
    place: Annotated[
        Place,
        typer.Option(
            "--on", help="This process, or a Ray cluster (see docs/scale.md).", rich_help_panel=RARE
        ),
    ] = Place.local,
    engine: Annotated[
        EngineOption,
        typer.Option(
            help="What computes; auto: onnxruntime, or torch where that is faster; ray: as "
            "--on ray.",
            rich_help_panel=RARE,
        ),
    ] = EngineOption.auto,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Images scored at once; usually one a processor, at most 4.",
            rich_help_panel=RARE,
        ),
    ] = None,
    backbone_weights: BackboneWeights = None,
    device: Device = "cpu",
    maps: Annotated[
        bool,
        typer.Option(
            " /--no-maps", show_default=False, help="Write no heat maps, for speed and space."
        ),
    ] = True,
    report: Annotated[
        bool, typer.Option(" /--no-report", show_default=False, help="Write no report.html.")
    ] = True,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace results of another run.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Score images and mark their defects. A stopped run resumes when started again."""
    ending = Ending()
    with clear_errors():
        from metaformer.data.datasets.truth import FolderTruth, LabelTable, Outcomes

        if engine is EngineOption.ray:
            place, engine = Place.ray, EngineOption.auto
        if place is Place.ray:
            refuse_on_ray(
                {
                    "writes Parquet. Leave out --format csv.": scores_format
                    is ScoresFormatName.csv,
                    "has no --json: its predictions are in scores/ only.": as_json,
                    "computes with PyTorch. Leave out --engine.": engine
                    not in (EngineOption.auto, EngineOption.torch),
                    "computes on processors. Leave out --device.": device != "cpu",
                    "has one image a processor. Leave out --workers.": workers is not None,
                    "writes no report. Leave out --labels.": labels is not None,
                    "has no --backbone-weights: set METAFORMER_WEIGHTS on every machine.": (
                        backbone_weights is not None
                    ),
                }
            )
            scores_format, report = ScoresFormatName.parquet, False
        scores_format = scores_format or ScoresFormatName.csv
        arguments = [*(images or []), *(f"@{path}" for path in lists or [])]
        if not arguments:
            raise ValueError("nothing to score. Name images or folders, or a list with --list.")
        check_detector_argument("predict", detector_file, arguments)
        if device != "cpu" and engine is not EngineOption.torch:
            if engine is not EngineOption.auto:
                raise ValueError(
                    f"--device is of PyTorch, {engine.value} takes none. Leave one out."
                )
            engine = EngineOption.torch
        output = output or usual_results(detector_file, arguments)
        sources = open_sources(arguments, recursive, every, output)
        if not recursive and not quiet:
            note_sub_folders(arguments)
        table = None if labels is None else LabelTable(labels)
        truth = table or FolderTruth()
        seen = SeenImages(truth, keep_all=as_json)
        computed_by = "torch"
        with progress_bar("scoring", quiet) as on_step:
            if place is Place.ray:
                from metaformer.inference.ray_cluster import score_on_ray

                result = score_on_ray(
                    detector_file,
                    sources,
                    output,
                    false_alarm_rate=false_alarm_rate,
                    write_maps=maps,
                    overwrite=overwrite,
                    on_step=on_step,
                )
            else:
                from metaformer.detection.detector import Detector
                from metaformer.inference.batch import score_images

                detector = Detector.load(
                    detector_file, backbone_weights=backbone_weights, device=device
                )
                if false_alarm_rate is not None:
                    detector = detector.with_false_alarm_rate(false_alarm_rate)
                from metaformer.export.backends import pays_off, with_engine

                if engine is not EngineOption.auto or pays_off(detector, sources):
                    detector = with_engine(detector, engine.value)
                result = score_images(
                    detector,
                    sources,
                    output,
                    scores_format=scores_format.value,
                    write_maps=maps,
                    write_report=report,
                    overwrite=overwrite,
                    workers=workers,
                    truth=truth,
                    on_image=seen.add,
                    on_step=on_step,
                )
                if detector.has_engine:
                    computed_by = detector.engine.name
    outcomes = getattr(result, "outcomes", Outcomes())
    unused = [] if table is None else table.unused()
    if unused:
        names = ", ".join(unused[:3]) + (" ..." if len(unused) > 3 else "")
        typer.echo(f"{labels}: of no image scored, {len(unused)}: {names}", err=True)
    if as_json:
        listed = [{"path": name, "reason": reason} for name, reason in result.failures]
        summary = {
            "output": str(output),
            "scored": result.scored,
            "anomalous": result.anomalous,
            "of_earlier_runs": result.resumed,
            "interrupted": result.interrupted,
            "engine": computed_by,
            "truth": asdict(outcomes) if outcomes.describe() else None,
            "labels_of_no_image": unused,
            "failed": result.failed,
            "failed_in_earlier_runs": result.failed_before,
            "passed_over": result.skipped,
            "failures": listed,
            "predictions": seen.predictions,
        }
        typer.echo(json.dumps(summary, indent=2))
    print_omissions(result, output, quiet=quiet)
    if not quiet and not as_json:
        print_counts(result)
        for line in (None if table is None else table.describe(), outcomes.describe()):
            if line:
                typer.echo(line)
        seen.print_highest(result.anomalous)
        if computed_by != "torch":
            typer.echo(f"engine: {computed_by}")
        is_csv = scores_format is ScoresFormatName.csv
        shown = output / ("report.html" if report else "scores.csv" if is_csv else "scores")
        typer.echo(f"{'report' if report else 'scores'}: {shown}")
        steps = [f"look at {shown}"]
        if seen.highest:
            more_good = command_line("adapt", "FOLDER", "--add", detector_file)
            steps.append(f"if good ones are flagged, put them into a folder and {more_good}")
        ending.say(*steps)
    if result.interrupted:
        typer.echo("stopped; run the same command again to go on.", err=True)
        raise typer.Exit(INTERRUPTED)
    if result.scored == 0:
        raise typer.Exit(1)
    if result.failed:
        raise typer.Exit(SOME_UNREADABLE)


def refuse_on_ray(refused: Mapping[str, bool]) -> None:
    """Raises: ValueError: an option is given (True) that a Ray job does not take."""
    for why, is_given in refused.items():
        if is_given:
            raise ValueError(f"a Ray job {why}")


def open_sources(arguments: list[str], recursive: bool, every: int, output: Path) -> Sources:
    """The images that the arguments name, without the maps of an earlier run in ``output``.

    Raises:
        ValueError: there is no image; the message says what else there is.
    """
    from metaformer.data.datasets.suggestion import suggest_test_folder
    from metaformer.io.folders import describe_omissions
    from metaformer.io.sources.shards import NotScored, Sources, shards

    maps_folder = str((output / "maps").resolve())
    sources = Sources(tuple(arguments), recursive, every, maps_folder)
    check_arguments(arguments)
    if not all(isinstance(shard, NotScored) for shard in shards(sources)):
        return sources
    omissions = [
        omission
        for shard in shards(sources)
        if isinstance(shard, NotScored)
        for omission in shard.omissions
    ]
    named, advice = ", ".join(arguments), describe_omissions(omissions)
    if all(argument.startswith("@") for argument in arguments):
        raise ValueError(f"{named}: no images are listed. {advice}".strip())
    if not advice and not recursive:
        advice = "To look into sub-folders too, add --recursive."
    if not omissions and (first := Path(arguments[0])).is_dir():
        advice = f"{suggest_test_folder(first)} {advice}".strip()
    raise ValueError(f"{named}: no images in this folder. {advice}".strip())
