"""Score images with an exported detector. Needs onnxruntime, numpy and Pillow, nothing else.

python score.py bracket.onnx photo.jpg another.png --maps out/
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model", type=Path)
parser.add_argument("images", type=Path, nargs="+")
parser.add_argument("--maps", type=Path, help="folder for heat maps; 128 is the pixel threshold")
options = parser.parse_args()

session = onnxruntime.InferenceSession(options.model, providers=["CPUExecutionProvider"])
about = json.loads(session.get_modelmeta().custom_metadata_map["metaformer"])
print(f"# {about['guarantee']}")
print("image,score,is_anomalous")
for path in options.images:
    pixels = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))  # (H, W, 3)
    outputs = ["score", "is_anomalous", "anomaly_map"]
    score, is_anomalous, anomaly_map = session.run(outputs, {"images": pixels[None]})
    print(f"{path},{score[0]:.4f},{'true' if is_anomalous[0] else 'false'}")
    if options.maps:
        options.maps.mkdir(parents=True, exist_ok=True)
        levels = np.rint(anomaly_map[0] * 255).astype(np.uint8)
        Image.fromarray(levels).save(options.maps / f"{path.name}.png")
