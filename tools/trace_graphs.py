"""Trace the graphs of both presets, without their weights, into the package.

    python -m tools.trace_graphs

To be run whenever what an adapted model computes changes; a test says so.
"""

from __future__ import annotations

from pathlib import Path

from metaformer import Metaformer
from metaformer.detection.engines.graph import template_of
from metaformer.export.verification import bundled_images
from metaformer.io.atomic_files import write_bytes

FOLDER = Path(__file__).parents[1] / "src/metaformer/detection/engines/graphs"


def main() -> None:
    for preset in ("feature", "pixel"):
        detector = Metaformer.from_pretrained(preset).adapt(bundled_images()[:3])
        content = template_of(detector.adapted.as_module(), detector.model.size_multiple)
        write_bytes(FOLDER / f"{preset}.onnx", content)
        print(f"{preset}: {len(content):,} bytes")


if __name__ == "__main__":
    main()
