from __future__ import annotations

import contextlib
import io
import os
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import cv2
import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaformer.io.images import ImageError, list_images
from metaformer.io.sources import readers
from metaformer.io.sources.naming import map_path, name_digest
from metaformer.io.sources.prefetch import READ_AHEAD, PixelBudget, read_ahead, work_ahead
from metaformer.io.sources.readers import Item, decode_item, fetch, read_shard
from metaformer.io.sources.shards import (
    Files,
    Sources,
    TarArchive,
    Video,
    ZipMembers,
    common_root,
    count_images,
    shard_digest,
    shards,
)
from metaformer.io.workers import WorkerPool
from tests.helpers import boards


def names(*arguments: object, **options) -> list[str]:
    sources = Sources(tuple(map(str, arguments)), **options)
    return [item.name for shard in shards(sources) for item in read_shard(shard, lambda _: True)]


def read(*arguments: object, **options) -> dict[str, np.ndarray | ImageError]:
    sources = Sources(tuple(map(str, arguments)), **options)
    items = (item for shard in shards(sources) for item in read_shard(shard, lambda _: True))
    return {item.name: decode_item(fetch(item), 65535) for item in items}


def png(seed: int) -> bytes:
    return cv2.imencode(".png", boards.good(seed)[:, :, ::-1])[1].tobytes()


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write_video(path: Path, frames: int) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (96, 96))
    for i in range(frames):
        writer.write(np.full((96, 96, 3), (20 * i, 50, 90), np.uint8))  # BGR
    writer.release()
    return path


# Folders and files


def test_a_folder_gives_what_list_images_gives(tmp_path):
    for name in ["img10.png", "img2.PNG", "b/z.jpg", "a/1.webp", ".hidden.png", "notes.txt"]:
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).touch()
    folder = tmp_path / "photos"
    (folder / "a" / "up").symlink_to(folder)  # a link that leads back up
    for recursive in (False, True):
        expected = [str(path) for path in list_images(folder, recursive=recursive)]
        assert names(folder, recursive=recursive) == expected
        assert count_images(Sources((str(folder),), recursive)) == len(expected) > 0


def test_a_folder_of_results_is_passed_over(tmp_path):
    for name in ["1.png", "out/maps/1.png.png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = names(tmp_path, recursive=True, skipped=os.path.realpath(tmp_path / "out/maps"))
    assert found == [str(tmp_path / "1.png")]


def test_what_is_not_there(tmp_path):
    assert "no such file" in str(read(tmp_path / "gone")[str(tmp_path / "gone")])
    with pytest.raises(FileNotFoundError, match="no such list"):
        names(f"@{tmp_path / 'gone.txt'}")


def test_files_come_in_shards_that_mean_the_same_anywhere(tmp_path):
    for i in range(7):
        (tmp_path / f"{i}.png").touch()
    write_zip(tmp_path / "a.zip", {f"{i}.png": b"" for i in range(3)})
    sources = Sources((str(tmp_path), str(tmp_path / "a.zip"), str(tmp_path / "x.tar"), "v.mp4"))
    found = list(shards(sources, size=2))
    sizes = [
        len(s.paths) if isinstance(s, Files) else len(s.members)
        for s in found
        if isinstance(s, Files | ZipMembers)
    ]
    assert sizes == [2, 2, 2, 1, 2, 1]
    assert found[-2:] == [TarArchive(str(tmp_path / "x.tar")), Video("v.mp4", 1)]
    digests = [shard_digest(shard) for shard in found]
    assert len(set(digests)) == len(found)
    assert [shard_digest(shard) for shard in shards(sources, size=2)] == digests


# Lists


def test_a_list_names_anything_line_by_line(tmp_path):
    write_zip(tmp_path / "a.zip", {"in.png": png(0)})
    lines = ["b.png", "", f"{tmp_path}/a.zip", "s3://bucket/x.png", "#1.png", "b.png", "été.png"]
    (tmp_path / "list.txt").write_text("\r\n".join(lines), encoding="utf-8")
    expected = ["b.png", f"{tmp_path}/a.zip/in.png", *lines[3:]]
    assert names(f"@{tmp_path}/list.txt") == expected
    assert count_images(Sources((f"@{tmp_path}/list.txt",))) == 6


def test_a_list_that_is_none(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\x89PNG\r\n\xff\xfe\xfd")
    with pytest.raises(ValueError, match=r"list\.txt: not a list of images"):
        names(f"@{tmp_path}/list.txt")


# Archives


@pytest.mark.parametrize("form", ["zip", "tar", "tar.gz", "tar.xz"])
def test_an_archive_gives_the_same_pixels_as_its_files(tmp_path, form):
    members = {"line 3/b.png": png(1), "./a.png": png(2), ".hidden/c.png": b"", "notes.txt": b"x"}
    path = tmp_path / f"x.{form}"
    if form == "zip":
        write_zip(path, members)
    else:
        write_tar(path, members, f"w:{form.partition('.')[2]}" if "." in form else "w")
    found = read(path)
    hidden = found.pop(f"{path}/.hidden")
    assert "a hidden folder" in str(hidden)
    assert list(found) == [f"{path}/line 3/b.png", f"{path}/a.png"]
    for pixels, seed in zip(found.values(), (1, 2), strict=True):
        assert np.array_equal(pixels, boards.good(seed))


@pytest.mark.parametrize("form", ["zip", "tar"])
def test_only_wanted_members_are_read(tmp_path, form):
    members = {f"{i}.png": png(i) for i in range(4)}
    make = write_zip if form == "zip" else write_tar
    path = make(tmp_path / f"x.{form}", members)
    (shard,) = shards(Sources((str(path),)))
    found = list(read_shard(shard, lambda name: name.endswith("2.png")))
    assert [item.name for item in found] == [f"{path}/2.png"]


@pytest.mark.parametrize("form", ["zip", "tar"])
@pytest.mark.parametrize("member", ["../out.png", "a/../../out.png"])
def test_a_member_that_leads_out_of_the_archive_is_refused(tmp_path, form, member):
    make = write_zip if form == "zip" else write_tar
    path = make(tmp_path / f"x.{form}", {member: png(0), "good.png": png(0)})
    first, second = read(path).values()
    assert isinstance(first, ImageError) and "leads out" in str(first)
    assert isinstance(second, np.ndarray)


@pytest.mark.parametrize("form", ["zip", "tar", "tar.gz"])
def test_a_large_member_is_refused_unread(tmp_path, form, monkeypatch):
    monkeypatch.setattr(readers, "MAX_ENCODED_BYTES", 60_000)
    members = {"bomb.png": bytes(70_000), "good.png": png(0)}
    path = tmp_path / f"x.{form}"
    if form == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    else:
        write_tar(path, members, "w:gz" if form == "tar.gz" else "w")
    bomb, good = read(path).values()
    assert isinstance(bomb, ImageError) and "70,000 bytes" in str(bomb)
    assert isinstance(good, np.ndarray)


@pytest.mark.parametrize("form", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("cut", [0, 40, 0.6, 0.9])
def test_a_damaged_archive_is_one_failure_and_no_end_of_the_run(tmp_path, form, cut):
    members = {f"{i}.png": png(i) for i in range(5)}
    path = tmp_path / f"x.{form}"
    if form == "zip":
        write_zip(path, members)
    else:
        write_tar(path, members, "w:gz" if form == "tar.gz" else "w")
    content = path.read_bytes()
    path.write_bytes(content[: int(cut * len(content)) if 0 < cut < 1 else cut])
    other = boards.write_png(tmp_path / "other.png", boards.good(0))
    found = read(path, other)
    assert isinstance(found[str(path)], ImageError)
    assert isinstance(found[str(other)], np.ndarray)
    if form != "zip" and cut == 0.9:
        assert len(found) > 3  # what came before the damage was read


def test_a_damaged_member_leaves_the_others(tmp_path):
    path = write_zip(tmp_path / "x.zip", {f"{i}.png": png(i) for i in range(3)})
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    found = list(read(path).values())
    assert [isinstance(pixels, ImageError) for pixels in found] == [False, True, False]
    assert "taken out of the archive" in str(found[1])


def test_an_archive_that_is_not_there(tmp_path):
    for name in ("x.zip", "x.tar.gz"):
        assert "no such file" in str(read(tmp_path / name)[str(tmp_path / name)])


# Videos


def test_every_nth_frame_of_a_video(tmp_path):
    path = write_video(tmp_path / "belt.avi", 10)
    found = read(path, every=4)
    assert list(found) == [f"{path}#frame={i}" for i in (0, 4, 8)]
    assert count_images(Sources((str(path),), every=4)) == 3
    for name, pixels in found.items():
        blue = 20 * int(name.rpartition("=")[2])
        assert np.abs(pixels[40, 40].astype(int) - (90, 50, blue)).max() < 12  # JPEG


def test_what_is_no_video(tmp_path, capfd):
    (tmp_path / "x.mp4").write_bytes(b"no video at all" * 100)
    (failure,) = read(tmp_path / "x.mp4").values()
    assert "no frame can be read" in str(failure)
    (failure,) = read(tmp_path / "gone.mp4").values()
    assert "no such file" in str(failure)
    with pytest.raises(ValueError, match="every"):
        Sources(("x.mp4",), every=0)


# Addresses


@pytest.fixture
def memory():
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()


def test_addresses_are_read_like_files(memory, tmp_path):
    memory.pipe("/line/2.png", png(2))
    memory.pipe("/line/10.png", png(10))
    memory.pipe("/line/sub/1.png", png(1))
    memory.pipe("/line/notes.txt", b"x")
    found = read("memory://line")
    assert list(found) == ["memory://line/2.png", "memory://line/10.png"]
    assert np.array_equal(found["memory://line/10.png"], boards.good(10))
    assert names("memory://line/", recursive=True)[-1] == "memory://line/sub/1.png"
    assert names("memory://line/2.png") == ["memory://line/2.png"]
    local = boards.write_png(tmp_path / "x.png", boards.good(3))
    assert np.array_equal(read(f"file://{local}")[f"file://{local}"], boards.good(3))


def test_archives_at_addresses(memory, tmp_path):
    for make, name in ((write_zip, "x.zip"), (write_tar, "x.tar")):
        memory.pipe(f"/{name}", make(tmp_path / name, {"a.png": png(4)}).read_bytes())
        found = read(f"memory://{name}")
        assert np.array_equal(found[f"memory://{name}/a.png"], boards.good(4))


def test_addresses_that_fail(memory, monkeypatch):
    assert "no such file" in str(read("memory://gone.png")["memory://gone.png"])
    with pytest.raises(FileNotFoundError, match="no such folder"):
        names("memory://nowhere")
    with pytest.raises(ValueError, match="not an address that fsspec knows"):
        names("nonsense://x")
    assert "local files only" in str(read("memory://x.mp4")["memory://x.mp4"])
    memory.pipe("/big.png", bytes(2000))
    monkeypatch.setattr(readers, "MAX_ENCODED_BYTES", 1000)
    assert "at most 1,000" in str(read("memory://big.png")["memory://big.png"])


# Names


@given(
    st.lists(
        st.one_of(
            st.text(
                st.characters(exclude_characters="\0", exclude_categories=["Cs"]),
                min_size=1,
                max_size=300,
            ),
            st.sampled_from(["s3://b/k.png", "a.zip/x.png", "v.mp4#frame=1", "/top.png"]),
        ),
        max_size=6,
    )
)
def test_maps_stay_inside_their_folder_and_have_names_that_can_be_written(given_names):
    for name in given_names:
        target = map_path(name, "/data/photos")
        assert target.endswith(".png") and not target.startswith("/")
        assert ".." not in target.split("/")
        assert all(len(os.fsencode(part)) < 200 for part in target.split("/"))


def test_maps_keep_the_place_of_their_images():
    assert map_path("/data/photos/a/x.png", "/data/photos") == "a/x.png.png"
    assert map_path("/data/photos/b.zip/in/x.png", "/data/photos") == "b.zip/in/x.png.png"
    assert map_path("/data/v.mp4#frame=3", "/data") == "v.mp4#frame=3.png"
    assert map_path("/other/x.png", "/data") == "elsewhere/other/x.png.png"
    assert map_path("s3://bucket/k/x.png", "/data") == "s3/bucket/k/x.png.png"


def test_the_common_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b/c"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "list.txt").write_text("b/c/1.png\nb/../b/x.png\n")
    assert common_root(Sources(("a",))) == str(tmp_path / "a")
    assert common_root(Sources(("a", "b/c"))) == str(tmp_path)
    assert common_root(Sources(("a/x.png",))) == str(tmp_path / "a")
    assert common_root(Sources(("@list.txt",))) == str(tmp_path / "b")
    assert common_root(Sources(("s3://x/y.png",))) == common_root(Sources(())) == "/"


def test_names_that_are_no_text_have_digests_too():
    odd = os.fsdecode(b"caf\xe9.png")
    assert name_digest(odd) != name_digest("café.png") and len(name_digest(odd)) == 12


# Reading ahead


@pytest.fixture
def photos(tmp_path) -> list[Path]:
    return list_images(boards.write_mixed(tmp_path / "photos", 6))


def test_images_come_in_order_and_only_a_few_are_read_ahead(photos):
    asked: list[str] = []

    def items():
        for path in photos * 5:
            asked.append(str(path))
            yield Item(str(path), str(path))

    reader = read_ahead(items(), 65535)
    for number in range(8):
        item, pixels = next(reader)
        assert item.name == str(photos[number % 6])
        assert pixels.shape == (96, 96, 3)
        assert len(asked) <= number + 1 + READ_AHEAD
    reader.close()


@pytest.mark.parametrize("images", [1, 2.5, 100])
def test_pixels_in_memory_are_limited(photos, monkeypatch, images):
    """Decoded or being decoded, and not given back yet."""
    held, most = 0, 0
    lock = threading.Lock()
    whole = readers.read_image

    def counted(*arguments, **options):
        nonlocal held, most
        with lock:
            held += 1
            most = max(most, held)
        return whole(*arguments, **options)

    monkeypatch.setattr(readers, "read_image", counted)
    items = (Item(str(path), str(path)) for path in photos * 3)
    done = []
    for item, _ in read_ahead(items, 65535, pixel_budget=int(images * 96 * 96)):
        time.sleep(0.01)
        done.append(item.name)
        with lock:
            held -= 1
    assert done == [str(path) for path in photos * 3]
    # One more: it is counted out here before the reader is asked for the next.
    assert most <= min(int(images), READ_AHEAD) + 1
    if images == 100:
        assert most > 1


def test_an_image_over_the_budget_comes_alone(photos):
    items = iter([Item(str(path), str(path)) for path in photos])
    assert len(list(read_ahead(items, 65535, pixel_budget=10))) == 6


def test_stopping_early_does_not_hang_on_those_who_wait(photos):
    items = (Item(str(path), str(path)) for path in photos * 100)
    reader = read_ahead(items, 65535, pixel_budget=10)
    next(reader)
    began = time.monotonic()
    reader.close()
    assert time.monotonic() - began < 5


def test_an_error_of_the_sources_reaches_the_caller(photos):
    def items():
        yield Item("a", str(photos[0]))
        raise FileNotFoundError("photos: no such folder")

    with pytest.raises(FileNotFoundError, match="no such folder"):
        list(read_ahead(items(), 65535))


@pytest.mark.parametrize("images", [0.1, 1, 2.5, 100])
@pytest.mark.parametrize("workers", [1, 2])
def test_work_is_done_in_order_within_the_budget(photos, images, workers):
    """An image counts until its result has been used, also where another waits for its room."""
    held, most = 0, 0
    lock = threading.Lock()

    def work(item, pixels):
        nonlocal held, most
        with lock:
            held += 1
            most = max(most, held)
        time.sleep(0.005)
        return item.name

    items = (Item(str(path), str(path)) for path in photos * 3)
    done = []
    with WorkerPool(workers) as pool:
        budget = int(images * 96 * 96)
        for name in work_ahead(items, 65535, work, pool, pixel_budget=budget):
            time.sleep(0.005)
            done.append(name)
            with lock:
                held -= 1
    assert done == [str(path) for path in photos * 3]
    assert most <= max(1, min(int(images), workers))


def test_work_that_fails_or_is_given_up_leaves_nobody_waiting(photos):
    def work(item, pixels):
        raise OSError("disk full")

    began = time.monotonic()
    with WorkerPool(2) as pool:
        items = (Item(str(path), str(path)) for path in photos * 100)
        with pytest.raises(OSError, match="disk full"):
            next(work_ahead(items, 65535, work, pool, pixel_budget=10))
        items = (Item(str(path), str(path)) for path in photos * 100)
        results = work_ahead(items, 65535, lambda item, pixels: item.name, pool, pixel_budget=10)
        assert next(results) == str(photos[0])
        results.close()
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_work_before_an_error_of_the_sources_is_not_lost(photos, workers):
    def items():
        for path in photos[:4]:
            yield Item(str(path), str(path))
        raise FileNotFoundError("photos: no such folder")

    done: list[str] = []
    with WorkerPool(workers) as pool, pytest.raises(FileNotFoundError, match="no such folder"):
        done.extend(work_ahead(items(), 65535, lambda item, pixels: item.name, pool))
    assert done == [str(path) for path in photos[:4]]


def test_the_budget_lets_in_by_turns():
    budget = PixelBudget(10)
    entered: list[int] = []

    def enter(turn: int, pixels: int) -> None:
        with contextlib.suppress(InterruptedError):
            budget.enter(turn, pixels)
            entered.append(turn)

    threads = [threading.Thread(target=enter, args=(turn, 6)) for turn in (2, 1, 0)]
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    time.sleep(0.05)
    assert entered == [0]
    budget.leave(6)
    time.sleep(0.05)
    assert entered == [0, 1]
    budget.close()
    for thread in threads:
        thread.join(5)
    assert entered == [0, 1]
