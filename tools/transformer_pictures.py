"""The picture of ``docs/decisions/11-transformer.md``: where the transformer helps, and where it
fails.

Boards of DeepPCB (MIT). The normal images of a test image are its template and the next three of
its group. Of the first test images of each group the one whose pixel AP gains most by the
transformer is shown, and the one that gains least; the true boxes are outlined.

    python -m tools.transformer_pictures DATA/deeppcb docs/images/transformer.jpg
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from metaformer import Metaformer
from metaformer.io.images import read_image

GROUPS = 4
NORMAL, TESTED = 4, 6
SIDE = 300


@dataclass(frozen=True)
class Case:
    """A test image with its maps without and with the transformer."""

    image: NDArray[np.uint8]
    truth: NDArray[np.bool_]
    maps: tuple[NDArray[np.float32], NDArray[np.float32]]
    precisions: tuple[float, float]

    @property
    def gain(self) -> float:
        return self.precisions[1] - self.precisions[0]


def cases(root: Path) -> list[Case]:
    whole = Metaformer.from_pretrained()
    core = Metaformer(whole.model.without(["transformer"]), "feature")
    found = []
    for group in sorted(path for path in root.iterdir() if path.is_dir())[:GROUPS]:
        templates = sorted((group / "template").iterdir())
        for i, path in enumerate(sorted((group / "test").iterdir())[:TESTED]):
            detectors = [each.adapt(templates[i : i + NORMAL]) for each in (core, whole)]
            image = read_image(path)
            box = group / "boxes" / f"{path.stem}_mask.png"
            truth = read_image(box)[:, :, 0] > 127
            maps = [detector.predict(path).anomaly_map for detector in detectors]
            scores = [float(average_precision_score(truth.ravel(), m.ravel())) for m in maps]
            found.append(Case(image, truth, (maps[0], maps[1]), (scores[0], scores[1])))
    return found


def row(case: Case) -> NDArray[np.uint8]:
    """The image with the true boxes, and both maps, (SIDE, 3 * SIDE, 3)."""
    outlines, _ = cv2.findContours(
        case.truth.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    outlined = cv2.drawContours(case.image.copy(), outlines, -1, (0, 114, 178), 6)
    parts: list[NDArray[Any]] = [outlined]
    for name, anomaly_map, precision in zip(
        ("without", "with"), case.maps, case.precisions, strict=True
    ):
        high = float(np.quantile(anomaly_map, 0.999))
        scaled = np.clip((anomaly_map - anomaly_map.min()) / (high - anomaly_map.min()), 0, 1)
        heat = cv2.applyColorMap((255 * scaled).astype(np.uint8), cv2.COLORMAP_INFERNO)
        heat = cv2.drawContours(heat[:, :, ::-1].copy(), outlines, -1, (255, 255, 255), 3)
        label = f"{name}: pixel AP {100 * precision:.0f}"
        cv2.putText(heat, label, (14, 44), cv2.FONT_HERSHEY_SIMPLEX, 1.4, (255, 255, 255), 3)
        parts.append(heat)
    return np.hstack([cv2.resize(p, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for p in parts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("root", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = sorted(cases(options.root), key=lambda case: case.gain)
    picture = np.vstack([row(found[-1]), row(found[0])])
    cv2.imwrite(str(options.output), picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
    gains = [case.gain for case in found]
    print(f"{len(gains)} images: pixel AP {100 * np.mean(gains):+.1f} on average")
    print(f"best {100 * gains[-1]:+.1f}, worst {100 * gains[0]:+.1f}")


if __name__ == "__main__":
    main()
