"""Watching the prior learn: numbers on held-out photos and sample sheets."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from metaformer.io.atomic_files import write_bytes
from metaformer.networks.instance_prior import EFFECTS, InstancePrior, apply_effects
from metaformer.training.prior.effect_photos import PhotoMix, draw_composed, draw_for_effect
from metaformer.training.prior.photo_bank import Side

WATCHED = 96
SHEET_COLUMNS = 12


class Watch:
    """A fixed set of held-out photos with mattes from chroma key.

    Used to see whether a run is alive, and to choose between configurations. The sets that the
    prior is evaluated on are others.
    """

    def __init__(self, side: Side, size: int) -> None:
        rng = np.random.default_rng(2021)
        as_taken = PhotoMix(pasted_object=0.0, pasted_shape=0.0)
        drawn = [
            draw_for_effect(side, as_taken, size, rng)
            if i % 3 == 0
            else draw_composed(side, PhotoMix(), i % 6 == 1, size, rng)
            for i in range(WATCHED)
        ]
        self.images = torch.from_numpy(np.stack([p for p, _ in drawn])).permute(0, 3, 1, 2) / 255
        self.mattes = torch.from_numpy(np.stack([m for _, m in drawn]))[:, None]  # (N, 1, S, S)

    @torch.no_grad()
    def response(self, prior: InstancePrior) -> Tensor:
        """The response map of the watched photos, (N, 1, S, S), on the CPU."""
        device = next(prior.parameters()).device
        parts = [prior(batch.to(device)).cpu() for batch in torch.split(self.images, 16)]
        return torch.cat(parts)

    def measure(self, prior: InstancePrior) -> dict[str, float]:
        """IoU at 0.5 and mean absolute error, over photos as taken and over pasted objects."""
        response = self.response(prior)
        found, true = response > 0.5, self.mattes > 0.5
        union = (found | true).sum(dim=(1, 2, 3)).clamp(min=1)
        iou = (found & true).sum(dim=(1, 2, 3)) / union  # (N,)
        error = (response - self.mattes).abs().mean(dim=(1, 2, 3))  # (N,)
        kind = torch.arange(len(iou)) % 6
        return {
            "iou_as_taken": float(iou[kind % 3 == 0].mean()),
            "iou_pasted_objects": float(iou[(kind % 3 != 0) & (kind != 1)].mean()),
            "iou_pasted_shapes": float(iou[kind == 1].mean()),
            "mae": float(error.mean()),
            "area_response": float(response.mean()),
        }

    def sample_sheet(self, prior: InstancePrior, path: Path) -> None:
        """PNG with rows of photo, response map and edited photo."""
        count = 2 * SHEET_COLUMNS
        images, response = self.images[:count], self.response(prior)[:count]
        effects = torch.arange(count) % len(EFFECTS)
        edited = apply_effects(images, response, effects)
        rows = [
            torch.cat(list(strip[start : start + SHEET_COLUMNS]), dim=2)
            for start in range(0, count, SHEET_COLUMNS)
            for strip in (images, response.expand_as(images), edited)
        ]
        sheet = (torch.cat(rows, dim=1) * 255).byte().permute(1, 2, 0).numpy()
        _, png = cv2.imencode(".png", cv2.cvtColor(np.ascontiguousarray(sheet), cv2.COLOR_RGB2BGR))
        write_bytes(path, png.tobytes())
