"""Examples and exit codes at the end of every ``--help``."""

from __future__ import annotations

DONE, NOTHING, WRONG = (
    "0 done",
    "1 nothing could be done, the message says why",
    "2 wrong command line",
)
PARTLY = "3 done, but some images could not be read and are listed"
STOPPED = "130 stopped by Ctrl-C, what was finished is kept"


def epilog(*examples: str, codes: tuple[str, ...] = (DONE, NOTHING, WRONG, STOPPED)) -> str:
    """Paragraphs as Typer shows them, one line each."""
    return "\n\n".join(
        ["Examples:", *(f"  {line}" for line in examples), f"Exit codes: {'; '.join(codes)}."]
    )


ALL_CODES = (DONE, NOTHING, WRONG, PARTLY, STOPPED)

ADAPT = epilog(
    "metaformer adapt photos/good -o bracket.metaformer",
    "metaformer adapt photos/good.zip --resolution 512 -o bracket.metaformer",
    "metaformer adapt photos/more --add bracket.metaformer -o bracket-2.metaformer",
    codes=(DONE, NOTHING, WRONG, "3 done, but some files were not used and are named", STOPPED),
)
PREDICT = epilog(
    "metaformer predict bracket.metaformer photos/new -o results",
    "metaformer predict bracket.metaformer monday.zip line.mp4 --every 10",
    "metaformer predict bracket.metaformer --list files.txt --labels truth.csv",
    codes=ALL_CODES,
)
EVALUATE = epilog(
    "metaformer evaluate data/mvtec/bottle --shots 4 --seeds 0,1,2",
    "metaformer evaluate data/mvtec --shots 1,2,4 --table table.md -o results.json",
)
INFO = epilog("metaformer info bracket.metaformer", "metaformer info bracket.metaformer --json")
DEMO = epilog("metaformer demo", "metaformer demo -o somewhere")
EXPORT = epilog(
    "metaformer export bracket.metaformer -o bracket.onnx",
    "metaformer export bracket.metaformer --format openvino --precision int8 --check photos/good",
)
SERVE = epilog(
    "metaformer serve bracket.metaformer",
    "METAFORMER_TOKEN=secret metaformer serve --host 0.0.0.0 --port 8080",
    codes=("0 done, stopped by Ctrl-C or SIGTERM", NOTHING, WRONG),
)
WATCH = epilog(
    "metaformer watch bracket.metaformer /camera/out",
    "metaformer watch bracket.metaformer /camera/out --jsonl line3.jsonl",
    "metaformer watch bracket.metaformer /camera/out --webhook http://localhost:9000/results",
    codes=(
        DONE,
        NOTHING,
        WRONG,
        "3 some files could not be read, or a webhook did not get all results",
        "130 stopped by Ctrl-C or SIGTERM, what was finished is kept",
    ),
)
FETCH = epilog("metaformer data fetch visa", "metaformer data fetch mvtec_ad -o sets")
LIST = epilog("metaformer data list", codes=(DONE, WRONG))


def pretrain(name: str, config: str) -> str:
    return epilog(
        f"metaformer pretrain {name} configs/{config}",
        f"metaformer pretrain {name} configs/{config} --resume",
        codes=(DONE, NOTHING, WRONG, "130 stopped by Ctrl-C, --resume goes on"),
    )
