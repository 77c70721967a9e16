"""Training what is shipped: ``pretrain prior``, ``autoencoder``, ``universal``, ``metric`` and
``transformer``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from metaformer.cli.options import Quiet, clear_errors

app = typer.Typer(help="Train what is shipped with the package.", no_args_is_help=True)


@app.command("prior")
def pretrain_prior(
    config: Annotated[Path, typer.Argument(help="YAML, one key per field.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Train the instance-prior generator P from unlabelled photos."""
    with clear_errors():
        from metaformer.training.prior import PriorTrainingConfig, train_prior

        typer.echo(train_prior(PriorTrainingConfig.from_yaml(config), resume=resume, quiet=quiet))


@app.command("autoencoder")
def pretrain_autoencoder_command(
    config: Annotated[Path, typer.Argument(help="YAML, one key per field.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint.")
    ] = False,
) -> None:
    """Train A to reconstruct unlabelled photos, the start of the pixel preset."""
    with clear_errors():
        from metaformer.training.pretrain import PretrainConfig, pretrain_autoencoder

        typer.echo(pretrain_autoencoder(PretrainConfig.from_yaml(config), resume=resume))


@app.command("universal")
def pretrain_universal(
    config: Annotated[Path, typer.Argument(help="YAML, one key per field.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Meta-train A (MAML) and T on tasks made from unlabelled photos."""
    with clear_errors():
        from metaformer.training.meta import meta_train
        from metaformer.training.meta_config import MetaConfig

        typer.echo(meta_train(MetaConfig.from_yaml(config), resume=resume, quiet=quiet))


@app.command("metric")
def pretrain_metric(
    config: Annotated[Path, typer.Argument(help="YAML, one key per field.")],
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint.")] = False,
    quiet: Quiet = False,
) -> None:
    """Meta-train the metric of the feature preset on tasks made from unlabelled photos."""
    with clear_errors():
        from metaformer.training.metric import train_metric
        from metaformer.training.metric_config import MetricConfig

        typer.echo(train_metric(MetricConfig.from_yaml(config), resume=resume, quiet=quiet))


@app.command("transformer")
def pretrain_transformer(
    config: Annotated[Path, typer.Argument(help="YAML, one key per field.")],
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint.")] = False,
    quiet: Quiet = False,
) -> None:
    """Meta-train T of the feature preset on tasks made from unlabelled photos."""
    with clear_errors():
        from metaformer.training.metric_config import MetricConfig
        from metaformer.training.token_transformer import train_transformer

        typer.echo(train_transformer(MetricConfig.from_yaml(config), resume=resume, quiet=quiet))
