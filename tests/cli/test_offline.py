"""What a normal run costs and touches: no network, no chatter of other packages, bounded memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.helpers import boards, trees

# Runs the commands given as a JSON list of argument lists, in one process without a network: every
# attempt is refused and remembered, even if somebody swallows the error. Prints exit codes,
# attempts and the most memory that was resident, as JSON on the last line.
SCRIPT = """
import json, sys
attempts = []
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        attempts.append(f"{event} {arguments[1:]}")
        raise OSError("the network is cut")
sys.addaudithook(watch)
from metaformer.cli import app
codes = []
for arguments in json.loads(sys.argv[1]):
    try:
        app(arguments)
    except SystemExit as stop:
        codes.append(stop.code)
status = open("/proc/self/status").read()
peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
print(json.dumps({"codes": codes, "attempts": attempts, "peak_mb": peak}))
"""


def run_all(*commands: list[object]) -> tuple[dict, str, str]:
    """Report of the script, standard output before it, and standard error."""
    texts = [[str(argument) for argument in command] for command in commands]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(texts)],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    *printed, last = done.stdout.splitlines()
    return json.loads(last), "\n".join(printed), done.stderr


def write_photos(folder: Path, count: int, height: int, width: int) -> Path:
    """JPEG photos of one board, enlarged."""
    folder.mkdir()
    for i in range(count):
        photo = cv2.resize(boards.good(i, "77000015", 200, 200), (width, height))
        cv2.imwrite(str(folder / f"{i:03d}.jpg"), photo)
    return folder


def test_adapt_predict_and_evaluate_need_no_network_and_print_no_warnings(tmp_path):
    good = boards.write_good(tmp_path / "good", 3)
    photos = boards.write_mixed(tmp_path / "photos", 2)
    data = trees.write_mvtec(tmp_path / "bracket", train=3, good=2, per_kind=1)
    detector = tmp_path / "d.metaformer"
    report, printed, errors = run_all(
        ["adapt", good, "-o", detector, "--resolution", 96],
        ["predict", detector, photos, "-o", tmp_path / "out"],
        ["evaluate", data, "--shots", 2, "--seeds", 0, "--resolution", 64, "--json", "--quiet"],
        ["info", detector],
    )
    assert report["codes"] == [0, 0, 0, 0]
    assert report["attempts"] == []
    assert errors == ""
    assert "adapted to 3" in printed and "2 images scored" in printed and "image_auroc" in printed


def test_the_watch_notices_an_attempt():
    script = SCRIPT.replace("codes = []", "codes = []\nimport urllib.request, contextlib").replace(
        "        app(arguments)",
        "        with contextlib.suppress(OSError): urllib.request.urlopen('http://example.com')",
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "[[]]"], capture_output=True, text=True, check=True
    )
    assert len(json.loads(done.stdout)["attempts"]) >= 1


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="reads the peak memory from /proc"
)


@needs_proc
def test_adapt_stays_well_under_2_gb(tmp_path):
    """Ten small images, three large ones, and views of a single large one."""
    folders = [
        write_photos(tmp_path / "small", 10, 256, 256),
        write_photos(tmp_path / "large", 3, 3000, 4000),
        write_photos(tmp_path / "single", 1, 3000, 4000),
    ]
    report, _, _ = run_all(*(["adapt", folder, "-o", tmp_path / "d"] for folder in folders))
    assert report["codes"] == [0, 0, 0]
    assert report["peak_mb"] < 1000  # measured: 450; images kept at full size would show


@needs_proc
def test_predict_stays_under_1_gb(tmp_path):
    boards.detector().save(tmp_path / "d.metaformer")
    small = write_photos(tmp_path / "small", 5, 256, 256)
    large = write_photos(tmp_path / "large", 5, 2000, 3000)
    output = tmp_path / "out"
    report, _, _ = run_all(["predict", tmp_path / "d.metaformer", small, large, "-o", output])
    assert report["codes"] == [0]
    assert report["peak_mb"] < 1000


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize(("preset", "more"), [("feature", 60), ("pixel", 8)])
def test_memory_does_not_grow_with_the_number_of_images(tmp_path, preset, more):
    """Both presets at 256 pixels: a few images, then more, to adapt to and to score."""
    few = write_photos(tmp_path / "few", 3, 256, 256)
    many = write_photos(tmp_path / "many", more, 256, 256)
    detector = tmp_path / "d.metaformer"
    adapt, predict = [], []
    for folder in (many, few):
        report, _, _ = run_all(["adapt", folder, "-o", detector, "--preset", preset])
        adapt.append(report["peak_mb"])
    for folder in (many, few):
        out = tmp_path / "out" / folder.name
        report, _, _ = run_all(["predict", detector, folder, "-o", out])
        predict.append(report["peak_mb"])
    assert adapt[0] < min(2000, adapt[1] + 300)
    assert predict[0] < min(1000, predict[1] + 150)


def test_nothing_is_written_outside_the_output_folder(tmp_path):
    """A home folder that stays empty: no cache, no settings."""
    home = tmp_path / "home"
    home.mkdir()
    boards.detector().save(tmp_path / "d.metaformer")
    image = boards.write_png(tmp_path / "x.png", np.asarray(boards.good(0)))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "metaformer.cli",
            "predict",
            "../d.metaformer",
            image,
            "-o",
            "../out",
        ],
        env=os.environ | {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")},
        cwd=home,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert list(home.iterdir()) == []
