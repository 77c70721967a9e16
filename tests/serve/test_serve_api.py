from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import warnings
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from metaformer.detection.detector import Detector
from metaformer.inference.batch import write_map
from metaformer.io import folders
from metaformer.io.images import ImageError, WhiteLevelWarning
from metaformer.serve.routes.static_files import FOLDER
from metaformer.serve.store import computed_by
from tests.helpers import boards, service, trees


@pytest.fixture(scope="module")
def http(tmp_path_factory):
    with service.client(tmp_path_factory.mktemp("store")) as client:
        yield client


@pytest.fixture(scope="module")
def made(http) -> dict:
    return service.adapt(http, 3)


@pytest.fixture(scope="module")
def detector(http, made, tmp_path_factory) -> Detector:
    """The same detector, by way of its file."""
    path = tmp_path_factory.mktemp("file") / "board.metaformer"
    path.write_bytes(http.get(f"/api/detectors/{made['id']}/file").content)
    return Detector.load(path)


def predict(http: TestClient, made: dict, files, **query) -> dict:
    answer = http.post(f"/api/detectors/{made['id']}/predict", files=files, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def picture(url: str) -> np.ndarray:
    kind, _, content = url.partition(",")
    assert kind in ("data:image/png;base64", "data:image/jpeg;base64")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


# Detectors


def test_a_detector_made_over_http_is_the_one_made_by_the_library(made, detector):
    same = boards.detector(3)
    assert detector.calibration == same.calibration
    assert made["threshold"] == same.calibration.threshold
    assert made["guarantee"] == same.calibration.guarantee
    assert made["name"] == "board" and made["preset"] == "feature"
    assert made["support_count"] == 3 and made["false_alarm_rate"] == 0.05
    for seed in range(3):
        image = boards.defective(seed)
        assert detector.predict(image).raw_score == same.predict(image).raw_score


def test_it_is_listed_shown_and_downloaded(http, made, detector):
    assert made in http.get("/api/detectors").json()["detectors"]
    shown = http.get(f"/api/detectors/{made['id']}").json()
    assert shown.pop("info") == json.loads(json.dumps(detector.info()))
    assert shown == made
    answer = http.get(f"/api/detectors/{made['id']}/file")
    assert len(answer.content) == made["bytes"] == int(answer.headers["content-length"])
    assert made["id"] in answer.headers["content-disposition"]


def test_the_names_of_its_images_are_kept_and_their_order(http, made):
    info = http.get(f"/api/detectors/{made['id']}").json()["info"]
    assert [support["name"] for support in info["support"]] == ["0.png", "1.png", "2.png"]


def test_a_deleted_detector_is_gone(http):
    id = service.adapt(http, 1)["id"]
    assert http.post(f"/api/detectors/{id}/predict", files=service.good(1)).status_code == 200
    assert http.delete(f"/api/detectors/{id}").status_code == 204
    assert http.get(f"/api/detectors/{id}").status_code == 404
    assert http.get(f"/api/detectors/{id}/file").status_code == 404
    assert http.post(f"/api/detectors/{id}/predict", files=service.good(1)).status_code == 404
    assert http.delete(f"/api/detectors/{id}").status_code == 404
    assert id not in http.get("/api/detectors").text


def test_a_stranger_among_the_good_images_is_named(http):
    files = [*service.good(6), ("images", ("C:\\fake\\odd.png", service.png(trees.picture(0))))]
    data = {"name": "board", "resolution": "96"}
    job = http.post("/api/detectors", data=data, files=files).json()["job"]
    job = service.wait_for(http, job)
    assert job["done"] == job["total"] > 7
    assert job["warnings"][0].startswith("odd.png looks unlike")
    assert "cannot guarantee" in job["warnings"][1]


def test_a_copy_among_the_good_images_is_left_out_and_named(http):
    """The others keep their names: the copy stands between them."""
    good = [service.png(boards.good(seed)) for seed in range(3)]
    again = service.encoded(Image.fromarray(boards.good(0)), "BMP")
    named = [("a.png", good[0]), ("again.bmp", again), ("b.png", good[1]), ("c.png", good[2])]
    data = {"name": "board", "resolution": "96"}
    files = [("images", (name, content)) for name, content in named]
    job = http.post("/api/detectors", data=data, files=files).json()["job"]
    job = service.wait_for(http, job)
    assert job["state"] == "done", job["error"]
    assert "already: again.bmp (a copy of a.png)." in job["warnings"][0]
    assert job["detector"]["support_count"] == 3
    info = http.get(f"/api/detectors/{job['detector']['id']}").json()["info"]
    assert [support["name"] for support in info["support"]] == ["a.png", "b.png", "c.png"]


def test_an_unreadable_support_image_is_named_at_once(http):
    files = [*service.good(2), ("images", ("bad.png", service.png(boards.good(1))[:500]))]
    answer = http.post("/api/detectors", data={"name": "board"}, files=files)
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("bad.png: damaged or cut short")


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({}, "name"),
        ({"name": "  "}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"name": "x", "false_alarm_rate": "0"}, "false_alarm_rate"),
        ({"name": "x", "false_alarm_rate": "nan"}, "false_alarm_rate"),
        ({"name": "x", "preset": "magic"}, "preset"),
        ({"name": "x", "resolution": "63"}, "resolution"),
        ({"name": "x", "resolution": "2000"}, "resolution"),
        ({"name": "x", "aligned": "perhaps"}, "aligned"),
        ({"name": "x", "white_level": "0"}, "white_level"),
        ({"name": "x", "white_level": "65536"}, "white_level"),
        ({"name": "x", "colour": "red"}, "colour"),
    ],
)
def test_wrong_fields_are_named(http, fields, word):
    answer = http.post("/api/detectors", data=fields, files=service.good(1))
    assert answer.status_code == 422
    assert word in answer.json()["detail"]


@pytest.mark.parametrize(("given", "taken"), [("4095", 4095), ("", 65535), (None, 65535)])
def test_the_white_level_is_the_one_given_or_guessed(http, given, taken):
    """Whose images are bright up to 65535; an empty text is a field left out."""
    wide = [cv2.imencode(".png", boards.good(i).astype(np.uint16) * 257)[1] for i in range(2)]
    fields = {} if given is None else {"white_level": given}
    made = service.adapt(http, files=service.images(*(png.tobytes() for png in wide)), **fields)
    assert http.get(f"/api/detectors/{made['id']}").json()["info"]["white_level"] == taken


# Scores


def test_scores_are_those_of_the_library_on_the_same_bytes(http, made, detector):
    rgb = Image.fromarray(boards.defective(5))
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = cv2.imencode(".png", boards.good(9).astype(np.uint16) * 257)[1].tobytes()
    contents = [
        service.encoded(rgb, "PNG"),
        service.encoded(rgb, "JPEG", quality=80),
        service.encoded(rgb.convert("CMYK"), "JPEG"),
        service.encoded(rgb.crop((0, 0, 96, 60)), "JPEG", exif=exif),  # lying on its side
        service.encoded(rgb, "BMP"),
        service.encoded(rgb, "TIFF", compression="tiff_lzw"),
        service.encoded(rgb, "WEBP"),
        service.encoded(rgb.convert("L"), "PNG"),
        wide,
    ]
    found = predict(http, made, service.images(*contents))
    assert found["threshold"] == 0.5
    for index, (content, entry) in enumerate(zip(contents, found["predictions"], strict=True)):
        expected = detector.predict(content)
        assert entry == {
            "index": index,
            "name": f"{index}.png",
            "score": expected.score,
            "raw_score": expected.raw_score,
            "p_value": expected.p_value,
            "is_anomalous": expected.is_anomalous,
            "width": expected.anomaly_map.shape[1],
            "height": expected.anomaly_map.shape[0],
            "regions": [
                {"box": [r.x, r.y, r.width, r.height], "area": r.area, "peak": r.peak}
                for r in expected.regions
            ],
            "map": None,
            "sha256": hashlib.sha256(content).hexdigest(),
            "p_value_kind": detector.calibration.p_value_kind,
            "picture": None,
            "warnings": [],
            "error": None,
        }
    assert (found["predictions"][3]["width"], found["predictions"][3]["height"]) == (60, 96)


def deep(factor: int) -> bytes:
    """A good photo as a camera of more than 8 bits gives it."""
    return cv2.imencode(".png", boards.good(9).astype(np.uint16) * factor)[1].tobytes()


def test_a_white_level_that_is_not_known_is_doubted_in_the_answer(http, made, detector):
    """The photo of 12 bits is nearly black; of 16 bits it is seen that white is 65535."""
    contents = [deep(16), deep(257), service.png(boards.good(9))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # standard error is no place for it
        entries = predict(http, made, service.images(*contents))["predictions"]
    doubts = ["65535 is taken" in " ".join(entry["warnings"]) for entry in entries]
    assert doubts == [True, False, False]
    with pytest.warns(WhiteLevelWarning):
        assert entries[0]["raw_score"] == detector.predict(contents[0]).raw_score
    known = service.adapt(http, files=service.images(deep(16)), white_level="4095")
    (entry,) = predict(http, known, service.images(deep(16)))["predictions"]
    assert entry["warnings"] == []


def test_the_map_is_the_file_that_predict_writes(http, made, detector, tmp_path):
    content = service.png(boards.defective(1, width=80))
    entry = predict(http, made, service.images(content), map="png")["predictions"][0]
    write_map(tmp_path / "map.png", detector.predict(content))
    assert np.array_equal(picture(entry["map"]), np.asarray(Image.open(tmp_path / "map.png")))


def test_an_overlay_shows_the_image_under_its_heat(http, made):
    plain = boards.defective(1)
    files = service.images(service.png(plain))
    entry = predict(http, made, files, map="overlay")["predictions"][0]
    shown = picture(entry["map"])
    assert shown.shape == plain.shape
    assert 5 < np.abs(shown.astype(int) - plain).mean() < 120


def test_the_overlay_of_a_large_image_is_made_smaller(http, made):
    large = cv2.resize(boards.defective(1), (2400, 1500))
    entry = predict(http, made, service.images(service.png(large)), map="overlay")["predictions"][0]
    height, width = picture(entry["map"]).shape[:2]
    assert (entry["width"], entry["height"]) == (2400, 1500)
    assert height * width <= 1200**2 * 1.01
    assert width / height == pytest.approx(1.6, rel=0.01)


def test_a_bad_file_does_not_stop_the_others(http, made):
    whole = service.png(boards.good(50))
    tiny = service.png(boards.good(50)[:1, :1])
    found = predict(http, made, service.images(b"", whole, whole[:900], tiny, b"hello"))
    reasons = [entry["error"] for entry in found["predictions"]]
    assert reasons[1] is None
    for reason, word in zip(
        [reasons[0], *reasons[2:]], ["empty", "damaged", "1 x 1", "found text"], strict=True
    ):
        assert word in reason
    assert [entry["index"] for entry in found["predictions"]] == [0, 1, 2, 3, 4]


def test_nothing_but_bad_files_is_an_error(http, made):
    answer = http.post(f"/api/detectors/{made['id']}/predict", files=service.images(b"", b"junk"))
    assert answer.status_code == 422
    assert "0.png: empty" in answer.json()["detail"]
    assert "1.png: not an image" in answer.json()["detail"]


def test_many_at_once_get_what_each_would_get_alone(http, made, detector):
    contents = [service.png(boards.defective(seed, width=64 + seed)) for seed in range(12)]
    alone = [detector.predict(content).raw_score for content in contents]

    def ask(index: int) -> float:
        found = predict(http, made, service.images(contents[index]))
        return found["predictions"][0]["raw_score"]

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, range(12))) == alone


def test_a_broken_onnxruntime_leaves_the_service_to_pytorch(monkeypatch):
    def broken(*_: object) -> None:
        raise OSError("a library is damaged")

    monkeypatch.setattr("metaformer.detection.engines.engine.make_engine", broken)
    detector = boards.detector()
    with pytest.warns(UserWarning, match="onnxruntime cannot be used: a library is damaged"):
        assert computed_by(detector, "auto").engine.name == "torch"


def test_another_engine_says_the_same_also_after_a_restart(tmp_path, made, http):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    files = service.images(*(service.png(boards.defective(i)) for i in range(3)))
    expected = [entry["score"] for entry in predict(http, made, files)["predictions"]]
    with service.client(tmp_path, engine="onnxruntime") as fast:
        same = service.adapt(fast, 3)
        found = [entry["score"] for entry in predict(fast, same, files)["predictions"]]
        assert fast.app.state.service.store.get(same["id"]).engine.name == "onnxruntime"
    assert found == pytest.approx(expected, abs=1e-5)
    with service.client(tmp_path, engine="onnxruntime") as again:
        found = [entry["score"] for entry in predict(again, same, files)["predictions"]]
        assert again.app.state.service.store.get(same["id"]).engine.name == "onnxruntime"
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_detector_of_each_kind_is_safe_in_many_threads():
    """The memory of one detector is read by all threads and written by none."""
    images = [boards.defective(seed) for seed in range(4)]
    for preset, options in (("feature", {"aligned": True}), ("pixel", {})):
        universal = boards.Metaformer.from_pretrained(preset, resolution=64, **options)
        found = universal.adapt([boards.good(seed) for seed in range(2)])
        alone = [found.predict(image).raw_score for image in images]
        with ThreadPoolExecutor(8) as pool:
            assert [p.raw_score for p in pool.map(found.predict, images)] == alone


def test_metrics_count_what_happened(http, made):
    def value(name: str) -> float:
        lines = http.get("/metrics").text.splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(name)), 0.0)

    series = (
        f'metaformer_images_total{{detector="{made["id"]}",outcome="unreadable",product="board"}}'
    )
    before = value(series)
    predict(http, made, service.images(service.png(boards.good(1)), b"junk"))
    assert value(series) == before + 1
    assert value("metaformer_detectors") == len(http.get("/api/detectors").json()["detectors"])
    assert value("process_resident_memory_bytes") > 1e6
    lines = [line for line in http.get("/metrics").text.splitlines() if made["id"] in line]
    assert all(line.startswith(("metaformer_images_", "metaformer_score_")) for line in lines)


def test_metrics_of_a_deleted_product_go_with_it(http):
    other = service.adapt(http, 2, name="lid")
    predict(http, other, service.images(service.png(boards.good(1))))
    assert 'product="lid"' in http.get("/metrics").text
    http.delete(f"/api/detectors/{other['id']}")
    assert 'product="lid"' not in http.get("/metrics").text


def test_the_document_has_every_error_of_every_route(http):
    document = http.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    upload = {"400", "403", "408", "409", "413", "415", "422", "429", "503"}
    operations = document["paths"]
    assert upload < set(operations["/api/detectors"]["post"]["responses"])
    assert upload | {"404"} < set(operations["/api/detectors/{id}/predict"]["post"]["responses"])
    error = {"$ref": "#/components/schemas/Error"}
    for path in operations.values():
        for operation in path.values():
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    assert answer["content"]["application/json"]["schema"] == error
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_fax_compression_is_refused(http, made):
    """Found by fuzzing: damaged, it shows what was in memory before."""
    content = service.encoded(
        Image.fromarray(boards.good(1)).convert("1"), "TIFF", compression="group4"
    )
    answer = http.post(f"/api/detectors/{made['id']}/predict", files=service.images(content))
    assert answer.status_code == 422
    assert "compressed as for fax" in answer.json()["detail"]


def test_bytes_are_refused_the_same_way_everywhere(http, made, detector):
    content = service.png(boards.good(3))[:-20]
    with pytest.raises(ImageError) as refused:
        detector.predict(content)
    answer = http.post(f"/api/detectors/{made['id']}/predict", files=service.images(content))
    assert refused.value.reason in answer.json()["detail"]


# The page


def test_folders_are_passed_over_by_the_page_as_by_the_command_line():
    script = (FOLDER / "folders.js").read_text(encoding="utf-8")
    (bins,) = re.findall(r"BINS = \{(.*?)\}", script, re.DOTALL)
    assert dict(re.findall(r'"(.*?)": "(.*?)"', bins)) == folders._BINS
    (outputs,) = re.findall(r"OUTPUTS = (\[.*?\])", script)
    assert tuple(json.loads(outputs)) == folders.OUTPUTS
    assert f'"{folders.RUN_FILE}"' in script
    masks = (FOLDER / "masks.js").read_text(encoding="utf-8")
    (names,) = re.findall(r"MASK_NAMES = (\[.*?\])", masks)
    assert set(json.loads(names)) == folders._TRUTH
