from __future__ import annotations

import hashlib
import io
import json
import resource
import subprocess
import sys
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import metaformer
from metaformer.detection.detector import Detector
from metaformer.detection.detector_file import FORMAT_VERSION, DetectorFileError
from metaformer.detection.metaformer import Metaformer
from metaformer.detection.pixel.config import PixelConfig
from metaformer.detection.pixel.preset import PixelPreset
from metaformer.detection.scoring.prediction import Prediction
from metaformer.detection.support.support_set import OddSupportWarning
from metaformer.io.images import ImageError, WhiteLevelWarning
from tests.helpers import boards, trees


@pytest.fixture(scope="module")
def detector() -> Detector:
    return boards.detector()


@pytest.fixture
def saved(detector, tmp_path) -> Path:
    path = tmp_path / "board.metaformer"
    detector.save(path)
    return path


def assert_same(first: Prediction, second: Prediction) -> None:
    """Bit for bit, where the image came from aside."""
    assert first.raw_score == second.raw_score
    assert first.to_dict() | {"path": None} == second.to_dict() | {"path": None}
    assert np.array_equal(first.anomaly_map, second.anomaly_map)
    assert np.array_equal(first.mask, second.mask)


# Predictions


def test_real_defects_are_found_and_good_boards_are_not(detector):
    for seed in range(100, 105):
        assert not detector.predict(boards.good(seed)).is_anomalous
        bad = detector.predict(boards.defective(seed))
        assert bad.is_anomalous
        assert bad.p_value == pytest.approx(1 / 4)  # the least that three normal images can show


@pytest.mark.parametrize("board", list(boards.DEFECT_CENTRES))
def test_the_mask_covers_the_defect_and_not_the_rest(board):
    normal = [boards.good(seed, board, 224, 160) for seed in range(3)]
    detector = Metaformer.from_pretrained(resolution=192).adapt(normal)
    found = detector.predict(boards.defective(7, board, 224, 160))
    assert found.is_anomalous
    assert found.mask[112, 80]  # the middle of the cut
    assert found.mask.mean() < 0.65
    peak = found.regions[0]
    assert peak.x <= peak.peak_x < peak.x + peak.width
    assert peak.y <= peak.peak_y < peak.y + peak.height
    assert found.mask[peak.peak_y, peak.peak_x]
    assert peak.peak == found.anomaly_map[peak.peak_y, peak.peak_x] == found.anomaly_map.max()


@pytest.mark.parametrize("make", [boards.good, boards.defective])
def test_prediction_is_consistent(detector, make):
    found = detector.predict(make(3))
    assert found.is_anomalous == (found.score >= 0.5)
    assert found.is_anomalous == (found.raw_score >= detector.calibration.threshold)
    assert found.score == detector.calibration.score(found.raw_score)
    assert found.mask.dtype == np.bool_ and found.anomaly_map.dtype == np.float32
    assert np.array_equal(found.mask, (found.anomaly_map >= 0.5) & found.is_anomalous)
    assert sum(region.area for region in found.regions) == found.mask.sum()
    assert found.anomaly_map.min() > 0 and found.anomaly_map.max() < 1
    assert not found.is_anomalous or found.regions
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize("shape", [(64, 160), (160, 64), (97, 131), (8, 8), (9, 400), (300, 8)])
def test_map_and_mask_have_the_images_own_size(detector, shape):
    found = detector.predict(trees.picture(0, *shape))
    assert found.anomaly_map.shape == found.mask.shape == shape
    assert np.isfinite(found.anomaly_map).all()
    for region in found.regions:
        assert region.x + region.width <= shape[1] and region.y + region.height <= shape[0]


def test_a_score_does_not_depend_on_other_images(detector):
    images = [boards.defective(0), trees.picture(4, 200, 50), boards.good(1), boards.good(2)]
    alone = [boards.detector().predict(image) for image in images]
    together = list(detector.predict_many(images))
    backwards = list(detector.predict_many(images[::-1]))[::-1]
    for one, two, three in zip(alone, together, backwards, strict=True):
        assert_same(one, two)
        assert_same(one, three)


def test_predict_many_takes_one_image_at_a_time(detector):
    drawn: list[int] = []

    def endless():
        while True:
            drawn.append(len(drawn))
            yield boards.good(len(drawn))

    predictions = detector.predict_many(endless())
    next(predictions)
    next(predictions)
    assert len(drawn) == 2


def test_path_array_bytes_and_pillow_give_the_same_score(detector, tmp_path):
    pixels = boards.defective(2)
    path = boards.write_png(tmp_path / "x.png", pixels)
    expected = detector.predict(pixels)
    assert expected.path is None
    for source in (path, str(path)):
        found = detector.predict(source)
        assert_same(found, expected)
        assert found.path == str(path)
    for source in (path.read_bytes(), Image.open(path), Image.fromarray(pixels)):
        assert_same(detector.predict(source), expected)
    assert_same(detector.predict(pixels[:, ::-1][:, ::-1]), expected)  # a view with odd strides


def test_predicting_does_not_change_the_image(detector):
    pixels = boards.defective(2)
    copy = pixels.copy()
    pixels.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detector.predict(pixels)
    assert np.array_equal(pixels, copy)


def test_a_bad_image_is_refused_by_name(detector, tmp_path):
    bad = trees.write_truncated_png(tmp_path / "half.png")
    with pytest.raises(ImageError, match=r"half\.png"):
        detector.predict(bad)
    with pytest.raises(ImageError, match=r"nothing\.png.*no such file"):
        detector.predict(tmp_path / "nothing.png")


# Grey and 16 bits


def test_grey_images_score_as_their_colour_copies(detector):
    grey = np.ascontiguousarray(boards.defective(2)[:, :, 0])
    assert_same(detector.predict(grey), detector.predict(np.repeat(grey[:, :, None], 3, axis=2)))


def test_the_white_level_can_be_given_and_stays_unknown_otherwise(tmp_path):
    eight = [boards.good(seed) for seed in range(2)]
    plain = boards.universal().adapt(eight)
    assert plain.info()["white_level"] is None
    deep = boards.defective(9).astype(np.uint16) * 16  # a 12-bit camera
    with pytest.warns(WhiteLevelWarning):
        plain.predict(deep)
    plain.save(tmp_path / "plain.metaformer")
    assert Detector.load(tmp_path / "plain.metaformer").info()["white_level"] is None

    told = boards.universal().adapt(eight, white_level=4080)
    assert told.info()["white_level"] == 4080
    assert_same(told.predict(deep), told.predict(boards.defective(9)))
    more = plain.extended_with([boards.good(3).astype(np.uint16) * 16], white_level=4080)
    assert more.info()["white_level"] == 4080
    with pytest.raises(ValueError, match="the detector's is 4080"):
        told.extended_with([boards.good(3)], white_level=1023)
    with pytest.raises(ValueError, match="between 1 and 65535"):
        boards.universal().adapt(eight, white_level=0)


def test_a_16_bit_support_sets_the_white_level(tmp_path):
    """A 12-bit camera that stores 16-bit files: detectors of both depths agree."""
    eight, twelve = tmp_path / "eight", tmp_path / "twelve"
    for seed in range(3):
        grey = boards.good(seed)[:, :, 1]
        grey[0, 0] = 255
        boards.write_png(eight / f"{seed}.png", grey)
        boards.write_png(twelve / f"{seed}.png", np.rint(grey * (4095 / 255)).astype(np.uint16))
    plain = boards.universal().adapt(eight)
    deep = boards.universal().adapt(twelve)
    assert deep.provenance["white_level"] == 4095
    bad = boards.defective(9)[:, :, 1]
    expected = plain.predict(boards.write_png(tmp_path / "bad8.png", bad))
    found = deep.predict(
        boards.write_png(tmp_path / "bad12.png", np.rint(bad * (4095 / 255)).astype(np.uint16))
    )
    assert found.is_anomalous
    assert found.raw_score == pytest.approx(expected.raw_score, rel=0.02)
    assert deep.calibration.threshold == pytest.approx(plain.calibration.threshold, rel=0.05)


# The false-alarm rate


def test_another_rate_moves_the_threshold_and_nothing_else(detector):
    image = boards.defective(50)
    rates = [0.001, 0.01, 0.05, 0.2, 0.5]
    others = [detector.with_false_alarm_rate(rate) for rate in rates]
    thresholds = [other.calibration.threshold for other in others]
    assert thresholds == sorted(thresholds, reverse=True)
    assert len(set(thresholds)) == len(rates)
    # For images above the median; the score of the median itself stays 0.25.
    scores = [other.predict(image).score for other in others]
    assert scores == sorted(scores)
    assert {other.predict(image).raw_score for other in others} == {
        detector.predict(image).raw_score
    }
    assert detector.calibration.false_alarm_rate == 0.05
    again = others[0].with_false_alarm_rate(0.05)
    assert again.calibration == detector.calibration
    assert_same(again.predict(image), detector.predict(image))
    with pytest.raises(ValueError, match="strictly between"):
        detector.with_false_alarm_rate(1.0)


# Adapting from files


def test_folder_paths_and_arrays_make_the_same_detector(tmp_path):
    boards.write_good(tmp_path, 3)
    paths = sorted(tmp_path.iterdir())
    arrays = [boards.good(seed) for seed in range(3)]
    query = boards.defective(3)
    expected = boards.universal().adapt(arrays)
    for images in (tmp_path, str(tmp_path), paths, [p.read_bytes() for p in paths], iter(arrays)):
        found = boards.universal().adapt(images)
        assert found.calibration == expected.calibration
        assert_same(found.predict(query), expected.predict(query))


def test_adapting_leaves_the_universal_model_and_other_detectors_alone(detector):
    before = detector.predict(boards.good(60))
    boards.universal().adapt([boards.good(1, "00041005")])
    assert_same(detector.predict(boards.good(60)), before)


def test_an_odd_support_image_is_named(tmp_path):
    folder = boards.write_good(tmp_path / "good", 5)
    boards.write_png(folder / "strange.png", boards.good(0, "00041005"))
    with pytest.warns(OddSupportWarning, match=r"strange\.png \(\d") as caught:
        detector = boards.universal().adapt(folder)
    assert Path(caught[0].filename) == Path(__file__)  # points at the caller's line
    assert "000.png" not in str(caught[0].message)
    assert [s["is_odd"] for s in detector.provenance["support_scores"]] == [False] * 5 + [True]


def test_a_uniform_support_raises_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        boards.universal().adapt([boards.good(seed, "77000015") for seed in range(5)])


def test_a_folder_without_images_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match=r"empty.*no images"):
        boards.universal().adapt(tmp_path / "empty")
    with pytest.raises(ImageError, match="nowhere: no such file"):
        boards.universal().adapt(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="at least one"):
        boards.universal().adapt([])


def test_a_bad_support_image_is_named(tmp_path):
    folder = boards.write_good(tmp_path, 2)
    trees.write_text_named_png(folder / "notes.png")
    with pytest.raises(ImageError, match=r"notes\.png"):
        boards.universal().adapt(folder)


@pytest.mark.parametrize("resolution", [63, 0, -5, 4096])
def test_a_resolution_out_of_range_is_refused(resolution):
    with pytest.raises(ValueError, match=f"between 64 and 2048 pixels, got {resolution}"):
        Metaformer.from_pretrained(resolution=resolution)


def test_an_unknown_preset_is_refused():
    with pytest.raises(ValueError, match=r'no preset "sift": choose feature or pixel'):
        Metaformer.from_pretrained("sift")


# Provenance


def test_info_says_how_the_detector_was_made(tmp_path):
    folder = boards.write_good(tmp_path, 3)
    detector = boards.universal().adapt(folder, false_alarm_rate=0.1, seed=7)
    info = json.loads(json.dumps(detector.info(), allow_nan=False))
    assert info["preset"] == "feature"
    assert info["seed"] == 7
    assert info["settings"]["config"]["resolution"] == boards.RESOLUTION
    assert info["calibration"]["false_alarm_rate"] == 0.1
    assert info["guarantee"] == detector.calibration.guarantee
    assert info["versions"]["torch"] == torch.__version__
    assert info["versions"]["metaformer-ad"] == metaformer.__version__
    assert [image["name"] for image in info["support"]] == [f"{i:03d}.png" for i in range(3)]
    for i, image in enumerate(info["support"]):
        assert image["sha256"] == hashlib.sha256(boards.good(i).tobytes()).hexdigest()
        assert len(bytes.fromhex(image["signature"])) == 256  # grey levels of 16 x 16
    assert str(tmp_path) not in json.dumps(info)  # folders of this machine mean nothing elsewhere


def test_sources_without_a_name_are_numbered():
    buffer = io.BytesIO()
    Image.fromarray(boards.good(1)).save(buffer, "PNG")
    detector = boards.universal().adapt([boards.good(0), buffer.getvalue()])
    assert [image["name"] for image in detector.provenance["support"]] == ["image 0", "image 1"]


# Saving and loading


def test_loading_restores_everything_bit_for_bit(detector, saved):
    loaded = Detector.load(saved)
    assert loaded.info() == detector.info()
    for seed, shape in enumerate([(96, 96), (64, 200), (400, 300), (8, 64)]):
        image = trees.picture(seed, *shape)
        assert_same(loaded.predict(image), detector.predict(image))
    assert_same(Detector.load(str(saved)).predict(image), detector.predict(image))


def test_saving_a_loaded_detector_writes_the_same_file(saved, tmp_path):
    again = tmp_path / "again.metaformer"
    Detector.load(saved).save(again)
    assert again.read_bytes() == saved.read_bytes()


def test_a_detector_with_another_rate_is_saved_with_it(detector, tmp_path):
    detector.with_false_alarm_rate(0.3).save(tmp_path / "lenient")
    loaded = Detector.load(tmp_path / "lenient")
    assert loaded.calibration.false_alarm_rate == 0.3
    assert loaded.calibration == detector.calibration.with_false_alarm_rate(0.3)


def test_a_file_scores_the_same_in_another_process(detector, saved, tmp_path):
    image = boards.write_png(tmp_path / "x.png", boards.defective(4))
    script = (
        "import sys; from metaformer import Detector; "
        "print(repr(Detector.load(sys.argv[1]).predict(sys.argv[2]).raw_score))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, saved, image], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) == detector.predict(image).raw_score


def test_an_aligned_detector_is_saved_and_loaded_too(tmp_path):
    universal = Metaformer.from_pretrained(resolution=96, aligned=True)
    detector = universal.adapt([boards.good(seed) for seed in range(3)])
    detector.save(tmp_path / "a.metaformer")
    loaded = Detector.load(tmp_path / "a.metaformer")
    assert loaded.info() == detector.info()
    for image in (boards.defective(5), boards.defective(5, height=64, width=160)):
        assert_same(loaded.predict(image), detector.predict(image))
    assert detector.predict(boards.defective(5)).is_anomalous
    with pytest.raises(DetectorFileError, match=r"support\.1\.8 has shape"):
        changed = {"support.1.8": torch.zeros(10, 40)}
        Detector.load(rewrite(tmp_path / "a.metaformer", tensors=changed))


def test_aligned_comparison_is_not_for_the_long_mode():
    with pytest.raises(ValueError, match="fast mode"):
        Metaformer.from_pretrained("pixel", aligned=True, mode="long")


def test_the_pixel_preset_is_saved_and_loaded_too(tmp_path):
    model = PixelPreset.from_pretrained(PixelConfig(resolution=64))
    universal = Metaformer(model, "pixel")
    detector = universal.adapt([boards.good(0)])
    detector.save(tmp_path / "p.metaformer")
    loaded = Detector.load(tmp_path / "p.metaformer")
    image = boards.defective(5, height=70)
    assert loaded.info() == detector.info()
    assert_same(loaded.predict(image), detector.predict(image))
    assert detector.predict(image).anomaly_map.shape == (70, 96)


def test_the_file_is_small_and_holds_no_pickle(saved):
    assert saved.stat().st_size < 3_000_000  # of which the transformer 1 MB
    with safe_open(saved, "pt") as file:
        header = json.loads(file.metadata()["metaformer"])
    assert header["format"] == "metaformer-detector"
    assert header["format_version"] == FORMAT_VERSION


def rewrite(path: Path, *, header=None, tensors=None, text: str | None = None) -> Path:
    """Change parts of a detector file: ``None`` as a value removes the key."""
    with safe_open(path, "pt") as file:
        old = json.loads(file.metadata()["metaformer"])
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for target, changes in ((old, header or {}), (weights, tensors or {})):
        for key, value in changes.items():
            if value is None:
                del target[key]
            else:
                target[key] = value
    save_file(weights, path, metadata={"metaformer": json.dumps(old) if text is None else text})
    return path


def test_rewriting_nothing_changes_nothing(detector, saved):
    assert Detector.load(rewrite(saved)).info() == detector.info()


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 0, "two"])
def test_another_format_version_is_refused(saved, version):
    with pytest.raises(DetectorFileError, match=rf"board.*format {version}, .*reads 1"):
        Detector.load(rewrite(saved, header={"format_version": version}))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(saved, value):
    grid = torch.full((1, 40, 12, 12), value)
    with pytest.raises(DetectorFileError, match=r"board.*NaN or infinite values in support\.0\.8"):
        Detector.load(rewrite(saved, tensors={"support.0.8": grid}))


def test_another_safetensors_file_is_refused(tmp_path):
    save_file({"x": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(DetectorFileError, match=r"other\.safetensors.*not a detector"):
        Detector.load(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param({"header": {"format_version": None}}, id="no version"),
        pytest.param({"header": {"calibration": None}}, id="no calibration"),
        pytest.param({"header": {"calibration": {"threshold": 1.0}}}, id="half a calibration"),
        pytest.param({"header": {"settings": {}}}, id="no settings"),
        pytest.param({"header": {"settings": {"config": {"colour": "red"}}}}, id="other settings"),
        pytest.param({"header": {"made": {}}}, id="no preset"),
        pytest.param({"header": {"made": {"preset": "sift"}}}, id="unknown preset"),
        pytest.param({"tensors": {"support.1.8": None}}, id="a level missing"),
        pytest.param({"tensors": {"support.1.8": torch.zeros(1, 39, 12, 12)}}, id="other width"),
        pytest.param({"tensors": {"support.1.16": torch.zeros(112, 6, 6)}}, id="other dimensions"),
        pytest.param(
            {"tensors": {f"support.{i}.{level}": None for i in range(3) for level in (8, 16)}},
            id="no support",
        ),
        pytest.param({"text": "[]"}, id="a list"),
        pytest.param({"text": "{"}, id="half of the header"),
    ],
)
def test_a_damaged_header_or_a_missing_tensor_is_refused_by_name(saved, damage):
    with pytest.raises(DetectorFileError, match=r"board\.metaformer"):
        Detector.load(rewrite(saved, **damage))


@pytest.mark.parametrize("share", [0, 0.001, 0.1, 0.5, 0.999])
def test_a_truncated_file_is_refused(saved, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DetectorFileError, match=r"board\.metaformer.*cut short"):
        Detector.load(saved)


@pytest.mark.parametrize("content", [b"\x80\x04K\x01.", b"PK\x03\x04" + bytes(60), b"\xff" * 5000])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(DetectorFileError, match=r"model\.pt"):
        Detector.load(tmp_path / "model.pt")


def test_a_missing_file_is_named(tmp_path):
    for path in (tmp_path / "none.metaformer", tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no such detector file.*metaformer adapt"):
            Detector.load(path)


# Saves that fail


def test_saving_into_a_missing_folder_says_so(detector, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist"):
        detector.save(tmp_path / "nowhere" / "x.metaformer")
    assert list(tmp_path.iterdir()) == []


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(detector, saved):
    """A disk that fills up, by way of the limit on file sizes."""
    before = saved.read_bytes()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, old[1]))
    try:
        with pytest.raises(OSError, match=r"board\.metaformer"):
            detector.save(saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_saving_over_a_folder_fails_and_leaves_nothing(detector, tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        detector.save(tmp_path / "taken")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


# The top package


def test_the_package_offers_the_names_of_the_documentation():
    assert metaformer.Metaformer is Metaformer
    assert metaformer.Detector is Detector
    assert metaformer.OddSupportWarning is OddSupportWarning
    assert metaformer.ImageError is ImageError
    assert set(metaformer.__all__) <= set(dir(metaformer))
    for name in metaformer.__all__:
        assert getattr(metaformer, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Detektor'"):
        _ = metaformer.Detektor


def test_jpeg_by_path_and_by_bytes(detector, tmp_path):
    path = tmp_path / "x.jpg"
    cv2.imwrite(str(path), boards.defective(2))
    assert_same(detector.predict(path), detector.predict(path.read_bytes()))
