"""What ``benchmarks.speed.peers`` times: a subject in a process, from pixels to score and map.

Every subject takes images (H, W, 3) uint8 and gives a score and a map of the image's size. A
subject that was exported is adapted and exported once, by ``prepare``, and then only scores.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Score = Callable[[Sequence[Image]], object]

TORCH = (
    "metaformer",
    "nearest-patch",
    "pixel",
    "patchcore-256",
    "anomalib-patchcore",
    "anomalib-patchcore-all",
    "anomalib-efficientad",
)
EXPORTED = (
    "metaformer-onnxruntime",
    "metaformer-openvino",
    "anomalib-patchcore-onnxruntime",
    "anomalib-patchcore-openvino",
    "anomalib-efficientad-onnxruntime",
    "anomalib-efficientad-openvino",
)
SUBJECTS = TORCH + EXPORTED
RESOLUTION = 256
BATCH = 16
SINGLES = 12
"""Images scored one at a time, the median counts; then ``BATCH`` at once, ``TOGETHER`` times."""
TOGETHER = 3

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""``cpu`` counts the processor time of all threads: for a machine that is busy with other things.
What waits for other threads or for memory shows in ``wall`` alone."""


def measure(
    name: str,
    support: Sequence[Image],
    tests: Sequence[Image],
    folder: Path,
    threads: int,
    clock: Callable[[], float],
) -> dict[str, float | None]:
    """Seconds and megabytes of one subject, in this process.

    Args:
        tests: at least ``BATCH`` images of one size.
        folder: where ``prepare`` put the exported models.
    """
    import torch

    from metaformer.inference.allocator import keep_freed_memory

    keep_freed_memory()  # as the command does; the rivals have it too
    torch.set_num_threads(threads)
    adapt_seconds = None
    if name in EXPORTED:
        score = load_exported(name, folder, threads)
        before = resident_megabytes()
    else:
        fit = build(name)
        before = resident_megabytes()
        started = clock()
        score = fit(support)
        adapt_seconds = clock() - started
    score(tests[:1])  # the first pass plans memory; not counted
    score(tests[:BATCH])
    singles = [seconds(score, [tests[i % len(tests)]], clock) for i in range(SINGLES)]
    together = [seconds(score, tests[:BATCH], clock) / BATCH for _ in range(TOGETHER)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "adapt_seconds": None if name == "anomalib-efficientad" else adapt_seconds,
        "seconds_at_1": statistics.median(singles),
        f"seconds_at_{BATCH}": statistics.median(together),
        "peak_megabytes": peak,
        "imports_megabytes": before,
    }


def seconds(score: Score, images: Sequence[Image], clock: Callable[[], float]) -> float:
    started = clock()
    score(images)
    return clock() - started


def resident_megabytes() -> float:
    """Resident now, libraries and the unadapted model included."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status has no VmRSS; memory is measured on Linux only.")


# ------------------------------------------------------------------------------------- in PyTorch


def build(name: str) -> Callable[[Sequence[Image]], Score]:
    """A function that adapts the subject to a support, imports and weights already loaded."""
    if name == "anomalib-efficientad":
        return efficientad
    method: Any
    if name in ("metaformer", "nearest-patch", "pixel"):
        from benchmarks.accuracy.methods import METHODS
        from metaformer.io.workers import usual_workers

        method = METHODS["feature" if name == "metaformer" else name]()
        method.workers = usual_workers()
        return partial(fit_in_pytorch, method)
    elif name == "patchcore-256":
        from benchmarks.accuracy.baselines import PatchCore
        from benchmarks.accuracy.baselines.features import patch_features

        method = PatchCore(resolution=RESOLUTION)
        import torch

        patch_features(torch.zeros(1, 3, 32, 32), method.strides, 1)  # loads the weights
    else:
        from benchmarks.accuracy.peers.anomalib_methods import AnomalibPatchCore, patchcore_module

        method = AnomalibPatchCore(
            resolution=RESOLUTION, coreset=1.0 if name.endswith("-all") else 0.1
        )
        patchcore_module(method)
    return lambda support: method.fit(support, 0).score


def fit_in_pytorch(method: Any, support: Sequence[Image]) -> Score:
    """A detector of ours, not on the engine it takes by itself."""
    from metaformer.export.backends import with_engine

    fitted = method.fit(support, 0)
    fitted.detector = with_engine(fitted.detector, "torch")
    score: Score = fitted.score
    return score


def efficientad(support: Sequence[Image]) -> Score:
    """EfficientAD-S with random weights: good for its time and for nothing else.

    Its teacher and the photos it is trained beside cannot be had offline.
    """
    import torch

    from benchmarks.accuracy.baselines.imaging import to_image_size

    module = efficientad_module()
    transform = module.pre_processor.transform

    @torch.no_grad()
    def score(images: Sequence[Image]) -> object:
        tensors = [torch.from_numpy(image).permute(2, 0, 1).float() / 255 for image in images]
        output = module.model(torch.stack([transform(tensor) for tensor in tensors]))
        maps = output.anomaly_map[:, 0].numpy()
        return [to_image_size(a, image) for image, a in zip(images, maps, strict=True)]

    return score


def efficientad_module() -> Any:
    from anomalib.models.image.efficient_ad.lightning_model import EfficientAd

    return EfficientAd(
        model_size="small",
        pre_processor=EfficientAd.configure_pre_processor(image_size=(RESOLUTION, RESOLUTION)),
        evaluator=False,
        visualizer=False,
        post_processor=False,
    ).eval()


# --------------------------------------------------------------------------------------- exported


def prepare(support: Sequence[Image], folder: Path) -> dict[str, str]:
    """Adapt and export what is scored from files; returns what could not be, and why."""
    failures = {}
    for name, export in EXPORTS.items():
        try:
            export(support, folder)
        except Exception as error:  # a failed export is a result
            failures[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return failures


def exported_from(name: str) -> str:
    """The exported model that a subject runs."""
    return name.rsplit("-", 1)[0]


def export_metaformer(support: Sequence[Image], folder: Path) -> None:
    from metaformer import Metaformer
    from metaformer.export.exporter import export_detector

    detector = Metaformer.from_pretrained("feature", resolution=RESOLUTION).adapt(support)
    export_detector(detector, folder / "metaformer.onnx")  # OpenVINO reads it too


def export_patchcore(support: Sequence[Image], folder: Path) -> None:
    from benchmarks.accuracy.peers.anomalib_methods import AnomalibPatchCore

    module = AnomalibPatchCore(resolution=RESOLUTION).fit(support, 0).module
    export_anomalib(module, folder / "anomalib-patchcore")


def export_efficientad(support: Sequence[Image], folder: Path) -> None:
    export_anomalib(efficientad_module(), folder / "anomalib-efficientad")


def export_anomalib(module: Any, folder: Path) -> None:
    """By anomalib's own ``to_onnx``, at fixed batches: its default asks for a free batch and gives
    a model that takes two images and no other number. OpenVINO reads the same file, which is what
    anomalib's ``to_openvino`` converts."""
    side = (RESOLUTION, RESOLUTION)
    for batch in (1, BATCH):
        shapes = {"dynamic_shapes": ({0: batch},)} if batch > 1 else {"dynamic_axes": None}
        module.to_onnx(folder / str(batch), input_size=side, opset_version=18, **shapes)


EXPORTS: dict[str, Callable[[Sequence[Image], Path], None]] = {
    "metaformer": export_metaformer,
    "anomalib-patchcore": export_patchcore,
    "anomalib-efficientad": export_efficientad,
}


def load_exported(name: str, folder: Path, threads: int) -> Score:
    """The model behind a function of images, both runtimes told to compute in float32."""
    from metaformer.detection.engines.sessions import RunModel, Runtime, compile_model

    runtime: Runtime = "openvino" if name.endswith("openvino") else "onnxruntime"
    if name.startswith("metaformer"):
        # One model for each shape, as the rival's are made for one.
        by_shape: dict[tuple[int, ...], RunModel] = {}

        def score_batch(images: Sequence[Image]) -> object:
            batch = np.stack(images)
            if batch.shape not in by_shape:
                by_shape[batch.shape] = compile_model(
                    folder / "metaformer.onnx", runtime, threads=threads, shape=batch.shape
                )
            return by_shape[batch.shape](batch)

        return score_batch
    own = folder / exported_from(name)
    files = {n: own / str(n) / "weights" / "onnx" / "model.onnx" for n in (1, BATCH)}
    models = {n: compile_model(file, runtime, threads=threads) for n, file in files.items()}

    def score(images: Sequence[Image]) -> object:
        from metaformer.io.images import resize_image, resize_map

        squares = [resize_image(image, (RESOLUTION, RESOLUTION)) for image in images]
        batch = np.stack(squares).transpose(0, 3, 1, 2).astype(np.float32) / 255
        maps = models[len(images)](np.ascontiguousarray(batch))["anomaly_map"]
        return [
            resize_map(a[0], (image.shape[0], image.shape[1]))
            for image, a in zip(images, maps, strict=True)
        ]

    return score
