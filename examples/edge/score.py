"""Score frames with an exported detector. Needs onnxruntime and numpy; for files also Pillow.

python score.py bracket.onnx frame.npy photo.jpg --maps out/
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime


def read(path):  # -> (H, W, 3) uint8 RGB
    if path.suffix == ".npy":
        return np.load(path)
    from PIL import Image, ImageOps  # only files need a decoder; a camera gives arrays

    return np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model", type=Path)
parser.add_argument("images", type=Path, nargs="+")
parser.add_argument("--maps", type=Path, help="folder for heat maps; 128 is the pixel threshold")
options = parser.parse_args()

session = onnxruntime.InferenceSession(options.model, providers=["CPUExecutionProvider"])
print("#", json.loads(session.get_modelmeta().custom_metadata_map["metaformer"])["guarantee"])
print("image,score,is_anomalous")
for path in options.images:
    outputs = ["score", "is_anomalous", "anomaly_map"]
    score, is_anomalous, anomaly_map = session.run(outputs, {"images": read(path)[None]})
    print(f"{path},{score[0]:.4f},{'true' if is_anomalous[0] else 'false'}")
    if options.maps:
        options.maps.mkdir(parents=True, exist_ok=True)
        levels = np.rint(anomaly_map[0] * 255).astype(np.uint8)
        header = b"P5 %d %d 255\n" % levels.shape[::-1]
        (options.maps / f"{path.name}.pgm").write_bytes(header + levels.tobytes())
