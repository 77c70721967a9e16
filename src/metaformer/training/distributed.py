"""The few things a training loop needs to run alone or under ``torchrun``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from metaformer.networks.placement import check_device


@dataclass(frozen=True)
class Workers:
    """This process among those that train together."""

    rank: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0


@contextmanager
def join_workers(device: str = "cpu") -> Iterator[Workers]:
    """Join the processes that ``torchrun`` started, if it did, and leave them at the end.

    With ``cuda`` each process of a machine takes a device of its own.

    Raises: DeviceError: as ``check_device``.
    """
    place = check_device(device)
    if device == "cuda":
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Workers(0, 1, place)
        return
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield Workers(dist.get_rank(), count, place)
    finally:
        dist.destroy_process_group()


def average_gradients(parameters: Iterable[Tensor], workers: Workers) -> None:
    """Replace each gradient by its mean over all processes.

    Done by hand, not by DistributedDataParallel, whose hooks do not see the second derivative of
    a gradient penalty.
    """
    if workers.count == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= workers.count
    for gradient, mean in zip(
        gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True
    ):
        gradient.copy_(mean.view_as(gradient))


def from_first(value: float, workers: Workers) -> float:
    """The first process's ``value``, in all of them."""
    if workers.count == 1:
        return value
    shared = torch.tensor([value], dtype=torch.float64, device=workers.device)
    dist.broadcast(shared, 0)
    return float(shared.item())


def gather(tensor: Tensor, workers: Workers) -> list[Tensor]:
    """Every process's ``tensor``, in order of rank."""
    if workers.count == 1:
        return [tensor]
    parts = [torch.empty_like(tensor) for _ in range(workers.count)]
    dist.all_gather(parts, tensor.contiguous())
    return parts
