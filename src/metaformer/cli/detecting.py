"""The main job: ``adapt``, ``predict``, ``info``, ``demo``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from metaformer.cli.options import (
    INTERRUPTED,
    SOME_UNREADABLE,
    Aligned,
    AsJson,
    Backbone,
    BackboneWeights,
    Download,
    EngineOption,
    FalseAlarmRate,
    Mode,
    ModeName,
    Place,
    Preset,
    PresetName,
    Quiet,
    Resolution,
    ScoresFormatName,
    Seed,
    UniversalWeights,
    clear_errors,
    progress_bar,
)

NOT_WITH_ADD = {
    "preset",
    "resolution",
    "aligned",
    "backbone",
    "download",
    "mode",
    "universal_weights",
    "seed",
}
"""Parameters of ``adapt`` that a detector to be extended has settled."""


def adapt(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Folder of normal images; 1 is enough.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Detector file to write.")],
    add: Annotated[
        Path | None,
        typer.Option(
            metavar="DETECTOR",
            help="Extend this detector instead of starting over; its own file stays as it is.",
        ),
    ] = None,
    preset: Preset = PresetName.feature,
    resolution: Resolution = None,
    aligned: Aligned = False,
    backbone: Backbone = "efficientnet_lite0",
    backbone_weights: BackboneWeights = None,
    download: Download = False,
    mode: Mode = ModeName.fast,
    universal_weights: UniversalWeights = None,
    false_alarm_rate: FalseAlarmRate = 0.05,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Adapt to a product from a few normal images."""
    with clear_errors():
        if not output.parent.is_dir():
            raise FileNotFoundError(
                f"{output}: its folder {output.parent} does not exist. Create it first."
            )
        if output.is_dir():
            raise IsADirectoryError(
                f"{output}: a folder. Give a file, {output / 'product.metaformer'} for example."
            )
        from metaformer.detector import Detector, Metaformer

        if add is not None:
            given = given_options(context)
            refused = given & NOT_WITH_ADD
            if refused:
                raise ValueError(
                    f"{', '.join(f'--{name}' for name in sorted(refused))}: with --add the "
                    f"detector's own is used. Leave it out, or adapt to all images from the start."
                )
            known = Detector.load(add, backbone_weights=backbone_weights)
            rate = false_alarm_rate if "false_alarm_rate" in given else None
            with progress_bar("adapting", quiet) as on_step:
                detector = known.extended_with(folder, false_alarm_rate=rate, on_step=on_step)
        else:
            universal = Metaformer.from_pretrained(
                preset.value,
                resolution=resolution,
                aligned=aligned,
                backbone=backbone,
                backbone_weights=backbone_weights,
                download=download,
                mode=mode.value,
                universal_weights=universal_weights,
            )
            with progress_bar("adapting", quiet) as on_step:
                detector = universal.adapt(
                    folder, false_alarm_rate=false_alarm_rate, seed=seed, on_step=on_step
                )
        detector.save(output)
        if as_json:
            typer.echo(json.dumps({"detector": str(output), **detector.info()}, indent=2))
        elif not quiet:
            count = len(detector.made["support"])
            typer.echo(f"{output}: adapted to {count} normal image{'s' if count > 1 else ''}.")
            if add is not None:
                typer.echo(describe_addition(detector.made["additions"][-1]))
            typer.echo(detector.guarantee)


def given_options(context: typer.Context) -> set[str]:
    """Parameters that stand on the command line, whatever their values."""
    return {
        name
        for name in context.params
        if getattr(context.get_parameter_source(name), "name", None) == "COMMANDLINE"
    }


def describe_addition(addition: dict[str, Any]) -> str:
    """What adding images has done to the threshold."""
    added = f"{addition['count']} of them new"
    if addition["calibration"] == "recomputed":
        return f"{added}; the same as adapting to all of them at once."
    return f"{added}; the detector does not hold enough of the earlier ones to score them again."


def predict(
    detector_file: Annotated[Path, typer.Argument(help="Detector made by `adapt`.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for scores, maps/, report.html.")
    ],
    images: Annotated[
        list[str] | None,
        typer.Argument(
            help="Images, folders, zip or tar archives, videos, addresses (s3://...), or @LIST."
        ),
    ] = None,
    lists: Annotated[
        list[Path] | None,
        typer.Option("--list", help="File with one path or address a line; may be given again."),
    ] = None,
    recursive: Annotated[bool, typer.Option(help="Look into sub-folders too.")] = False,
    every: Annotated[int, typer.Option(min=1, help="Of videos, score every Nth frame.")] = 1,
    false_alarm_rate: Annotated[
        float | None, typer.Option(help="Another rate than the detector was made with.")
    ] = None,
    scores_format: Annotated[
        ScoresFormatName | None,
        typer.Option("--format", help="csv: scores.csv (usual); parquet: files in scores/."),
    ] = None,
    place: Annotated[
        Place, typer.Option("--on", help="This process, or a Ray cluster (see docs/scale.md).")
    ] = Place.local,
    engine: Annotated[
        EngineOption,
        typer.Option(
            help="What computes; auto: for 50 images or more the fastest that is installed, else "
            "torch; ray: as --on ray."
        ),
    ] = EngineOption.auto,
    backbone_weights: BackboneWeights = None,
    maps: Annotated[bool, typer.Option(help="Write a heat map for each image.")] = True,
    report: Annotated[bool, typer.Option(help="Write report.html.")] = True,
    overwrite: Annotated[bool, typer.Option(help="Replace results of another run.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Score images and mark their defects. Stopped and started again, it goes on."""
    with clear_errors():
        from metaformer.sources.shards import Sources, shards

        if engine is EngineOption.ray:
            place, engine = Place.ray, EngineOption.auto
        if place is Place.ray:
            if scores_format is ScoresFormatName.csv:
                raise ValueError("a Ray job writes Parquet. Leave out --format csv.")
            if as_json:
                raise ValueError("a Ray job has no --json: its predictions are in scores/ only.")
            if engine not in (EngineOption.auto, EngineOption.torch):
                raise ValueError("a Ray job computes with PyTorch. Leave out --engine.")
            if backbone_weights is not None:
                raise ValueError(
                    "a Ray job has no --backbone-weights: set METAFORMER_WEIGHTS on every machine."
                )
            scores_format, report = ScoresFormatName.parquet, False
        scores_format = scores_format or ScoresFormatName.csv
        arguments = [*(images or []), *(f"@{path}" for path in lists or [])]
        if not arguments:
            raise ValueError("nothing to score. Name images or folders, or a list with --list.")
        # The maps of an earlier run are not images to score.
        maps_folder = str((output / "maps").resolve())
        sources = Sources(tuple(arguments), recursive, every, maps_folder)
        if next(shards(sources), None) is None:
            raise ValueError(
                f"{', '.join(arguments)}: no images in this folder"
                f"{'' if recursive else ' (--recursive looks into sub-folders too)'}."
            )
        predictions: list[dict[str, Any]] = []
        computed_by = "torch"

        def on_image(name: str, outcome: Any) -> None:
            if as_json and not isinstance(outcome, str):
                predictions.append(outcome.to_dict())

        with progress_bar("scoring", quiet) as on_step:
            if place is Place.ray:
                from metaformer.ray_job import score_on_ray

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
                from metaformer.batch import score_images
                from metaformer.detector import Detector

                detector = Detector.load(detector_file, backbone_weights=backbone_weights)
                if false_alarm_rate is not None:
                    detector = detector.with_false_alarm_rate(false_alarm_rate)
                if engine is not EngineOption.torch:
                    from metaformer.engines import engine_name, pays_off, with_engine

                    if engine is not EngineOption.auto or pays_off(sources):
                        detector = with_engine(detector, engine.value)
                    computed_by = engine_name(detector)
                result = score_images(
                    detector,
                    sources,
                    output,
                    scores_format=scores_format.value,
                    write_maps=maps,
                    write_report=report,
                    overwrite=overwrite,
                    on_image=on_image,
                    on_step=on_step,
                )
    if as_json:
        listed = [{"path": name, "reason": reason} for name, reason in result.failures]
        summary = {
            "scored": result.scored,
            "anomalous": result.anomalous,
            "of_earlier_runs": result.resumed,
            "interrupted": result.interrupted,
            "engine": computed_by,
            "failed": result.failed,
            "failures": listed,
            "predictions": predictions,
        }
        typer.echo(json.dumps(summary, indent=2))
    for name, reason in result.failures:
        typer.echo(f"not scored: {reason if name in reason else f'{name}: {reason}'}", err=True)
    if result.failed > len(result.failures):
        more = result.failed - len(result.failures)
        typer.echo(f"not scored: {more} more, see {output / 'failures.csv'}", err=True)
    if not quiet and not as_json:
        earlier = f" ({result.resumed} of them before)" if result.resumed else ""
        typer.echo(f"{result.scored} images scored{earlier}, {result.anomalous} anomalous.")
        if computed_by != "torch":
            typer.echo(f"engine: {computed_by}")
        shown = (
            "report.html"
            if report
            else ("scores.csv" if scores_format is ScoresFormatName.csv else "scores")
        )
        typer.echo(f"{'report' if report else 'scores'}: {output / shown}")
    if result.interrupted:
        typer.echo("stopped; run the same command again to go on.", err=True)
        raise typer.Exit(INTERRUPTED)
    if result.scored == 0:
        raise typer.Exit(1)
    if result.failed:
        raise typer.Exit(SOME_UNREADABLE)


def info(
    detector_file: Annotated[Path, typer.Argument(help="Detector made by `adapt`.")],
    backbone_weights: BackboneWeights = None,
) -> None:
    """How a detector was made and what its threshold promises, as JSON."""
    with clear_errors():
        from metaformer.detector import Detector

        typer.echo(
            json.dumps(
                Detector.load(detector_file, backbone_weights=backbone_weights).info(), indent=2
            )
        )


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path(
        "demo-report"
    ),
    quiet: Quiet = False,
) -> None:
    """Adapt to bundled photos of good products, find the defects in others, write a report."""
    with clear_errors():
        from metaformer.demo import run_demo

        with progress_bar("demo", quiet) as on_step:
            report = run_demo(output, on_step)
        typer.echo(f"report: {report}")
