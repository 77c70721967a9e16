"""The ``metaformer`` command.

Nothing heavy is imported before a command runs: ``metaformer --help`` must answer at once.

Exit codes: 0 all done; 1 nothing could be done, the message says why; 2 the command line is
wrong; 3 done, but some images could not be read and are listed (``watch``: or a webhook did not get
all results); 130 stopped by Ctrl-C (``watch``: or SIGTERM), what was finished is on disk.
"""

from __future__ import annotations

import gc
import importlib.metadata
import io
import sys
from typing import Annotated

import typer

from metaformer.cli import (
    adapt,
    data,
    evaluate,
    export,
    predict,
    pretrain,
    serve,
    watch,
)
from metaformer.cli.shared import examples
from metaformer.inference.allocator import keep_freed_memory

app = typer.Typer(
    name="metaformer",
    help="Find defects in images when all you have is a handful of good ones.",
    no_args_is_help=True,
    epilog=examples.epilog(
        "metaformer demo",
        "metaformer adapt photos/good -o bracket.metaformer",
        "metaformer predict bracket.metaformer photos/new -o results",
        codes=examples.ALL_CODES,
    ),
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def show_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"metaformer-ad {importlib.metadata.version('metaformer-ad')}")
        raise typer.Exit


@app.callback(no_args_is_help=True)
def metaformer(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=show_version, is_eager=True
        ),
    ] = False,
) -> None:
    keep_freed_memory()


app.command(epilog=examples.ADAPT)(adapt.adapt)
app.command(epilog=examples.PREDICT)(predict.predict)
# What is too much for it is told by itself, and better.
app.command(epilog=examples.EVALUATE, context_settings={"allow_extra_args": True})(
    evaluate.evaluate
)
app.command(epilog=examples.INFO)(adapt.info)
app.command(epilog=examples.DEMO)(adapt.demo)
app.command(epilog=examples.EXPORT)(export.export)
app.command(epilog=examples.SERVE)(serve.serve)
app.command(epilog=examples.WATCH)(watch.watch)
app.add_typer(data.app, name="data")
app.add_typer(pretrain.app, name="pretrain")


def main() -> None:
    """Entry point; a broken pipe (``metaformer info x | head``) is not an error.

    Names that the terminal, or a file that the output goes to, cannot show have escapes.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    gc.set_threshold(100_000)  # with the usual 700, loading PyTorch takes 0.2 s longer
    try:
        app()
    except BrokenPipeError:
        sys.stderr.close()
    finally:
        gc.freeze()  # the interpreter would spend 0.3 s on collecting all of it at the end
