"""``python -m metaformer.cli``: the command where it is not on the path (torchrun)."""

from metaformer.cli import main

main()
