"""From a training checkpoint to the two small files that the prior is loaded from.

python -m metaformer.training.prior.export CHECKPOINT FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save

from metaformer.io.atomic_files import write_bytes, write_text
from metaformer.networks.instance_prior import (
    CARD,
    WEIGHTS,
    InstancePrior,
    PriorConfig,
    prior_card,
    prior_from_bytes,
)
from metaformer.training.checkpoints import load_checkpoint, restore_module


def export_prior(checkpoint: Path, folder: Path) -> InstancePrior:
    """Write the averaged (EMA) weights of ``checkpoint`` to ``folder``, in half precision.

    Steps, seconds and configuration of the run go into the JSON card. Returns the prior as a
    reader of the files will get it.

    Raises:
        CheckpointError: the checkpoint cannot be read.
    """
    tensors, record = load_checkpoint(checkpoint)
    prior = InstancePrior(PriorConfig(**record["config"]["prior"]))
    restore_module("ema", prior, tensors)
    done = {"steps": record["step"], "seconds": round(record["seconds"])}
    training = {**record["config"], **done}
    card = prior_card(prior, {"training": training})
    weights = save({name: t.to(torch.float16) for name, t in prior.state_dict().items()})
    written = prior_from_bytes(weights, card, name=str(folder / WEIGHTS))
    write_bytes(folder / WEIGHTS, weights)
    write_text(folder / CARD, card)
    return written


if __name__ == "__main__":
    export_prior(Path(sys.argv[1]), Path(sys.argv[2]))
