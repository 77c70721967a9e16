"""What is kept, and what is left after the worst."""

from __future__ import annotations

import signal
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from metaformer.cli import app
from metaformer.detection.detector import Detector
from metaformer.detection.detector_file import DetectorFileError
from metaformer.serve.store import DetectorStore, NoSuchDetectorError, StoreError, StoreFullError
from tests.helpers import boards, service


def store(folder: Path, most: int = 10, loaded: int = 2) -> DetectorStore:
    return DetectorStore(folder, most=most, loaded=loaded)


def test_detectors_are_there_again_after_a_restart(tmp_path):
    first = store(tmp_path)
    made = first.add(boards.detector(), "bracket, left — ß")
    first.close()
    second = store(tmp_path)
    assert second.summaries() == [made]
    image = boards.defective(1)
    assert (
        second.get(made.id).predict(image).raw_score == boards.detector().predict(image).raw_score
    )
    assert second.get(made.id).provenance["name"] == "bracket, left — ß"


def test_a_folder_has_one_server_at_a_time(tmp_path):
    first = store(tmp_path)
    with pytest.raises(StoreError, match="another server uses this folder"):
        store(tmp_path)
    first.close()
    store(tmp_path).close()


def test_half_written_files_are_swept_and_others_left_alone(tmp_path):
    first = store(tmp_path)
    kept = first.add(boards.detector(), "kept")
    folder = first.upload_folder()
    (folder / "0000").write_bytes(b"half")
    first.close()
    (tmp_path / f".incoming-{'a' * 32}.metaformer").write_bytes(b"half")
    (tmp_path / f"..incoming-{'a' * 32}.metaformer.x1.metaformer").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "mine.metaformer").write_text("not named by an id")
    (tmp_path / f"{'b' * 32}.metaformer").write_bytes(b"damaged")
    second = store(tmp_path)
    assert [d.id for d in second.summaries()] == [kept.id]
    assert {path.name for path in tmp_path.iterdir()} == {
        *(".lock", "notes.txt", "mine.metaformer", f"{'b' * 32}.metaformer"),
        f"{kept.id}.metaformer",
    }
    assert len(second.unreadable) == 1 and "b" * 32 in second.unreadable[0]


def test_memory_holds_so_many_detectors_and_no_more(tmp_path):
    held = store(tmp_path, loaded=2)
    ids = [held.add(boards.detector(), f"number {i}").id for i in range(3)]
    assert list(held._memory) == ids[1:]
    held.get(ids[1])
    held.get(ids[0])
    assert list(held._memory) == [ids[1], ids[0]]


def test_many_threads_load_a_detector_once(tmp_path, monkeypatch):
    first = store(tmp_path)
    id = first.add(boards.detector(), "x").id
    first.close()
    second = store(tmp_path)
    loads = []
    load = Detector.load
    monkeypatch.setattr(
        Detector, "load", classmethod(lambda cls, path: loads.append(path) or load(path))
    )
    found: list[Detector] = []
    threads = [threading.Thread(target=lambda: found.append(second.get(id))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1
    assert all(detector is found[0] for detector in found)


def test_what_is_not_there_is_said_to_be_missing(tmp_path):
    empty = store(tmp_path)
    for use in (empty.get, empty.delete, empty.summary, empty.open):
        for id in ("a" * 32, "../../etc/passwd", ""):
            with pytest.raises(NoSuchDetectorError):
                use(id)


def test_a_file_removed_by_hand_is_missing_and_a_damaged_one_named(tmp_path):
    held = store(tmp_path)
    first, second = (held.add(boards.detector(), "x").id for _ in range(2))
    held._memory.clear()
    (tmp_path / f"{first}.metaformer").unlink()
    (tmp_path / f"{second}.metaformer").write_bytes(b"damaged")
    with pytest.raises(NoSuchDetectorError):
        held.get(first)
    with pytest.raises(NoSuchDetectorError):
        held.open(first)
    with pytest.raises(DetectorFileError):
        held.get(second)
    held.delete(first)


def test_a_full_store_takes_no_more(tmp_path):
    held = store(tmp_path, most=1)
    held.add(boards.detector(), "x")
    with pytest.raises(StoreFullError, match="Delete one first"):
        held.add(boards.detector(), "y")


def test_a_detector_file_is_taken_in_once(tmp_path):
    boards.detector().save(tmp_path / "bracket.metaformer")
    held = store(tmp_path / "store")
    made = held.take_in(tmp_path / "bracket.metaformer")
    assert held.take_in(tmp_path / "bracket.metaformer") == made
    assert made.name == "bracket"
    assert len(held) == 1


# The process


def test_everything_answered_survives_kill_9(tmp_path):
    """Kill the server while it adapts: what was done stays, what was not leaves no trace."""
    with service.server(tmp_path) as (address, process), httpx.Client(timeout=30) as client:
        client.base_url = address
        made = service.adapt(client)
        scores = client.post(f"/api/detectors/{made['id']}/predict", files=service.good(2))
        data = {"name": "unfinished", "resolution": "512"}
        answer = client.post("/api/detectors", data=data, files=service.good(8))
        assert answer.status_code == 202
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert list(tmp_path.glob(".incoming-*"))  # killed in the middle indeed
    with service.server(tmp_path) as (address, process):
        with httpx.Client(base_url=address, timeout=30) as client:
            assert client.get("/api/detectors").json()["detectors"] == [made]
            again = client.post(f"/api/detectors/{made['id']}/predict", files=service.good(2))
            assert again.json() == scores.json()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert not list(tmp_path.glob(".incoming-*"))


def test_told_to_stop_it_finishes_what_is_at_work(tmp_path):
    """And before that: clients that hang up leave nothing behind."""
    boards.detector().save(tmp_path / "board.metaformer")
    arguments = (tmp_path / "store", str(tmp_path / "board.metaformer"))
    with service.server(*arguments) as (address, process), httpx.Client(timeout=30) as client:
        (made,) = client.get(f"{address}/api/detectors").json()["detectors"]
        assert made["name"] == "board"
        predict = f"{address}/api/detectors/{made['id']}/predict"
        for timeout in (0.001, 0.02, 0.05):
            with pytest.raises(httpx.TimeoutException):
                client.post(predict, files=service.good(40), timeout=timeout)
        wait_for_uploads(client, address, 0)
        assert 'status="500"' not in client.get(f"{address}/metrics").text

        statuses: list[int] = []
        asking = threading.Thread(
            target=lambda: statuses.append(
                httpx.post(predict, files=service.good(20), timeout=30).status_code
            )
        )
        asking.start()
        wait_for_uploads(client, address, 1)
        process.send_signal(signal.SIGTERM)
        asking.join()
        assert process.wait(20) == 0
        assert statuses == [200]


def test_changes_at_the_same_time_are_all_kept(tmp_path):
    kept = store(tmp_path)
    id = kept.add(boards.detector(), "board").id
    failures: list[Exception] = []

    def add_note(name: str) -> None:
        def noted(now: Detector) -> Detector:
            notes = [*now.provenance.get("notes", []), name]
            made = {**now.provenance, "notes": notes}
            return Detector(now.model, now.adapted, now.calibration, made, now.thumbnails)

        try:
            kept.change(id, noted)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=add_note, args=(name,)) for name in "abcdef"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert sorted(kept.get(id).provenance["notes"]) == list("abcdef")
    kept.close()
    assert sorted(store(tmp_path).get(id).provenance["notes"]) == list("abcdef")


def wait_for_uploads(client: httpx.Client, address: str, count: int) -> None:
    ends = time.monotonic() + 20
    while f"metaformer_uploads {count}.0" not in client.get(f"{address}/metrics").text:
        assert time.monotonic() < ends


# The command


def run(*arguments: object):
    return CliRunner().invoke(app, ["serve", *map(str, arguments)])


def test_a_port_in_use_is_said_to_be(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = run("--folder", tmp_path, "--port", taken.getsockname()[1])
    assert result.exit_code == 1
    assert "cannot be listened on" in result.output


def test_what_is_no_detector_is_not_served(tmp_path):
    (tmp_path / "photo.png").write_bytes(b"no detector")
    result = run(tmp_path / "photo.png", "--folder", tmp_path / "store", "--port", 0)
    assert result.exit_code == 1
    assert "not a readable detector file" in result.output
    store(tmp_path / "store").close()  # the folder is free again


@pytest.mark.parametrize("token", ["", " ", "naïve", "a\nb"])
def test_a_token_that_no_header_can_carry_is_refused(tmp_path, token):
    result = run("--folder", tmp_path, "--token", token)
    assert result.exit_code == 1
    assert "visible ASCII" in result.output


def test_listening_to_others_without_a_token_is_warned_of(tmp_path):
    with socket.create_server(("0.0.0.0", 0)) as taken:
        result = run("--folder", tmp_path, "--host", "0.0.0.0", "--port", taken.getsockname()[1])
    assert "warning: anybody who can reach 0.0.0.0 can use this server" in result.output
