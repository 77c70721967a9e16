"""Exported models say what PyTorch says, or are not written."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow
from typer.testing import CliRunner

import metaformer
from metaformer import Detector, Metaformer
from metaformer.cli import app
from metaformer.detection.engines.engine import (
    Engine,
    EngineError,
    check_engine,
    make_engine,
    probe_image,
    torch_engine,
)
from metaformer.detection.engines.graph import UnsupportedExportError
from metaformer.detection.engines.sessions import PrecisionError, check_bf16, compile_model
from metaformer.detection.feature.config import FeatureConfig
from metaformer.detection.feature.preset import FeaturePreset
from metaformer.detection.pixel.preset import PixelPreset
from metaformer.export.backends import pays_off, with_engine
from metaformer.export.exporter import export_detector
from metaformer.export.onnx.detector import full_model
from metaformer.export.verification import (
    Comparison,
    Differences,
    ExportRefusedError,
    compare,
    measure,
    order_kept,
    refuse_if_poor,
    refuse_if_wrong,
    with_defects,
)
from metaformer.io.atomic_files import write_bytes
from metaformer.io.extras import MissingExtraError, need
from metaformer.io.images import list_images, read_image, resize_image
from metaformer.io.sources.shards import Sources
from metaformer.networks.efficientnet import load_backbone

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

ROOT = Path(__file__).parents[2]
BOARDS = Path(metaformer.__file__).parent / "data" / "demo_images" / "circuit_board"
Image = NDArray[np.uint8]
KINDS = ("feature", "aligned", "pixel", "pixel aligned")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Engines use as many threads as PyTorch."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def boards() -> list[Image]:
    return [resize_image(read_image(p), (200, 240)) for p in list_images(BOARDS / "test")[:4]]


@pytest.fixture(scope="module")
def detectors(boards: list[Image]) -> dict[str, Detector]:
    """At 96 pixels, made from three boards."""
    made = {}
    for kind in KINDS:
        preset, *options = kind.split()
        aligned = kind == "aligned" or "aligned" in options
        universal = Metaformer.from_pretrained(
            "pixel" if preset == "pixel" else "feature", resolution=96, aligned=aligned
        )
        if isinstance(universal.model, PixelPreset) and not aligned:
            # With the transformer, as in the long mode; its correction differs from zero, whatever
            # weights are shipped.
            universal.model = universal.model.with_config(transformer=True)
            assert universal.model.network is not None
            torch.manual_seed(0)
            torch.nn.init.normal_(universal.model.network.out.weight, std=0.3)
        made[kind] = universal.adapt(boards[: 2 if preset == "pixel" else 3])
    return made


@pytest.fixture(scope="module")
def models(detectors: dict[str, Detector]) -> dict[str, bytes]:
    return {kind: full_model(detectors[kind]).SerializeToString() for kind in KINDS}


SIZES = [
    (200, 240),  # averaged by area
    (193, 271),  # the same, odd
    (192, 192),  # halved: OpenCV rounds otherwise there
    (60, 70),  # enlarged
    (94, 100),  # one side grows, the other shrinks
    (8, 300),  # beyond the longest aspect
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_any_size_and_batch_give_pytorchs_results(
    kind: str,
    runtime: Any,
    detectors: dict[str, Detector],
    models: dict[str, bytes],
    boards: list[Image],
) -> None:
    detector = detectors[kind]
    run = compile_model(models[kind], runtime, threads=1)
    for size in SIZES[:: 3 if kind.startswith("pixel") else 1]:
        images = [resize_image(image, size) for image in boards[2:]]
        for comparison in compare(detector, run, images):
            assert comparison.score < 2e-4, size
            assert comparison.map.max() < 2e-3, size
            # One of the images is of the support: near zero, where a root magnifies rounding.
            least = 0.01 * detector.calibration.threshold
            raw = float(comparison.found["raw_score"])
            assert raw == pytest.approx(comparison.expected.raw_score, rel=2e-3, abs=least)
            assert comparison.found["anomaly_map"].shape == size
            assert not comparison.verdict_differs


def test_onnxruntime_has_nothing_to_warn_of(
    models: dict[str, bytes], boards: list[Image], capfd: pytest.CaptureFixture[str]
) -> None:
    # It takes sides with one name for equal, and warned at every image when they were not.
    onnxruntime = need("onnxruntime")
    for kind in KINDS:
        session = onnxruntime.InferenceSession(models[kind])
        for size in SIZES[:2]:
            session.run(None, {"images": resize_image(boards[3], size)[None]})
    assert not capfd.readouterr().err


def test_a_threshold_is_met_exactly(detectors: dict[str, Detector], boards: list[Image]) -> None:
    """A raw score at the threshold is anomalous, one float below it is not."""
    detector = detectors["feature"]
    image = boards[3]
    run = compile_model(full_model(detector).SerializeToString(), "onnxruntime", threads=1)
    raw = float(run(image[None])["raw_score"][0])
    for threshold, verdict in ((raw, True), (float(np.nextafter(raw, np.inf)), False)):
        changed = Detector(
            detector.model,
            detector.adapted,
            replace(detector.calibration, threshold=threshold),
            detector.provenance,
        )
        run = compile_model(full_model(changed).SerializeToString(), "onnxruntime", threads=1)
        assert bool(run(image[None])["is_anomalous"][0]) is verdict


@pytest.mark.parametrize("kind", ["feature", "pixel"])
@pytest.mark.parametrize("rate", [1e-4, 1e-6])
def test_a_frame_without_the_product_is_flagged_at_every_rate(
    kind: str, rate: float, detectors: dict[str, Detector], boards: list[Image]
) -> None:
    strict = detectors[kind].with_false_alarm_rate(rate)
    run = compile_model(full_model(strict).SerializeToString(), "onnxruntime", threads=1)
    grey = np.full_like(boards[0], 128)
    assert bool(run(grey[None])["is_anomalous"][0])
    assert strict.predict(grey).is_anomalous


def test_an_onnx_file_tells_how_it_was_made(
    tmp_path: Path, detectors: dict[str, Detector], boards: list[Image]
) -> None:
    output = tmp_path / "board.onnx"
    done = export_detector(detectors["feature"], output, check=boards)
    assert done.files == (output,)
    stored = {p.key: p.value for p in need("onnx").load(output).metadata_props}
    metadata = json.loads(stored["metaformer"])
    calibration = detectors["feature"].calibration
    assert metadata["threshold"] == calibration.threshold
    assert metadata["guarantee"] == calibration.guarantee
    assert metadata["detector"]["preset"] == "feature"
    assert metadata["check"]["differences"]["images"] == len(boards) + 3
    assert metadata["check"]["differences"]["max_score"] < 1e-3


def test_openvino_files_give_the_same_after_being_written(
    tmp_path: Path, detectors: dict[str, Detector], boards: list[Image]
) -> None:
    done = export_detector(
        detectors["feature"], tmp_path / "board.xml", format="openvino", check=boards[:2]
    )
    assert [file.name for file in done.files] == ["board.xml", "board.bin"]
    refuse_if_wrong(
        compare(detectors["feature"], compile_model(done.files[0], "openvino", threads=1), boards)
    )
    assert "INFERENCE_PRECISION_HINT" in done.summary
    network = need("openvino").Core().read_model(done.files[0])
    assert json.loads(network.get_rt_info("metaformer").astype(str))["precision"] == "f32"


def test_a_model_that_differs_is_refused_and_nothing_written(
    tmp_path: Path,
    detectors: dict[str, Detector],
    boards: list[Image],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The exporter is given the model of another detector."""
    other = Metaformer.from_pretrained(resolution=96).adapt(boards[:1])
    monkeypatch.setattr("metaformer.export.exporter.full_model", lambda _: full_model(other))
    with pytest.raises(ExportRefusedError, match="differs from PyTorch"):
        export_detector(detectors["feature"], tmp_path / "board.onnx", check=boards)
    assert not list(tmp_path.iterdir())


def test_what_is_not_a_number_is_refused(
    detectors: dict[str, Detector], models: dict[str, bytes], boards: list[Image]
) -> None:
    run = compile_model(models["feature"], "onnxruntime", threads=1)

    def broken(images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        outputs = run(images)
        return {**outputs, "anomaly_map": outputs["anomaly_map"] * np.float32(np.nan)}

    with pytest.raises(ExportRefusedError):
        refuse_if_wrong(compare(detectors["feature"], broken, boards[:1]))


def test_int8_is_measured(
    tmp_path: Path, detectors: dict[str, Detector], boards: list[Image]
) -> None:
    """Written with its cost, or refused with it: never silently poor."""
    output = tmp_path / "board.onnx"
    try:
        done = export_detector(detectors["feature"], output, precision="int8", check=boards)
    except ExportRefusedError as refusal:
        assert "kept their order" in str(refusal)
        assert not output.exists()
        return
    assert done.differences.images == 2 * len(boards)
    run = compile_model(output, "onnxruntime", threads=1)
    again = measure(compare(detectors["feature"], run, with_defects(boards)))
    assert again.max_score == pytest.approx(done.differences.max_score, abs=1e-5)


def test_images_that_score_alike_have_no_order(
    detectors: dict[str, Detector], models: dict[str, bytes], boards: list[Image]
) -> None:
    """Scores that moved by less than float32 may move are no evidence against a model."""
    run = compile_model(models["feature"], "onnxruntime", threads=1)
    comparisons = [
        Comparison(c.expected, {**c.found, "score": np.float32(c.expected.score + moved)}, False)
        for c in compare(detectors["feature"], run, boards)
        for moved in (0.0009, -0.0009, 0.0)
    ]
    assert order_kept(comparisons) == pytest.approx(1)
    comparisons[0].found["score"] = np.float32(0.9)
    assert order_kept(comparisons) < 1


def test_bf16_is_not_measured_where_there_is_none() -> None:
    """OpenVINO would compute in float32 there, and no cost would be found."""
    check_bf16(["FP32", "BF16"])
    with pytest.raises(PrecisionError, match=r"FP32, INT8.*--precision f32"):
        check_bf16(["FP32", "INT8"])


@pytest.mark.parametrize(
    ("agreement", "score"), [(0.9, 0.0), (1.0, 0.2), (float("nan"), 0.0), (1.0, float("nan"))]
)
def test_poor_precision_is_refused(agreement: float, score: float) -> None:
    cost = Differences(8, score, 0.1, 0.01, 1, agreement)
    with pytest.raises(ExportRefusedError, match="int8 costs too much"):
        refuse_if_poor(cost, "int8")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"format": "tflite"}, "choose onnx or openvino"),
        ({"precision": "f16"}, "choose f32, bf16 or int8"),
        ({"precision": "bf16"}, "openvino"),
        ({"precision": "int8"}, "--check"),
        ({"format": "openvino"}, r"must end in \.xml"),
        ({"check": []}, "at least one"),
    ],
)
def test_impossible_requests_are_explained(
    options: dict[str, Any], said: str, tmp_path: Path, detectors: dict[str, Detector]
) -> None:
    with pytest.raises(ValueError, match=said):
        export_detector(detectors["feature"], tmp_path / "board.onnx", **options)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("kind", KINDS)
def test_engines_give_pytorchs_results(
    name: Any, kind: str, detectors: dict[str, Detector], boards: list[Image]
) -> None:
    detector = with_engine(detectors[kind], "torch")
    other = with_engine(detector, name)
    assert (detector.engine.name, other.engine.name) == ("torch", name)
    for board in boards[3:]:
        expected, found = detector.predict(board), other.predict(board)
        assert found.score == pytest.approx(expected.score, abs=1e-5)
        np.testing.assert_allclose(found.anomaly_map, expected.anomaly_map, atol=1e-5)
    images = torch.cat([probe_image(detector), probe_image(detector).flip(3)])
    np.testing.assert_allclose(
        other.engine(images), torch_engine(detector)(images), rtol=1e-4, atol=1e-5
    )
    assert other.with_false_alarm_rate(0.2).engine is other.engine


def test_an_engine_with_other_results_is_refused(detectors: dict[str, Detector]) -> None:
    detector = detectors["feature"]
    engine = make_engine(detector, "onnxruntime")
    check_engine(detector, engine)
    with pytest.raises(EngineError, match="--engine torch"):
        check_engine(detector, Engine("onnxruntime", lambda x: engine(x) * 1.1))
    spread = detector.calibration.spread

    def one_cell_off(images: torch.Tensor) -> torch.Tensor:
        """A low one, so that the score, which is of the highest, stays."""
        maps = engine(images).clone()
        maps.flatten()[maps.argmin()] += 0.02 * spread
        return maps

    with pytest.raises(EngineError, match="a map that is up to"):
        check_engine(detector, Engine("onnxruntime", one_cell_off))


def test_auto_is_onnxruntime_where_it_is_right(
    detectors: dict[str, Detector], monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = detectors["feature"]
    assert with_engine(detector, "auto").engine.name == "onnxruntime"
    right = make_engine(detector, "onnxruntime")

    def chosen(made: Any) -> str:
        monkeypatch.setattr("metaformer.detection.engines.engine.make_engine", made)
        return with_engine(detector, "auto").engine.name

    def wrong(_: Detector, name: Any) -> Engine:
        return Engine(name, lambda images: right(images) * 1.1)

    def broken(_: Detector, name: Any) -> Engine:
        raise OSError("a library is damaged")

    with pytest.warns(UserWarning, match="onnxruntime cannot be used: .*raw score"):
        assert chosen(wrong) == "torch"
    with pytest.warns(UserWarning, match="onnxruntime cannot be used: a library is damaged"):
        assert chosen(broken) == "torch"


def test_what_has_to_be_traced_stays_with_pytorch_for_few_or_large_images(
    tmp_path: Path, detectors: dict[str, Detector]
) -> None:
    traced = detectors["aligned"]
    few, many, large = (tmp_path / name for name in ("few", "many", "large"))
    encoded = list_images(BOARDS / "test")[0].read_bytes()
    for folder, count in ((few, 49), (many, 50)):
        folder.mkdir()
        for i in range(count):
            (folder / f"{i}.jpg").write_bytes(encoded)
    large.mkdir()
    Pillow.new("L", (5000, 5000)).save(large / "0.png")
    for i in range(60):
        (large / f"{i + 1}.png").hardlink_to(large / "0.png")

    def found(*names: Path) -> bool:
        return pays_off(traced, Sources(tuple(map(str, names))))

    assert not found(few)
    assert found(many)
    assert found(few, few / "0.jpg")
    assert not found(large)
    assert not found(few / "is not there.jpg")
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        archive.add(few / "0.jpg")
    assert found(tmp_path / "all.tar")


def test_without_onnx_pytorch_is_the_engine(
    detectors: dict[str, Detector], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"metaformer-ad\[export\]"):
        with_engine(detectors["feature"], "onnxruntime")
    with pytest.warns(UserWarning, match="onnxruntime cannot be used"):
        assert with_engine(detectors["feature"], "auto").engine.name == "torch"
    made = detectors["feature"]
    fresh = Detector(made.model, made.adapted, made.calibration, made.provenance)
    with pytest.warns(UserWarning, match="onnxruntime cannot be used"):
        assert fresh.engine.name == "torch"


class Unfit(torch.nn.Module):
    """The shipped backbone, with an operation that ONNX does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = load_backbone(deepest=16)
        self.channels = self.inner.channels

    def forward(self, images: torch.Tensor) -> dict[int, torch.Tensor]:
        found = self.inner(images)
        return {level: torch.special.bessel_j0(grid) for level, grid in found.items()}


def test_what_onnx_cannot_express_is_named_and_stays_in_pytorch(
    tmp_path: Path, boards: list[Image]
) -> None:
    model = FeaturePreset(FeatureConfig(resolution=64, transformer=False), Unfit())
    detector = Metaformer(model, "feature").adapt(boards[:2])
    with pytest.raises(UnsupportedExportError, match="bessel_j0"):
        export_detector(detector, tmp_path / "board.onnx")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UnsupportedExportError):
        with_engine(detector, "openvino")
    assert with_engine(detector, "auto").engine.name == "torch"


def test_from_the_command_line_to_the_edge(
    tmp_path: Path, detectors: dict[str, Detector], boards: list[Image]
) -> None:
    """Export by the command, score by the program that knows nothing of this package."""
    detector_file, model = tmp_path / "board.metaformer", tmp_path / "board.onnx"
    detectors["feature"].save(detector_file)
    done = CliRunner().invoke(app, ["export", str(detector_file), "-o", str(model)])
    assert done.exit_code == 0, done.output
    assert "scores differ by at most" in done.output
    image = list_images(BOARDS / "test")[0]
    command = [sys.executable, str(ROOT / "examples/edge/score.py"), str(model), str(image)]
    command += ["--maps", str(tmp_path / "maps")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    _, score, verdict = ran.stdout.splitlines()[-1].split(",")
    # Pillow and the package decode alike.
    expected = detectors["feature"].predict(image)
    assert float(score) == pytest.approx(expected.score, abs=1e-3)
    assert verdict == str(expected.is_anomalous).lower()
    levels = np.fromfile(tmp_path / "maps" / f"{image.name}.pgm", np.uint8)[-640 * 640 :]
    heat = levels.reshape(640, 640) / 255
    assert np.abs(heat - expected.anomaly_map).max() < 0.01

    # A frame needs neither Pillow nor any of this package's other dependencies.
    frame = tmp_path / "frame.npy"
    np.save(frame, read_image(image))
    alone = (
        "import runpy, sys\n"
        "sys.modules.update(dict.fromkeys(['PIL', 'torch', 'cv2', 'metaformer']))\n"
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    program = str(ROOT / "examples/edge/score.py")
    command = [sys.executable, "-c", alone, program, str(model), str(frame)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(ran.stdout.splitlines()[-1].split(",")[1]) == pytest.approx(float(score), abs=1e-3)


def test_the_edge_program_is_short() -> None:
    lines = (ROOT / "examples/edge/score.py").read_text(encoding="utf-8").splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 30


def test_predict_with_another_engine(tmp_path: Path, detectors: dict[str, Detector]) -> None:
    detector_file = tmp_path / "board.metaformer"
    detectors["feature"].save(detector_file)
    image = list_images(BOARDS / "test")[0]
    scores = []
    for engine in ("torch", "onnxruntime"):
        output = tmp_path / engine
        arguments = ["predict", str(detector_file), str(image), "-o", str(output), "--json"]
        done = CliRunner().invoke(app, [*arguments, "--engine", engine, "--no-maps"])
        assert done.exit_code == 0, done.output
        summary = json.loads(done.stdout)
        assert summary["engine"] == engine
        scores.append(summary["predictions"][0]["score"])
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_predict_chooses_an_engine_by_itself(
    tmp_path: Path, detectors: dict[str, Detector]
) -> None:
    """What it takes is told; none of the others' libraries is loaded where PyTorch is asked for."""
    detector_file = tmp_path / "board.metaformer"
    detectors["feature"].save(detector_file)
    folder = str(BOARDS / "test")
    program = (
        "import sys; from metaformer.cli import app\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        "assert not {'onnx', 'onnxruntime', 'openvino'} & set(sys.modules)\n"
    )
    arguments = ["predict", str(detector_file), folder, "--no-maps", "--no-report", "-o"]
    command = [sys.executable, "-c", program, *arguments, str(tmp_path / "torch")]
    command += ["--engine", "torch"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "engine: " not in done.stdout

    ran = CliRunner().invoke(app, [*arguments, str(tmp_path / "auto"), "--json"])
    assert ran.exit_code == 0, ran.output
    summary = json.loads(ran.stdout)
    assert summary["engine"] == "onnxruntime"
    tables = [(tmp_path / name / "scores.csv").read_text() for name in ("torch", "auto")]
    for expected, found in zip(*(table.splitlines()[1:] for table in tables), strict=True):
        assert float(found.split(",")[1]) == pytest.approx(float(expected.split(",")[1]), abs=1e-5)


def test_export_leaves_an_earlier_file_when_refused(
    tmp_path: Path, detectors: dict[str, Detector]
) -> None:
    detector_file, model = tmp_path / "board.metaformer", tmp_path / "board.onnx"
    detectors["feature"].save(detector_file)
    write_bytes(model, b"earlier")
    done = CliRunner().invoke(
        app, ["export", str(detector_file), "-o", str(model), "--precision", "int8"]
    )
    assert done.exit_code == 1
    assert "--check" in done.output
    assert model.read_bytes() == b"earlier"
