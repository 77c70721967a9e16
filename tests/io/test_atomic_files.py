from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from metaformer.io.atomic_files import atomic_path, write_bytes, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_writes_and_replaces(tmp_path):
    target = tmp_path / "scores.csv"
    write_text(target, "first é\n")
    assert target.read_bytes() == "first é\n".encode()
    write_bytes(str(target), b"\x00second")
    assert target.read_bytes() == b"\x00second"
    assert names(tmp_path) == ["scores.csv"]


def test_a_file_name_that_is_not_utf8_can_be_written_about(tmp_path):
    write_text(tmp_path / "list.txt", "é " + os.fsdecode(b"caf\xe9") + "\n")
    assert (tmp_path / "list.txt").read_bytes() == "é caf".encode() + b"\xe9\n"


def test_the_temporary_file_keeps_the_suffix_and_the_folder(tmp_path):
    with atomic_path(tmp_path / "a.safetensors") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".safetensors"
        assert temporary.name.startswith(".")  # listings of images and folders pass over it
        temporary.write_bytes(b"x")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, OSError])
def test_after_a_failure_the_old_content_stays_and_nothing_else(tmp_path, error):
    target = tmp_path / "detector"
    target.write_bytes(b"old")
    with pytest.raises(error), atomic_path(target) as temporary:
        temporary.write_bytes(b"half of the n")
        raise error()
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["detector"]


def test_a_reader_sees_the_old_or_the_new_but_never_half(tmp_path):
    target = tmp_path / "f"
    old, new = b"o" * 200_000, b"n" * 300_000
    write_bytes(target, old)
    seen, is_over = set(), threading.Event()

    def read() -> None:
        while not is_over.is_set():
            seen.add(target.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(60):
        write_bytes(target, new if i % 2 == 0 else old)
    is_over.set()
    reader.join()
    assert seen <= {old, new}


def test_mode_is_that_of_an_ordinary_file(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    write_text(tmp_path / "ours", "x")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.*does not exist.*Create it"):
        write_text(tmp_path / "nowhere" / "x.json", "{}")
    assert names(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    with pytest.raises(PermissionError, match=r"no permission to write in .*locked"):
        write_text(folder / "x.json", "{}")


def test_a_name_as_long_as_the_file_system_takes(tmp_path):
    target = tmp_path / ("é" * 120 + ".png")  # 244 of 255 bytes
    write_text(target, "x")
    assert target.read_text() == "x"


def test_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_text("x.json", "{}")
    assert Path("x.json").read_text() == "{}"
