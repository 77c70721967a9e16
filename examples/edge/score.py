"""Score frames with an exported detector. Needs onnxruntime and numpy; for files also Pillow.

python score.py bracket.onnx frame.npy photo.jpg --maps out/"""

import argparse
import json
import os
from pathlib import Path

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is imported
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
args = parser.parse_args()

session = onnxruntime.InferenceSession(args.model, providers=["CPUExecutionProvider"])
made = json.loads(session.get_modelmeta().custom_metadata_map["metaformer"])
print(f"# {made['guarantee']}\nimage,score,is_anomalous")
for path in args.images:
    _, score, is_anomalous, anomaly_map = session.run(None, {"images": read(path)[None]})
    print(f"{path},{score[0]:.4f},{'true' if is_anomalous[0] else 'false'}")
    if args.maps:
        args.maps.mkdir(parents=True, exist_ok=True)
        grey = np.rint(anomaly_map[0] * 255).astype(np.uint8)
        pgm = b"P5 %d %d 255\n" % grey.shape[::-1] + grey.tobytes()
        (args.maps / f"{path.name}.pgm").write_bytes(pgm)
