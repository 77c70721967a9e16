"""Measuring a preset on a labelled set: ``evaluate``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from metaformer.cli.shared.arguments import is_detector
from metaformer.cli.shared.options import (
    AsJson,
    Backbone,
    BackboneWeights,
    Device,
    Download,
    Mode,
    ModeName,
    PartName,
    Preset,
    PresetName,
    Quiet,
    Resolution,
    UniversalWeights,
    WhiteLevel,
    clear_errors,
)
from metaformer.cli.shared.screen import Ending, command_line


def evaluate(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(help="A category, a root of several, or pairs.")],
    shots: Annotated[
        str,
        typer.Option(help='Normal images to adapt to, or "full"; several as 1,2,4: one run each.'),
    ] = "4",
    seeds: Annotated[str, typer.Option(help="Comma-separated support seeds.")] = "0,1,2",
    preset: Preset = PresetName.feature,
    resolution: Resolution = None,
    aligned: Annotated[
        bool | None, typer.Option(help="Compare by place; unless given, for template pairs only.")
    ] = None,
    unified: Annotated[
        bool, typer.Option("--unified", help="One detector for all categories, not one for each.")
    ] = False,
    layout: Annotated[str, typer.Option(help="Folder layout; found out if auto.")] = "auto",
    backbone: Backbone = "efficientnet_lite0",
    backbone_weights: BackboneWeights = None,
    download: Download = False,
    device: Device = "cpu",
    mode: Mode = ModeName.fast,
    universal_weights: UniversalWeights = None,
    without: Annotated[
        list[PartName] | None,
        typer.Option(
            help="Leave a part out, to see what it is worth; several: once for each. feature: "
            "transformer; gap (the transformer gets no gap input). pixel: adaptation (no weights "
            "are fitted); with --mode long also transformer, gap (the image stands for what is "
            "rebuilt of it), response (the object is taken to be everywhere)."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Test images per category, for a quick look.")
    ] = None,
    white_level: WhiteLevel = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON to write.")] = None,
    table: Annotated[
        Path | None,
        typer.Option(help="Table to write, of all runs: .md for Markdown, .tex for LaTeX."),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="HTML report to write, of the first seed, with the truth beside it."),
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Measure a preset on a labelled set: defects caught, good images flagged, image and pixel
    metrics, over several supports."""
    ending = Ending()
    with clear_errors():
        check_data_arguments([str(data), *context.args])
        numbers = parse_shots(shots)
        seed_list = parse_seeds(seeds)
        from metaformer.data.datasets.loading import load_categories
        from metaformer.evaluation.detector_method import DetectorMethod
        from metaformer.evaluation.protocol import evaluate as measure
        from metaformer.evaluation.protocol import save_results
        from metaformer.evaluation.publish import check_table_path, write_table
        from metaformer.evaluation.table import print_results

        categories = load_categories(data, layout=layout)
        if aligned is None:
            all_paired = all(category.is_paired for category in categories)
            aligned = all_paired and mode is not ModeName.long
        method = DetectorMethod(
            preset.value,
            resolution=resolution,
            aligned=aligned,
            backbone=backbone,
            backbone_weights=backbone_weights,
            download=download,
            mode=mode.value,
            universal_weights=universal_weights,
            device=device,
            without=[part.value for part in without or []],
        )
        if table is not None:
            check_table_path(table)
        runs = []
        for number in numbers:
            pages = None
            if report is not None and number == numbers[0]:
                from metaformer.inference.report.evaluation import EvaluationReport

                pages = EvaluationReport(data, seed_list[0], report)
            run = measure(
                categories[0] if len(categories) == 1 else categories,
                method,
                shots=number,
                seeds=seed_list,
                unified=unified,
                test_limit=limit,
                white_level=white_level,
                quiet=quiet,
                on_scored=pages.add if pages else lambda scored: None,
            )
            runs.append(run)
            if pages is not None:
                pages.write(run)
            results = run if len(numbers) == 1 else {"runs": runs}
            if output is not None:  # after each run, so that a stop loses none that is finished
                save_results(results, output)
            if table is not None:
                write_table(runs, table)
            if not as_json and not quiet:
                print_results(run)
                if run["white_level"] is not None:
                    typer.echo(f"White of 16-bit images: {run['white_level']}.")
        if as_json:
            typer.echo(json.dumps(results, indent=2))
        elif not quiet:
            for what, path in (("report", report), ("table", table), ("results", output)):
                if path is not None:
                    typer.echo(f"{what}: {path}")
            steps = [f"look at {report}"] if report else []
            if report is None:
                again = command_line("evaluate", data, "--shots", shots, "--report", "report.html")
                steps.append(f"to see the images behind the numbers, {again}")
            ending.say(*steps)


def check_data_arguments(given: Sequence[str]) -> None:
    """Refuse a detector, and more than one folder.

    Raises:
        ValueError: a detector is among what is given.
        typer.BadParameter: several folders.
    """
    for detector in filter(is_detector, given):
        others = [other for other in given if other != detector]
        score = command_line("predict", detector, *(others or ["FOLDER"]), "--labels", "truth.csv")
        measure = f", to measure a preset: {command_line('evaluate', others[0])}" if others else ""
        raise ValueError(
            f"{detector}: a detector; evaluate takes a labelled set and makes its own. To compare "
            f"this one with what is known of images: {score}{measure}"
        )
    if len(given) > 1:
        raise typer.BadParameter(
            f"one labelled set, or the root of several, is taken; found {', '.join(given)}. Give "
            f"the folder above them, or run the command for each.",
            param_hint="DATA",
        )


def parse_shots(text: str) -> list[Any]:
    """Comma-separated: "full" or numbers from 1 up."""
    parts = [part.strip() for part in text.split(",")]
    if any(part != "full" and (not part.isdigit() or int(part) < 1) for part in parts):
        raise typer.BadParameter(f'--shots takes numbers from 1 up or "full", got {text!r}.')
    return [part if part == "full" else int(part) for part in dict.fromkeys(parts)]


def parse_seeds(text: str) -> list[int]:
    """Comma-separated numbers."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--seeds takes numbers like 0,1,2, got {text!r}.") from None
