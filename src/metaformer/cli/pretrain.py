"""Training what is shipped: ``pretrain prior``, ``autoencoder``, ``universal`` and
``transformer``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from metaformer.cli.shared import examples
from metaformer.cli.shared.options import Device, Quiet, clear_errors
from metaformer.cli.shared.screen import Ending, command_line

app = typer.Typer(help="Train what is shipped with the package.", no_args_is_help=True)

Config = Annotated[Path, typer.Argument(help="YAML, one key per field.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")]
Train = Callable[..., Path]
"""From the configuration's path, ``resume``, ``quiet`` and ``device`` to that of the weights."""


def command(name: str, example: str, next_step: Callable[[Path], str]) -> Callable[[Train], Train]:
    """Make a command of a training, with the options that all of them have.

    Args:
        example: its configuration in ``configs/``.
        next_step: from the path of the weights to what the command ends with.
    """

    def add(train: Train) -> Train:
        def run(
            config: Config, resume: Resume = False, device: Device = "cpu", quiet: Quiet = False
        ) -> None:
            ending = Ending()
            with clear_errors():
                weights = train(config, resume=resume, quiet=quiet, device=device)
                typer.echo(weights)
                if not quiet:
                    ending.say(next_step(weights))

        app.command(name, help=train.__doc__, epilog=examples.pretrain(name, example))(run)
        return train

    return add


@command("prior", "prior.yaml", lambda path: f"look at the sample sheets in {path.parent}")
def prior(config: Path, **options: Any) -> Path:
    """Train the instance-prior generator from unlabelled photos."""
    from metaformer.training.prior.train import PriorTrainingConfig, train_prior

    return train_prior(PriorTrainingConfig.from_yaml(config), **options)


@command(
    "autoencoder",
    "pretrain_autoencoder.yaml",
    lambda path: f"meta-train from it: start: {path} in configs/universal_pixel.yaml",
)
def autoencoder(config: Path, **options: Any) -> Path:
    """Train the autoencoder to reconstruct unlabelled photos, the start of the pixel preset."""
    from metaformer.training.universal.pretrain_autoencoder import (
        PretrainConfig,
        pretrain_autoencoder,
    )

    return pretrain_autoencoder(PretrainConfig.from_yaml(config), **options)


@command(
    "universal",
    "universal_pixel.yaml",
    lambda path: command_line(
        "evaluate", "DATA", "--preset", "pixel", "--universal-weights", path.parent
    ),
)
def universal(config: Path, **options: Any) -> Path:
    """Meta-train the autoencoder (MAML) and the transformer on tasks made from photos."""
    from metaformer.training.universal.config import MetaConfig
    from metaformer.training.universal.train import meta_train

    return meta_train(MetaConfig.from_yaml(config), **options)


@command(
    "transformer",
    "gap_transformer.yaml",
    lambda path: f"the weights at several numbers of pairs are in {path.parent}",
)
def transformer(config: Path, **options: Any) -> Path:
    """Meta-train the transformer, which corrects the anomaly map, on tasks made from photos."""
    from metaformer.training.transformer.config import TransformerTrainingConfig
    from metaformer.training.transformer.train import train_transformer

    return train_transformer(TransformerTrainingConfig.from_yaml(config), **options)
