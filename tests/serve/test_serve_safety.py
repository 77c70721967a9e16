"""Limits, the token, strangers, and names that try to be paths."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import httpx
import pytest
from fastapi import HTTPException
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from metaformer.serve import jobs, scoring
from metaformer.serve.http.limits import Gate, Limits
from metaformer.serve.http.security import is_loopback
from metaformer.serve.http.uploads import shown
from metaformer.serve.routes import static_files
from tests.helpers import boards, service

SMALL = Limits(
    body_bytes=200_000, pixels=20_000, images=3, requests=2, seconds=30, upload_seconds=5, jobs=1
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def http(folder):
    with service.client(folder, limits=SMALL, token="secret") as client:
        client.headers["Authorization"] = "Bearer secret"
        yield client


@pytest.fixture(scope="module")
def made(http) -> dict:
    return service.adapt(http, 2)


# The token


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer wrong", "Bearer secret2", "Basic secret", "bearer é"]
)
def test_without_the_token_there_is_nothing(http, made, header):
    headers = {"Authorization": header.encode("latin-1")} if header is not None else {}
    stranger = TestClient(http.app)
    for method, path in [
        ("GET", "/api/detectors"),
        ("POST", "/api/detectors"),
        ("GET", f"/api/detectors/{made['id']}"),
        ("DELETE", f"/api/detectors/{made['id']}"),
        ("GET", f"/api/detectors/{made['id']}/file"),
        ("POST", f"/api/detectors/{made['id']}/predict"),
        ("GET", "/metrics"),
    ]:
        answer = stranger.request(method, path, headers=headers)
        assert answer.status_code == 401, (method, path)
        assert answer.headers["www-authenticate"] == "Bearer"
    assert stranger.get("/health").status_code == 200
    assert http.get(f"/api/detectors/{made['id']}").status_code == 200


def test_the_document_asks_for_the_token_only_where_there_is_one(http, tmp_path):
    assert "securitySchemes" in http.get("/openapi.json").json()["components"]
    with service.client(tmp_path) as client:
        assert "security" not in client.get("/openapi.json").text


# Strangers in the browser


def test_pages_of_other_sites_are_not_answered(http):
    def status(**headers: str) -> int:
        return http.get("/api/detectors", headers=headers).status_code

    assert status(origin="http://testserver") == 200
    assert status(origin="http://evil.example") == 403
    assert status(origin="null") == 403
    assert status(**{"sec-fetch-site": "same-origin"}) == 200
    assert status(**{"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}) == 403


def test_a_server_on_loopback_goes_by_its_own_names_only(tmp_path):
    with service.client(tmp_path, allowed_hosts=frozenset({"127.0.0.1", "::1"})) as client:
        for host, status in [
            ("127.0.0.1:8000", 200),
            ("[::1]:8000", 200),
            ("evil.example", 403),
            ("127.0.0.1.evil.example", 403),
            ("[", 403),
        ]:
            assert client.get("/health", headers={"host": host}).status_code == status, host


def test_answers_are_never_guessed_at_by_browsers(http):
    answer = http.get("/health")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.0.1"])
def test_loopback_is_known(host):
    assert is_loopback(host)
    assert not is_loopback("0.0.0.0") and not is_loopback("192.168.0.4")


# Names and paths


@pytest.mark.parametrize(
    "id",
    [
        *("..", "../x", "..%2f..%2fetc%2fpasswd", "%2e%2e", "%00", ".lock", "x" * 5000),
        *("a" * 31, "a" * 33, "A" * 32, "a" * 32 + "%0a"),
    ],
)
@pytest.mark.parametrize("end", ["", "/file"])
def test_an_id_is_never_a_path(http, folder, id, end):
    answer = http.get(f"/api/detectors/{id}{end}")
    assert answer.status_code in (404, 422)
    assert set(answer.json()) == {"detail"}
    assert http.delete(f"/api/detectors/{id}").status_code in (404, 405, 422)


@pytest.mark.parametrize(
    "path", ["/page/../app.py", "/page/..%2fapp.py", "/page/%2e%2e/app.py", "/app.py", "/page/"]
)
def test_the_page_gives_its_own_files_only(http, path):
    assert http.get(path).status_code == 404


def test_the_page_may_load_its_own_files_only(http, tmp_path, monkeypatch):
    monkeypatch.setattr(static_files, "FOLDER", tmp_path)
    (tmp_path / "index.html").write_text("<!doctype html>")
    (tmp_path / "page.js").write_text("'use strict'")
    (tmp_path / "notes.txt").write_text("not of the page")
    page = http.get("/", headers={"Authorization": ""})
    assert page.text == "<!doctype html>"
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["content-security-policy"] == (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    assert http.get("/page/page.js").headers["content-type"].startswith("text/javascript")
    assert http.get("/page.js").status_code == 200
    assert http.get("/page/notes.txt").status_code == 404


def test_names_of_files_make_no_files(http, made, folder):
    before = sorted(path.name for path in folder.iterdir())
    files = [("images", ("../../../etc/evil.png", service.png(boards.good(1))))]
    answer = http.post(f"/api/detectors/{made['id']}/predict", files=files)
    assert answer.json()["predictions"][0]["name"] == "evil.png"
    data = {"name": "../../evil", "resolution": "64"}
    answer = http.post("/api/detectors", data=data, files=files)
    job = service.wait_for(http, answer.json()["job"])
    assert job["detector"]["name"] == "../../evil"
    http.delete(f"/api/detectors/{job['detector']['id']}")
    assert sorted(path.name for path in folder.iterdir()) == before


@given(st.text(max_size=300))
@settings(deadline=None)
def test_what_is_shown_of_a_name_is_harmless(name):
    found = shown(name)
    found.encode()
    assert len(found) <= 200
    assert found.isprintable()
    assert "/" not in found and "\\" not in found


def test_character_sets_that_lie_are_a_client_error(http, made):
    for charset in ("idna", "utf-7", "unicode_escape", "utf-16", "zip", "nonsense"):
        edge = "x"
        body = (
            f"--{edge}\r\nContent-Disposition: form-data; "
            f'name="images"; filename="\\ud800\xff.png"\r\n\r\nhello\r\n--{edge}--\r\n'
        ).encode("latin-1")
        answer = http.post(
            f"/api/detectors/{made['id']}/predict",
            content=body,
            headers={"Content-Type": f"multipart/form-data; boundary={edge}; charset={charset}"},
        )
        assert answer.status_code in (400, 422), charset
        assert answer.json()["detail"]


# Limits


def test_a_body_too_large_is_refused_by_its_declared_length(http, made):
    answer = http.post(f"/api/detectors/{made['id']}/predict", files=service.images(bytes(200_001)))
    assert answer.status_code == 413
    assert "200,000 bytes" in answer.json()["detail"]


def test_bodies_too_long_or_too_slow_are_given_up_while_they_come_in(tmp_path):
    """Through a real socket, with no length declared."""
    start = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=x"}

    def large():
        yield start
        for _ in range(320):
            yield bytes(2**16)  # 20 megabytes in all

    def slow():
        yield start
        time.sleep(3)
        yield b"\r\n--x--\r\n"

    options = ("--max-body", "1", "--max-upload-seconds", "1.5")
    with (
        service.server(tmp_path, *options) as (address, _),
        httpx.Client(base_url=address, timeout=30, headers=kind) as client,
    ):
        assert client.post("/api/detectors", content=large()).status_code == 413
        assert client.post("/api/detectors", content=slow()).status_code == 408
        text = client.get("/metrics").text
        assert "metaformer_uploads 0.0" in text
        resident = next(line for line in text.splitlines() if line.startswith("process_resident"))
        assert float(resident.split()[-1]) < 1e9


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("application/json", b"{}", 415),
        ("", b"hello", 415),
        ("multipart/form-data", b"hello", 400),
        ("multipart/form-data; boundary=x", b"hello", 400),
        ("multipart/form-data; boundary=x", b"", 422),
        ("multipart/form-data; boundary=" + "x" * 500, b"hello", 400),
        ("multipart/form-data; boundary=x", b"--x\r\nno: name\r\n\r\n\r\n--x--\r\n", 400),
    ],
)
def test_bodies_of_other_kinds_are_refused(http, made, kind, body, status):
    answer = http.post(
        f"/api/detectors/{made['id']}/predict", content=body, headers={"Content-Type": kind}
    )
    assert answer.status_code == status, answer.text
    assert isinstance(answer.json()["detail"], str)


def test_too_many_or_no_images_are_refused(http, made):
    address = f"/api/detectors/{made['id']}/predict"
    assert http.post(address, files=service.good(3)).status_code == 200
    assert http.post(address, files=service.good(4)).status_code == 422
    assert http.post(address, files=service.images(*[b"x"] * 40)).status_code == 422
    assert http.post(address, files={"pictures": b"x"}).status_code == 422
    assert http.post(address, data={"images": "x"}, files=service.good(1)).status_code == 422
    assert http.post(address, data={"map": "png"}, files=service.good(1)).status_code == 422


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(http, made):
    large = service.png(boards.np.zeros((1000, 1000, 3), boards.np.uint8))
    answer = http.post(f"/api/detectors/{made['id']}/predict", files=service.images(large))
    assert answer.status_code == 422
    assert "at most 20,000" in answer.json()["detail"]
    answer = http.post("/api/detectors", data={"name": "x"}, files=service.images(large))
    assert answer.status_code == 422


def test_the_gate_lets_in_so_many_and_no_more():
    gate = Gate(2)
    with gate.place(), gate.place():
        with pytest.raises(HTTPException) as refused, gate.place():
            pass
        assert refused.value.status_code == 429
        assert refused.value.headers == {"Retry-After": "2"}
    assert gate.inside == 0


def test_more_requests_than_places_are_told_to_come_again(http, made, monkeypatch):
    """Two requests hold both places; the third is turned away, and later let in."""
    release = threading.Event()
    slow = scoring.score_one

    def wait(*arguments):
        release.wait(20)
        return slow(*arguments)

    monkeypatch.setattr(scoring, "score_one", wait)
    address = f"/api/detectors/{made['id']}/predict"
    statuses: list[int] = []
    threads = [
        threading.Thread(
            target=lambda: statuses.append(http.post(address, files=service.good(1)).status_code)
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    try:
        places = http.app.state.service.gate
        ends = time.monotonic() + 10
        while places.inside < 2:
            assert time.monotonic() < ends
            time.sleep(0.01)
        answer = http.post(address, files=service.good(1))
        assert answer.status_code == 429
        assert int(answer.headers["Retry-After"]) > 0
        assert http.get("/health").status_code == 200
    finally:
        release.set()
        for thread in threads:
            thread.join()
    assert statuses == [200, 200]
    assert http.post(address, files=service.good(1)).status_code == 200


def test_a_request_that_takes_too_long_is_given_up(tmp_path, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(scoring, "score_one", lambda *arguments: release.wait(20))
    with service.client(tmp_path, limits=Limits(seconds=2)) as client:
        id = service.adapt(client, 1)["id"]
        try:
            answer = client.post(f"/api/detectors/{id}/predict", files=service.good(1))
        finally:
            release.set()
    assert answer.status_code == 503
    assert "within 2 seconds" in answer.json()["detail"]
    assert int(answer.headers["Retry-After"]) > 0


def test_more_adaptations_than_may_wait_are_refused(http, made, monkeypatch):
    release = threading.Event()
    slow = jobs.Metaformer.from_pretrained

    def wait(*arguments, **options):
        release.wait(20)
        return slow(*arguments, **options)

    monkeypatch.setattr(jobs.Metaformer, "from_pretrained", wait)
    data = {"name": "board", "resolution": "64"}
    taken = []
    try:
        for _ in range(2):  # one runs, one waits
            answer = http.post("/api/detectors", data=data, files=service.good(1))
            assert answer.status_code == 202
            taken.append(answer.json()["job"])
            while http.get(f"/api/jobs/{taken[0]['id']}").json()["state"] == "waiting":
                time.sleep(0.01)
        answer = http.post("/api/detectors", data=data, files=service.good(1))
        assert answer.status_code == 429
        assert int(answer.headers["Retry-After"]) > 0
    finally:
        release.set()
    for job in taken:
        done = service.wait_for(http, job)
        assert done["state"] == "done"
        http.delete(f"/api/detectors/{done['detector']['id']}")


def test_a_full_store_says_so(tmp_path):
    with service.client(tmp_path, limits=Limits(detectors=1)) as client:
        id = service.adapt(client, 1)["id"]
        answer = client.post("/api/detectors", data={"name": "x"}, files=service.good(1))
        assert answer.status_code == 409
        client.delete(f"/api/detectors/{id}")
        service.adapt(client, 1)


@pytest.mark.parametrize("field", ["body_bytes", "images", "seconds"])
def test_limits_are_above_zero(field):
    with pytest.raises(ValueError, match=field):
        Limits(**{field: 0})
