"""A watched folder: each image once, whatever happens to the program, the files or the network."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaformer.inference.folder_poller import FolderPoller
from metaformer.inference.scores.json_lines import JsonLines, Nowhere
from metaformer.inference.scores.rows import OutputFolderError
from metaformer.inference.watch import Watch
from metaformer.inference.webhook import Webhook
from tests.helpers import boards

POLL = 0.05


def watch(folder: Path, record, **options) -> Watch:
    options = {"poll": POLL, "grace": 0.3, "drift_rate": None, **options}
    return Watch(boards.detector(), folder, record, **options)


def once(folder: Path, file: Path, **options):
    return watch(folder, JsonLines(file), **options).run(threading.Event(), once=True)


@contextmanager
def watching(folder: Path, file: Path, **options):
    """A watch in another thread, stopped at the end."""
    stop, job = threading.Event(), watch(folder, JsonLines(file), **options)
    thread = threading.Thread(target=job.run, args=(stop,))
    thread.start()
    try:
        wait_for(lambda: file.exists() and entries(file), "the start")
        yield job
    finally:
        stop.set()
        thread.join(20)
    assert not thread.is_alive()


def wait_for(condition, what: str, seconds: float = 20):
    ends = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < ends, f"waited in vain for {what}"
        time.sleep(0.01)
    return found


def entries(file: Path, *events: str) -> list[dict]:
    lines = [json.loads(line) for line in file.read_bytes().split(b"\n")[:-1]]
    return [line for line in lines if not events or line["event"] in events]


def names(file: Path, event: str = "score") -> list[str]:
    return [entry["path"] for entry in entries(file, event)]


# What is scored


def test_each_image_is_scored_once_as_by_predict(tmp_path):
    folder, file = boards.write_mixed(tmp_path / "in", 4), tmp_path / "r.jsonl"
    (folder / ".hidden.png").write_bytes(b"x")
    (folder / "notes.txt").write_text("no image")
    result = once(folder, file)
    assert (result.scored, result.anomalous, result.interrupted) == (4, 2, False)
    assert names(file) == ["000.png", "001.png", "002.png", "003.png"]
    for entry in entries(file, "score"):
        expected = boards.detector().predict(folder / entry["path"]).to_dict()
        assert {**expected, "path": entry["path"]}.items() <= entry.items()
        assert entry["size"] == (folder / entry["path"]).stat().st_size
        assert entry["p_value_kind"] == "conformal"

    again = once(folder, file)
    assert (again.scored, again.known) == (0, 4)
    boards.write_png(folder / "001.png", boards.good(77))  # another image of that name
    assert once(folder, file).scored == 1
    assert names(file) == ["000.png", "001.png", "002.png", "003.png", "001.png"]


def test_what_folders_tell_of_the_truth_is_recorded(tmp_path):
    file = tmp_path / "r.jsonl"
    boards.write_good(tmp_path / "in" / "good", 1)
    boards.write_good(tmp_path / "in" / "defective", 1)
    boards.write_good(tmp_path / "in", 1)
    once(tmp_path / "in", file, recursive=True)
    found = {entry["path"]: entry.get("truth") for entry in entries(file, "score")}
    assert found == {"000.png": None, "good/000.png": "good", "defective/000.png": "defective"}


def test_sub_folders_if_asked(tmp_path):
    folder = boards.write_good(tmp_path / "in", 1)
    boards.write_good(folder / "line 3" / "monday", 1)
    boards.write_good(folder / ".thumbnails", 1)
    (folder / "back").symlink_to(folder)
    once(folder, tmp_path / "flat.jsonl")
    once(folder, tmp_path / "deep.jsonl", recursive=True)
    assert names(tmp_path / "flat.jsonl") == ["000.png"]
    assert sorted(names(tmp_path / "deep.jsonl")) == ["000.png", "line 3/monday/000.png"]


def test_odd_names_come_back_as_they_were(tmp_path):
    folder, file = tmp_path / "in", tmp_path / "r.jsonl"
    for name in ("ä ß\n\"'.png", "x\udce9.png"):
        boards.write_png(folder / name, boards.good(0))
    assert once(folder, file).scored == 2
    assert set(names(file)) == {"ä ß\n\"'.png", "x\udce9.png"}
    assert once(folder, file).scored == 0


def test_the_oldest_comes_first(tmp_path):
    folder, file = boards.write_good(tmp_path / "in", 3), tmp_path / "r.jsonl"
    for name, when in {"000.png": 300, "001.png": 100, "002.png": 200}.items():
        os.utime(folder / name, (when, when))
    once(folder, file)
    assert names(file) == ["001.png", "002.png", "000.png"]


# When it is scored


def test_a_file_that_grows_is_scored_when_it_is_whole(tmp_path):
    folder, file = tmp_path / "in", tmp_path / "r.jsonl"
    whole = boards.write_png(tmp_path / "whole.png", boards.good(5)).read_bytes()
    folder.mkdir()
    with watching(folder, file), (folder / "slow.png").open("wb", buffering=0) as target:
        for start in range(0, len(whole), len(whole) // 20):
            target.write(whole[start : start + len(whole) // 20])
            time.sleep(0.02)  # changes between looks
        wait_for(lambda: names(file), "a score")
    assert [e["event"] for e in entries(file)] == ["start", "score"]
    assert entries(file)[1]["size"] == len(whole)


def test_a_pause_within_the_time_of_grace_is_no_error(tmp_path):
    folder, file = tmp_path / "in", tmp_path / "r.jsonl"
    whole = boards.write_png(tmp_path / "whole.png", boards.good(5)).read_bytes()
    folder.mkdir()
    with watching(folder, file, grace=5.0), (folder / "slow.png").open("wb", buffering=0) as target:
        target.write(whole[:500])
        time.sleep(8 * POLL)  # some looks long, as it were settled
        target.write(whole[500:])
        wait_for(lambda: names(file), "a score")
    assert [e["event"] for e in entries(file)] == ["start", "score"]


def test_what_stays_unreadable_is_recorded_once_with_its_reason(tmp_path):
    folder, file = boards.write_good(tmp_path / "in", 2), tmp_path / "r.jsonl"
    whole = (folder / "001.png").read_bytes()
    (folder / "001.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").touch()
    result = once(folder, file)
    assert (result.scored, result.unreadable) == (1, 2)
    (first, _) = entries(file, "unreadable")
    assert first["path"] == "001.png" and "cut short" in first["reason"]
    assert str(tmp_path) not in first["reason"]
    assert once(folder, file).unreadable == 0
    (folder / "001.png").write_bytes(whole)  # and when it is whole after all, it is scored
    assert once(folder, file).scored == 1


def test_files_moved_into_the_folder_or_out_of_it(tmp_path):
    folder, file = tmp_path / "in", tmp_path / "r.jsonl"
    folder.mkdir()
    boards.write_good(tmp_path / "from", 2)
    with watching(folder, file):
        (tmp_path / "from" / "000.png").rename(folder / "moved.png")
        wait_for(lambda: names(file) == ["moved.png"], "the moved file")
        (folder / "moved.png").unlink()
        (folder / "short-lived.png").write_bytes(b"")
        time.sleep(2 * POLL)
        (folder / "short-lived.png").unlink()
        (tmp_path / "from" / "001.png").rename(folder / "next.png")
        wait_for(lambda: len(names(file)) == 2, "the next file")
    assert not entries(file, "unreadable")


def test_a_folder_that_goes_and_comes_back(tmp_path):
    folder, file, told = boards.write_good(tmp_path / "in", 1), tmp_path / "r.jsonl", []
    with watching(folder, file, tell=told.append):
        wait_for(lambda: len(names(file)) == 1, "the first")
        folder.rename(tmp_path / "away")
        wait_for(lambda: told, "a word that it has gone")
        boards.write_png(tmp_path / "away" / "new.png", boards.good(9))
        (tmp_path / "away").rename(folder)
        wait_for(lambda: len(names(file)) == 2, "the new one")
    assert len(told) == 2 and "no such folder" in told[0] and "there again" in told[1]
    with pytest.raises(FileNotFoundError, match="no such folder"):
        once(tmp_path / "none", tmp_path / "other.jsonl")


def test_looks_at_many_files_are_quick(tmp_path):
    for i in range(3000):
        (tmp_path / f"{i}.png").touch()
    poller = FolderPoller(tmp_path, False, lambda version: version.size == 0)
    started = time.perf_counter()
    assert poller.poll() == []
    assert time.perf_counter() - started < 1


# The record


LINES = [
    {"event": "score", "path": f"{i}.png", "size": i, "mtime_ns": 10**18 + i} for i in range(3)
]


@given(st.data())
def test_a_half_written_line_is_cut_off(tmp_path_factory, data):
    file = tmp_path_factory.mktemp("record") / "r.jsonl"
    with JsonLines(file) as record:
        for line in LINES:
            record.write(line)
    content = file.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    file.write_bytes(content[:cut])
    with JsonLines(file) as record:
        found = list(record.read())
        assert found == LINES[: content[:cut].count(b"\n")]
        record.write({"event": "more"})
    assert entries(file) == [*found, {"event": "more"}]


def test_a_torn_line_longer_than_the_step_backwards(tmp_path):
    file = tmp_path / "r.jsonl"
    file.write_bytes(b'{"event": "start"}\n{"event": "' + b"x" * 200_000)
    with JsonLines(file) as record:
        assert list(record.read()) == [{"event": "start"}]
    assert file.read_bytes() == b'{"event": "start"}\n'


@pytest.mark.parametrize("content", [b"path,score\na,1\n", b"[1]\n", b'{"no": 1}\n', b"\xff\n"])
def test_another_file_is_refused_and_left_alone(content, tmp_path):
    file = tmp_path / "r.jsonl"
    file.write_bytes(content)
    with pytest.raises(OutputFolderError, match="line 1 is not as this program writes it"):
        once(boards.write_good(tmp_path / "in", 1), file)
    assert file.read_bytes() == content


def test_two_cannot_write_to_one_file(tmp_path):
    file = tmp_path / "r.jsonl"
    refused = pytest.raises(OutputFolderError, match="another process")
    with JsonLines(file), refused, JsonLines(file):
        pass
    with JsonLines(file):  # the first has ended
        pass
    with pytest.raises(OutputFolderError, match="not a file"), JsonLines(tmp_path):
        pass
    with pytest.raises(FileNotFoundError, match="does not exist"), JsonLines(tmp_path / "no" / "r"):
        pass


def test_a_full_disk_leaves_whole_lines(tmp_path):
    code = """if True:
        import resource, sys
        from pathlib import Path
        from metaformer.inference.scores.json_lines import JsonLines
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        with JsonLines(Path(sys.argv[1])) as record:
            record.write({"event": "a" * 50})
            try:
                record.write({"event": "b" * 50})
            except OSError as error:
                print("refused", error.errno)
    """
    file = tmp_path / "r.jsonl"
    done = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True)
    assert done.stdout.startswith("refused"), done.stderr
    assert [len(e["event"]) for e in entries(file)] == [50]


# Drift


def shifting(folder: Path, counts: tuple[int, int]) -> None:
    """Good parts, then darker and noisier ones."""
    rng = np.random.default_rng(0)
    for i in range(sum(counts)):
        pixels = boards.good(1000 + i)
        if i >= counts[0]:
            noisy = 0.6 * pixels + rng.normal(0, 12, pixels.shape)
            pixels = np.clip(noisy, 0, 255).astype(np.uint8)
        path = boards.write_png(folder / f"{i:04d}.png", pixels)
        os.utime(path, (10**9 + i, 10**9 + i))


def test_a_drift_is_told_and_survives_restarts(tmp_path):
    """Stopped after any image, the watch warns at the same image as one that went on."""
    whole, parts, heard = tmp_path / "all", tmp_path / "parts", []
    shifting(whole, (40, 25))
    once(whole, tmp_path / "all.jsonl", drift_rate=0.005, on_entry=heard.append)
    (drift,) = entries(tmp_path / "all.jsonl", "drift")
    assert drift["direction"] == "up" and 45 <= drift["images"] <= 65
    assert drift["median_after"] > drift["median_before"] and drift["rate"] == 0.005
    assert abs((drift["images"] - drift["since"]) - 40) <= 8
    assert [e for e in heard if e["event"] == "drift"] == [drift]

    parts.mkdir()
    files = sorted(whole.iterdir())
    for start in range(0, len(files), 13):
        for path in files[start : start + 13]:
            shutil.copy2(path, parts / path.name)
        once(parts, tmp_path / "parts.jsonl", drift_rate=0.005)
    (again,) = entries(tmp_path / "parts.jsonl", "drift")
    assert {**again, "time": 0} == {**drift, "time": 0}
    order = [e["event"] for e in entries(tmp_path / "all.jsonl", "score", "drift")]
    assert order == [e["event"] for e in entries(tmp_path / "parts.jsonl", "score", "drift")]


def test_a_warning_lost_in_a_kill_is_given_at_the_start(tmp_path):
    folder, file = tmp_path / "in", tmp_path / "r.jsonl"
    shifting(folder, (40, 25))
    once(folder, file, drift_rate=0.005)
    lines = file.read_bytes().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if b'"drift"' in line)
    file.write_bytes(b"".join(lines[:at]))
    empty = tmp_path / "empty"
    empty.mkdir()
    assert once(empty, file, drift_rate=0.005).drifts == 1
    assert json.loads(lines[at]) | {"time": 0} == entries(file, "drift")[0] | {"time": 0}
    assert once(empty, file, drift_rate=0.005).drifts == 0


def test_scores_of_another_detector_are_no_reference(tmp_path):
    folder, file = tmp_path / "in", tmp_path / "r.jsonl"
    shifting(folder, (40, 0))
    once(folder, file, drift_rate=0.005)
    shifting(folder, (40, 25))
    other = boards.universal().adapt([boards.good(seed) for seed in range(4)])
    told: list[str] = []
    job = Watch(other, folder, JsonLines(file), poll=POLL, drift_rate=0.005, tell=told.append)
    result = job.run(threading.Event(), once=True)
    assert [line for line in told if "its 40 images are not scored again" in line]
    assert (result.scored, result.known, result.drifts) == (25, 40, 0)
    assert len({e["detector"] for e in entries(file, "start")}) == 2


@pytest.mark.parametrize("line", ['{"event": "score"}', '{"event": "start"}'])
def test_a_line_of_somebody_else_is_named(tmp_path, line):
    folder, file = boards.write_mixed(tmp_path / "in", 1), tmp_path / "r.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(OutputFolderError, match="a line that this program did not write"):
        once(folder, file, drift_rate=0.005)


# The webhook


class Server:
    """A real server that answers as ``answers`` says, the last of them for ever."""

    def __init__(self, *answers: int, seconds: float = 0.0) -> None:
        self.received: list[dict] = []
        self.requests = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                code = answers[min(outer.requests, len(answers) - 1)]
                outer.requests += 1
                time.sleep(seconds)
                if code == 200:
                    assert self.headers["Content-Type"] == "application/json"
                    outer.received.append(json.loads(body))
                self.send_response(code)
                if code == 302:
                    self.send_header("Location", f"{outer.url}/elsewhere")
                self.end_headers()

            do_GET = do_POST

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/secret"

    def __enter__(self) -> Server:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_results_are_posted_as_they_are_recorded(tmp_path):
    folder, file = boards.write_mixed(tmp_path / "in", 3), tmp_path / "r.jsonl"
    (folder / "bad.png").write_bytes(b"junk")
    with Server(200) as server:
        hook = Webhook(server.url)
        once(folder, file, webhook=hook, grace=0)
        hook.close()
        assert server.received == entries(file, "score", "unreadable")
    assert (hook.delivered, hook.failed, hook.dropped) == (4, 0, 0)


def test_errors_that_may_pass_are_tried_again():
    with Server(503, 429, 200) as server:
        hook = Webhook(server.url, backoff=0.01)
        hook.post({"event": "a"})
        hook.post({"event": "b"})
        hook.close()
        assert [entry["event"] for entry in server.received] == ["a", "b"]
        assert server.requests == 4
    assert (hook.delivered, hook.failed) == (2, 0)


@pytest.mark.parametrize(("code", "requests"), [(404, 1), (302, 1), (500, 3)])
def test_what_cannot_be_delivered_is_counted_and_told(code, requests):
    told = []
    with Server(code) as server:
        hook = Webhook(server.url, attempts=3, backoff=0.01, tell=told.append)
        hook.post({"event": "a"})
        hook.close()
        assert server.requests == requests  # a redirection is not followed
    assert (hook.delivered, hook.failed, hook.dropped) == (0, 1, 0)
    assert len(told) == 1 and f"answer {code}" in told[0] and "secret" not in told[0]


def test_a_slow_server_does_not_hold_up_scoring(tmp_path):
    folder, file, told = boards.write_good(tmp_path / "in", 12), tmp_path / "r.jsonl", []
    with Server(200, seconds=1.0) as server:
        hook = Webhook(server.url, timeout=0.3, backoff=0.01, most_waiting=5, tell=told.append)
        started = time.monotonic()
        assert once(folder, file, webhook=hook).scored == 12
        assert time.monotonic() - started < 3  # each message takes longer than a second
        waiting = time.monotonic()
        hook.close(0.5)
        assert time.monotonic() - waiting < 1.5
        counts = hook.delivered, hook.failed, hook.dropped
        time.sleep(1.0)  # what was under way at the end has ended by itself
        assert (hook.delivered, hook.failed, hook.dropped) == counts  # and is not counted twice
        hook.close(0.0)
        assert (hook.delivered, hook.failed, hook.dropped) == counts
    assert len(names(file)) == 12 and hook.delivered == 0
    assert hook.dropped >= 12 - 5 - 1 and any("dropped so far" in line for line in told)
    assert hook.failed + hook.dropped == 12
    assert any("still waiting at the end" in line for line in told)


def test_nobody_listening():
    told = []
    with Server(200) as server:
        url = server.url
    hook = Webhook(url, attempts=2, backoff=0.01, tell=told.append)
    for _ in range(150):
        hook.post({"event": "a"})
    hook.close(20)
    assert hook.failed == 150 and "refused" in told[0]
    assert len(told) == 4  # three, and the hundredth


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://x/y",
        "localhost:9000",
        "http://",
        "http://a:b@c/",
        "http://x:y/",
        "http://h/a b",
    ],
)
def test_other_addresses_are_refused(url):
    with pytest.raises(ValueError, match=r"address"):
        Webhook(url)


# The command


def start(*words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "metaformer.cli", "watch", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def detector_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("detector") / "d.metaformer"
    boards.detector().save(path)
    return path


def test_killed_and_started_again_each_image_is_scored_once(detector_file, tmp_path):
    folder, file = tmp_path / "in", tmp_path / "r.jsonl"
    boards.write_good(folder, 30)
    arguments = (detector_file, folder, "--jsonl", file, "--poll", POLL)
    first = start(*arguments)
    wait_for(lambda: file.exists() and len(names(file)) >= 5, "some scores", 60)
    first.kill()  # -9
    first.communicate()
    assert first.returncode == -signal.SIGKILL
    done = len(names(file))
    with file.open("ab") as torn:
        torn.write(b'{"event": "score", "path": "00')

    second = start(*arguments)
    boards.write_png(folder / "late.png", boards.defective(3))
    wait_for(lambda: "late.png" in names(file), "the last one", 60)
    second.send_signal(signal.SIGTERM)
    out, err = second.communicate(timeout=60)
    assert second.returncode == 130 and out == ""
    assert f"{31 - done} images scored ({done} before), 1 anomalous" in err
    assert "anomalous: late.png" in err
    counts = Counter(names(file))
    assert len(counts) == 31 and set(counts.values()) == {1}


def test_standard_output_holds_nothing_but_json(detector_file, tmp_path):
    folder = boards.write_mixed(tmp_path / "in", 2)
    (folder / "bad.png").write_bytes(b"junk")
    process = start(detector_file, folder, "--once", "--grace", 0.1, "--poll", POLL)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 3  # some images could not be read
    events = [json.loads(line)["event"] for line in out.splitlines()]
    assert events == ["start", "score", "score", "unreadable"]
    assert err.splitlines()[0].startswith("watching ") and "not scored: bad.png" in err


def run(*words: object):
    from typer.testing import CliRunner

    from metaformer.cli import app

    return CliRunner().invoke(app, ["watch", *map(str, words)])


def test_once_with_everything_readable(detector_file, tmp_path):
    folder = boards.write_good(tmp_path / "in", 1)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    done = run(detector_file, folder, "--once", "--poll", POLL, "--quiet")
    assert done.exit_code == 0 and len(done.stdout.splitlines()) == 2 and done.stderr == ""
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_sub_folders_that_are_not_looked_into_are_said(detector_file, tmp_path):
    boards.write_good(tmp_path / "in" / "line 1", 1)
    done = run(detector_file, tmp_path / "in", "--once", "--poll", POLL)
    assert done.exit_code == 0 and "0 images scored" in done.stderr
    assert "1 sub-folder not looked into (line 1). Add --recursive." in done.stderr
    done = run(detector_file, tmp_path / "in", "--once", "--poll", POLL, "--recursive")
    assert "1 images scored" in done.stderr and "not looked into" not in done.stderr


def test_another_engine_says_the_same(detector_file, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    folder = boards.write_mixed(tmp_path / "in", 3)
    scores = []
    for engine in ("torch", "onnxruntime"):
        file = tmp_path / f"{engine}.jsonl"
        words = (detector_file, folder, "--once", "--poll", POLL, "--jsonl", file)
        assert run(*words, "--engine", engine).exit_code == 0
        scores.append({entry["path"]: entry["score"] for entry in entries(file, "score")})
    assert len(scores[0]) == 3 and scores[1] == pytest.approx(scores[0], abs=1e-5)


def test_results_that_a_webhook_did_not_get_show_in_the_exit_code(detector_file, tmp_path):
    folder = boards.write_good(tmp_path / "in", 1)
    options = ["--once", "--poll", POLL]
    with Server(404) as server:
        done = run(detector_file, folder, "--webhook", server.url, *options)
        assert done.exit_code == 3 and "answer 404" in done.stderr and done.stdout == ""
    with Server(200) as server:
        done = run(detector_file, folder, "--webhook", server.url, *options)
        assert done.exit_code == 0 and [e["event"] for e in server.received] == ["score"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no-folder"], "no such folder"),
        ([".", "--webhook", "ftp://x/"], "http or https"),
        ([".", "--jsonl", "no/r.jsonl"], "does not exist"),
        ([".", "--false-alarm-rate", "2"], "between 0 and 1"),
    ],
)
def test_errors_are_one_line_and_exit_code_1(words, message, detector_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(detector_file, *words, "--once")
    assert done.exit_code == 1 and message in done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")


def test_nowhere_remembers_nothing(tmp_path):
    folder = boards.write_good(tmp_path / "in", 2)
    for _ in range(2):
        assert watch(folder, Nowhere()).run(threading.Event(), once=True).scored == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_what_is_found_and_not_scored_is_recorded_once(tmp_path):
    folder, file = boards.write_mixed(tmp_path / "in", 2), tmp_path / "r.jsonl"
    for name in ("b.heic", "c.pgm", "@eaDir/t.png", "d.jpg.part"):  # the last is on its way
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    os.mkfifo(folder / "pipe.png")
    said: list[str] = []
    result = once(folder, file, recursive=True, tell=said.append)
    assert (result.scored, result.unreadable) == (2, 3)
    assert sorted(names(file, "unreadable")) == ["b.heic", "c.pgm", "pipe.png"]
    assert len(said) == 1 and "@eaDir" in said[0]
    assert once(folder, file, recursive=True).unreadable == 0
