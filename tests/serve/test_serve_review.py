"""What comes after scoring: marks, more good photos, another rate, the report, ``/docs``."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re

import cv2
import numpy as np
import pytest

from metaformer.data.datasets.truth import LabelTable
from metaformer.detection.detector import Detector
from metaformer.serve.jobs import doubts
from tests.helpers import boards, service


@pytest.fixture(scope="module")
def http(tmp_path_factory):
    with service.client(tmp_path_factory.mktemp("store")) as client:
        yield client


@pytest.fixture(scope="module")
def made(http) -> dict:
    return service.adapt(http, 3)


def score(http, made: dict, *contents: bytes, **query: str) -> list[dict]:
    answer = http.post(
        f"/api/detectors/{made['id']}/predict", files=service.images(*contents), params=query
    )
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"]


def extend(http, made: dict, *contents: bytes) -> dict:
    address = f"/api/detectors/{made['id']}/extend"
    answer = http.post(address, files=service.images(*contents))
    assert answer.status_code == 202, answer.text
    return service.wait_for(http, answer.json()["job"])


# More good photos


def test_good_photos_are_added_to_what_a_detector_knows(http, tmp_path):
    made = service.adapt(http, 3)
    photo = service.png(boards.good(70, "77000005"))  # another place: unlike the three
    before = score(http, made, photo)[0]
    job = extend(http, made, photo)
    assert (job["state"], job["kind"]) == ("done", "extend")
    assert job["detector"]["id"] == made["id"] and job["detector"]["name"] == "board"
    assert job["detector"]["support_count"] == 4
    after = score(http, made, photo)[0]
    assert before["is_anomalous"] and not after["is_anomalous"]
    info = http.get(f"/api/detectors/{made['id']}").json()["info"]
    assert [support["name"] for support in info["support"]] == ["0.png", "1.png", "2.png", "0.png"]
    path = tmp_path / "d.metaformer"
    path.write_bytes(http.get(f"/api/detectors/{made['id']}/file").content)
    expected = boards.detector(3).extended_with([boards.good(70, "77000005")])
    assert Detector.load(path).calibration == expected.calibration


def test_photos_that_are_known_already_change_nothing(http, made):
    job = extend(http, made, service.png(boards.good(0)))
    assert job["state"] == "failed" and "nothing to add" in job["error"]
    assert http.get(f"/api/detectors/{made['id']}").json()["support_count"] == 3


def test_copies_among_added_photos_are_left_out_and_named(http):
    made = service.adapt(http, 3)
    photo = service.png(boards.good(70, "77000005"))
    job = extend(http, made, service.png(boards.good(1)), photo, photo)
    assert (job["state"], job["detector"]["support_count"]) == ("done", 4)
    assert "0.png (a copy of 1.png), 2.png (a copy of 1.png)" in job["warnings"][0]
    info = http.get(f"/api/detectors/{made['id']}").json()["info"]
    assert [support["name"] for support in info["support"]] == ["0.png", "1.png", "2.png", "1.png"]


def test_a_job_repeats_the_promise_as_the_list_of_detectors_has_it():
    detector = boards.detector(3)
    detector.provenance["additions"] = [{"calibration": "estimated"}]
    assert doubts(detector)[-1] == detector.guarantee != detector.calibration.guarantee


def test_a_rate_changed_while_photos_are_added_is_kept(tmp_path):
    with service.client(tmp_path) as http:
        made = service.adapt(http, 3)
        address = f"/api/detectors/{made['id']}"
        job = http.post(f"{address}/extend", files=service.good(4, seed=30)).json()["job"]
        assert http.patch(address, json={"false_alarm_rate": 0.3}).status_code == 200
        done = service.wait_for(http, job)
        assert done["state"] == "done", done
        found = done["detector"]
        assert (found["support_count"], found["false_alarm_rate"]) == (7, 0.3)


def test_a_white_level_is_taken_where_the_detector_has_none(http):
    made = service.adapt(http, 3)  # of 8-bit images
    address = f"/api/detectors/{made['id']}"
    deep = service.images(cv2.imencode(".png", boards.good(71).astype(np.uint16) * 16)[1].tobytes())
    for level, added in (("4095", True), ("1023", False), ("", False)):
        job = http.post(f"{address}/extend", files=deep, data={"white_level": level}).json()["job"]
        found = service.wait_for(http, job)
        assert (found["state"] == "done") == added, found
        assert http.get(address).json()["info"]["white_level"] == 4095


def test_what_cannot_be_added_is_refused(http, made):
    address = f"/api/detectors/{made['id']}/extend"
    assert http.post(address, files=service.images(b"junk")).status_code == 422
    files = service.good(1)
    assert http.post(address, files=files, data={"name": "x"}).status_code == 422
    assert http.post(address, files=files, data={"white_level": "0"}).status_code == 422
    assert http.post(f"/api/detectors/{'0' * 32}/extend", files=files).status_code == 404


# Another rate


def test_a_moved_threshold_becomes_another_rate(http):
    made = service.adapt(http, 8)
    address = f"/api/detectors/{made['id']}"
    for cut in (0.4, 0.6, 0.7):
        shown = http.get(f"{address}/rate", params={"score": cut}).json()
        kept = http.patch(address, json={"score": cut})
        assert kept.status_code == 200, kept.text
        assert kept.json()["false_alarm_rate"] == shown["false_alarm_rate"]
        assert kept.json()["guarantee"] == shown["guarantee"]
        assert kept.json()["name"] == "board"
        http.patch(address, json={"false_alarm_rate": made["false_alarm_rate"]})


def test_the_rate_at_a_score_is_the_lowest_that_flags_it():
    calibration = boards.detector(3).calibration
    for cut in (0.3, 0.45, 0.5, 0.6, 0.8):
        rate = calibration.rate_at(cut)
        threshold = calibration.with_false_alarm_rate(rate).threshold
        if rate < 0.99:
            assert threshold <= calibration.raw(cut) * (1 + 1e-9)
        if 1e-6 < rate < 0.99:
            assert calibration.with_false_alarm_rate(rate * 0.999).threshold >= threshold
            assert calibration.score(threshold) == pytest.approx(cut, abs=1e-6) or rate > 0.2
    assert calibration.rate_at(0.5) <= calibration.false_alarm_rate
    for score_ in (0.1, 0.25, 0.5, 0.9):
        assert calibration.score(calibration.raw(score_)) == pytest.approx(score_)
    with pytest.raises(ValueError, match=r"\(0, 1\)"):
        calibration.raw(1.0)


@pytest.mark.parametrize("body", [{}, {"score": 0.5, "false_alarm_rate": 0.1}, {"score": 1}, []])
def test_odd_rates_are_refused(http, made, body):
    assert http.patch(f"/api/detectors/{made['id']}", json=body).status_code == 422


# Marks


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_marks_are_kept_on_disk_and_found_by_the_photo(tmp_path):
    photo = service.png(boards.defective(1))
    with service.client(tmp_path) as http:
        made = service.adapt(http, 2)
        (found,) = score(http, made, photo)
        assert found["sha256"] == digest(photo)
        marks = f"/api/detectors/{made['id']}/marks"
        mark = {"name": "line 3/a.png", "verdict": "good", "note": "dust", "score": 0.7}
        answer = http.put(f"{marks}/{found['sha256']}", json=mark)
        assert answer.status_code == 200
        assert {**mark, "sha256": digest(photo)}.items() <= answer.json().items()
    with service.client(tmp_path) as http:
        (kept,) = http.get(marks).json()["marks"]
        assert kept == answer.json()
        http.put(f"{marks}/{kept['sha256']}", json={**mark, "verdict": "defective"})
        (kept,) = http.get(marks).json()["marks"]
        assert kept["verdict"] == "defective"
        assert http.delete(f"{marks}/{kept['sha256']}").status_code == 204
        assert http.delete(f"{marks}/{kept['sha256']}").status_code == 404
        assert http.get(marks).json() == {"marks": []}


def test_exported_marks_are_labels_for_predict(http, tmp_path):
    made = service.adapt(http, 2)
    marks = f"/api/detectors/{made['id']}/marks"
    rows = {"a.png": "good", "lot 1/b.png": "defective", '=cmd|" /C calc"!A1': "good"}
    for name, verdict in rows.items():
        body = {"name": name, "verdict": verdict, "note": "a, b\nc", "score": 0.25}
        assert http.put(f"{marks}/{digest(name.encode())}", json=body).status_code == 200
    answer = http.get(f"{marks}.csv")
    assert answer.headers["content-type"].startswith("text/csv")
    found = {row["file"]: row for row in csv.DictReader(io.StringIO(answer.text))}
    assert {row["label"] for row in found.values()} == {"good", "defective"}
    assert found["a.png"]["note"] == "a, b\nc" and found["a.png"]["score"] == "0.250000"
    assert '\'=cmd|" /C calc"!A1' in found  # a spreadsheet shows it and runs nothing
    path = tmp_path / "marks.csv"
    path.write_bytes(answer.content)
    table = LabelTable(path)
    a, b = table("/x/a.png"), table("lot 1/b.png")
    assert a and b and (a.is_anomalous, b.is_anomalous) == (False, True)


def test_marks_go_with_their_detector_and_a_damaged_file_is_named(tmp_path):
    with service.client(tmp_path) as http:
        made = service.adapt(http, 2)
        marks = f"/api/detectors/{made['id']}/marks"
        body = {"name": "a.png", "verdict": "good"}
        http.put(f"{marks}/{'0' * 64}", json=body)
        (path,) = tmp_path.glob("*.marks.json")
        path.write_text(path.read_text()[:-9])
        answer = http.get(marks)
        assert answer.status_code == 409 and path.name in answer.json()["detail"]
        assert http.put(f"{marks}/{'1' * 64}", json=body).status_code == 409
        http.delete(f"/api/detectors/{made['id']}")
        assert not path.exists()
        assert http.get(marks).status_code == 404


@pytest.mark.parametrize(
    ("digest", "body", "status"),
    [
        ("0" * 63, {"name": "a", "verdict": "good"}, 422),
        ("0" * 64, {"name": "a", "verdict": "maybe"}, 422),
        ("0" * 64, {"name": "a", "verdict": "good", "note": "x" * 2001}, 422),
        ("0" * 64, {"name": "a", "verdict": "good", "note": "x" * 70_000}, 413),
    ],
)
def test_odd_marks_are_refused(http, made, digest, body, status):
    answer = http.put(f"/api/detectors/{made['id']}/marks/{digest}", json=body)
    assert answer.status_code == status


def test_a_mark_must_be_json(http, made):
    address = f"/api/detectors/{made['id']}/marks/{'0' * 64}"
    assert http.put(address, data={"verdict": "good"}).status_code == 415


# The report


def test_the_report_is_that_of_the_command_line(http, made):
    contents = [service.png(boards.defective(1)), service.png(boards.good(50))]
    entries = []
    for found in score(http, made, *contents, map="report"):
        entry = {name: found[name] for name in ("name", "score", "p_value", "is_anomalous")}
        entry |= {name: found[name] for name in ("width", "height", "regions", "picture")}
        entries.append({**entry, "truth": "defective", "kind": "scratch"})
    hostile = "<script>alert(1)</script>.png"
    entries.append({**entries[0], "name": hostile, "picture": None, "truth": None})
    body = {"entries": entries, "failures": [{"name": "c.png", "reason": "damaged"}]}
    answer = http.post(f"/api/detectors/{made['id']}/report", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/html")
    assert "sandbox" in answer.headers["content-security-policy"]
    page = answer.text
    assert "<h1>Inspection report: board</h1>" in page and hostile not in page
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert sorted(data["names"]) == sorted(["0.png", "1.png", hostile])
    assert data["truths"].count(True) == 2 and len(data["goods"]) >= 1
    assert "c.png" in page and "damaged" in page
    assert page.count('<article class="card"') == 2


def test_a_report_of_other_pictures_is_refused(http, made):
    (found,) = score(http, made, service.png(boards.good(50)), map="report")
    names = ("name", "score", "p_value", "is_anomalous", "width", "height")
    entry = {name: found[name] for name in names}
    address = f"/api/detectors/{made['id']}/report"
    for photo in (
        "https://example.org/x.jpg",
        "data:text/html;base64,AAAA",
        "data:image/jpeg;base64,é",
    ):
        body = {"entries": [{**entry, "picture": {**found["picture"], "photo": photo}}]}
        answer = http.post(address, json=body)
        assert answer.status_code == 422 and "data:image/jpeg" in answer.json()["detail"]
    assert http.post(address, json={"entries": []}).status_code == 422
    assert http.post(address, json={"entries": [{**entry, "score": 2}]}).status_code == 422


# The documentation


def test_the_addresses_can_be_read_offline(http):
    page = http.get("/docs")
    assert page.status_code == 200 and "http" not in page.text.replace("http-equiv", "")
    for address in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert http.get(f"/{address}").status_code == 200, address
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert http.get("/docs/redoc.standalone.js").status_code == 404


def test_everything_after_scoring_asks_for_the_token(tmp_path):
    with service.client(tmp_path, token="secret") as http:
        base = f"/api/detectors/{'0' * 32}"
        for method, address in (
            ("POST", f"{base}/extend"),
            ("GET", f"{base}/rate?score=0.5"),
            ("PATCH", base),
            ("GET", f"{base}/marks"),
            ("GET", f"{base}/marks.csv"),
            ("PUT", f"{base}/marks/{'0' * 64}"),
            ("DELETE", f"{base}/marks/{'0' * 64}"),
            ("POST", f"{base}/report"),
        ):
            assert http.request(method, address).status_code == 401, address
