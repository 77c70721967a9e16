"""What was named or found and is not scored is said, on every path; nothing waits for a pipe."""

from __future__ import annotations

import io
import os
import tarfile
import threading
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from metaformer.detection.support.given_images import PassedOverWarning
from metaformer.io.folders import list_images, walk
from metaformer.io.images import ImageError, guess_white_level, pixels_of, read_image
from metaformer.io.omissions import Omission
from metaformer.io.sources.readers import read_shard
from metaformer.io.sources.shards import Sources, count_images, shards
from tests.helpers import boards, trees


def categories(*arguments: object, **options) -> dict[str, str]:
    """What becomes of each item: "" if it is to be scored, else the category."""
    sources = Sources(tuple(map(str, arguments)), **options)
    items = [item for shard in shards(sources) for item in read_shard(shard, lambda _: True)]
    return {
        item.name: item.content.category if isinstance(item.content, ImageError) else ""
        for item in items
    }


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
@pytest.mark.timeout(30)
@pytest.mark.parametrize("ending", ["png", "tif", "zip", "tar", "mp4"])
def test_a_pipe_is_refused_at_every_door(tmp_path, ending):
    pipe = tmp_path / f"pipe.{ending}"
    os.mkfifo(pipe)
    with pytest.raises(ImageError, match="neither a file"):
        read_image(pipe)
    assert pixels_of(pipe) == 0
    with pytest.raises(ImageError, match="neither a file"):
        guess_white_level([pipe])
    assert categories(pipe) == {str(pipe): "not a file"}
    assert count_images(Sources((str(pipe),))) == 1
    if ending in ("png", "tif"):
        assert categories(tmp_path) == {str(pipe): "not a file"}
        assert list_images(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="devices")
def test_a_device_is_refused(tmp_path):
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    assert categories(tmp_path) == {str(tmp_path / "zero.png"): "not a file"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
@pytest.mark.timeout(60)
def test_a_list_from_a_pipe_is_read_once_and_whole(tmp_path, monkeypatch):
    names = [str(tmp_path / f"{i}.png") for i in range(5000)]
    pipe = tmp_path / "list"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text("\n".join(names)))
    writer.start()
    sources = Sources((f"@{pipe}",))
    writer.join()
    assert count_images(sources) == 5000
    assert list(categories(*sources.arguments)) == names
    monkeypatch.setattr("metaformer.io.sources.lists.PIPE_SECONDS", 0.1)
    with pytest.raises(ValueError, match="Nothing has been written"):
        Sources((f"@{pipe}",))


def test_endings_that_are_told_by_their_content(tmp_path):
    photo = trees.write_good_png(tmp_path / "a.png").read_bytes()
    for name in ("b.jfif", "c.JPE", "d.dib", "e.mpo", "f.apng"):
        (tmp_path / name).write_bytes(photo)
    assert list(categories(tmp_path).values()) == [""] * 6
    assert all(read_image(path).any() for path in list_images(tmp_path))


def test_endings_that_are_not_read_are_failures_everywhere(tmp_path):
    odd = ("b.heic", "c.PGM", "d.dcm", "e.exr", "f.tga", "g.jp2", "clip.mp4", "more.zip")
    folder = tmp_path / "photos"
    touch(folder / "a.png", folder / "notes.txt", *(folder / name for name in odd))
    expected = {"a.png": ""} | dict.fromkeys(odd, "not read")
    found = categories(folder)
    assert {Path(name).name: category for name, category in found.items()} == expected

    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
    found = categories(tmp_path / "a.zip")
    assert {Path(name).name: category for name, category in found.items()} == expected

    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(folder, "photos")
    found = categories(tmp_path / "a.tar")
    assert {Path(name).name: category for name, category in found.items()} == expected


def test_what_may_hold_images_is_said_and_companions_are_not(tmp_path):
    odd = (
        *("a.rar", "b.7Z", "c.tar.zst", "d.wmv", "e.ts", "f.HEVC", "g.bmp.gz", "h.TIF.xz"),
        *("i.jpg.part", "j.png.crdownload", "k.zip.part", "l.heic.tmp"),
    )
    companions = (
        *("a.txt", "a.csv", "a.json", "a.xml", "a.pdf", "a.md", "a.db", "a.ini", "a.log", "a.yaml"),
        *("scores.csv.gz", "a.tmp", "notes.part", "README", ".i.jpg.part"),
    )
    folder = tmp_path / "photos"
    touch(*(folder / name for name in (*odd, *companions)))
    (folder / "README").write_text("BMP and PNG files of Monday")
    picture = Image.fromarray(trees.picture())
    kinds = {"png": ".png", "jpeg": ".jpg", "bmp": ".bmp", "tiff": ".tif", "webp": ".webp"}
    for kind in kinds:
        picture.save(folder / f"IMG_{kind}", kind)
    bare = [f"IMG_{kind}" for kind in kinds]
    found = {Path(name).name: category for name, category in categories(folder).items()}
    assert found == dict.fromkeys([*odd, *bare], "not read")
    said = {Path(one.path).name: one.reason for one in walk(folder) if isinstance(one, Omission)}
    for kind, ending in kinds.items():
        assert f"Add {ending} to its name." in said[f"IMG_{kind}"]
    assert "unfinished" in said["k.zip.part"] and "Unpack" in said["g.bmp.gz"]
    for kind in ("zip", "tar"):
        found = categories(packed(folder, kind))
        assert {Path(name).name: found[name] for name in found} == dict.fromkeys(
            [*odd, *bare], "not read"
        )


def test_links_inside_a_tar_archive_are_failures(tmp_path):
    content = trees.write_good_png(tmp_path / "a.png").read_bytes()
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        plain = tarfile.TarInfo("a.png")
        plain.size = len(content)
        archive.addfile(plain, io.BytesIO(content))
        for name, kind in (("soft.png", tarfile.SYMTYPE), ("hard.png", tarfile.LNKTYPE)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "a.png"
            archive.addfile(link)
    found = {Path(n).name: category for n, category in categories(tmp_path / "a.tar").items()}
    assert found == {"a.png": "", "soft.png": "not read", "hard.png": "not read"}


def test_a_video_that_is_cut_short_is_a_failure(tmp_path):
    path = tmp_path / "belt.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (96, 96))
    rng = np.random.default_rng(0)
    for _ in range(40):
        writer.write(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8))
    writer.release()
    assert set(categories(path).values()) == {""}
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    found = categories(path)
    assert 10 < list(found.values()).count("") < 30
    assert found[str(path)] == "cut short"


def packed(folder: Path, kind: str) -> str:
    """The files of ``folder`` in an archive or at an address, or the folder itself."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    archive = folder.parent / f"photos.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as opened:
            for path in files:
                opened.write(path, path.relative_to(folder))
    elif kind in ("tar", "tar.gz"):
        with tarfile.open(archive, "w:gz" if kind == "tar.gz" else "w") as opened:
            for path in files:
                opened.add(path, path.relative_to(folder))
    elif kind == "memory":
        fsspec = pytest.importorskip("fsspec")
        place = f"/{folder.parent.name}"
        fsspec.filesystem("memory").put(str(folder), place, recursive=True)
        return f"memory:/{place}"
    return str(folder if kind == "folder" else archive)


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz", "memory"])
def test_what_is_no_image_to_score_is_passed_over_and_said_on_every_path(tmp_path, kind):
    """Results, bins, thumbnails, masks and hidden folders; what systems leave is not said."""
    folder = tmp_path / "photos"
    passed_over = {
        "monday": ("run.json", "maps/a.png.png", "scores.csv"),
        "tuesday": ("x.png", "run.json", "scores/part-000000.parquet"),
        "@eaDir": ("a.jpg/SYNOPHOTO_THUMB_M.jpg",),
        "$RECYCLE.BIN": ("r.png",),
        "#recycle": ("r.png",),
        "System Volume Information": ("x.png",),
        "lost+found": ("x.png",),
        "set/ground_truth": ("crack/a.png", "crack/b.png"),
        ".git": ("x.png", "objects/y.png"),
        ".Trash": ("x.png",),
        "__MACOSX": ("line 1/._a.png",),
    }
    kept = ["line 1/a.png", "line 1/face_mask.png", "maps/b.png", "set/scores/c.png"]
    touch(*(folder / name for name in kept))
    for name, inside in passed_over.items():
        touch(*(folder / name / each for each in inside))
    touch(folder / "line 1" / "a_MASK.jpg", folder / "line 1" / "._a.png", folder / ".b.png")
    touch(folder / "set" / "run.txt", folder / "Thumbs.db")
    place = packed(folder, kind)
    found = categories(place, recursive=True)
    inside = {name.removeprefix(f"{place}/"): category for name, category in found.items()}
    assert inside == {
        **dict.fromkeys(kept, ""),
        **dict.fromkeys([*passed_over, "line 1/a_MASK.jpg"], "passed over"),
    }


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "memory"])
def test_the_maps_of_a_folder_of_results_that_is_named_itself_are_passed_over(tmp_path, kind):
    folder = tmp_path / "photos"
    touch(*(folder / name for name in ("a.png", "maps/a.png.png", "run.json")))
    place = packed(folder, kind)
    found = categories(place, recursive=True)
    assert found == {f"{place}/a.png": "", f"{place}/maps": "passed over"}


def test_a_folder_that_is_named_itself_is_looked_into(tmp_path):
    touch(tmp_path / "lost+found" / "x.png")
    assert categories(tmp_path / "lost+found") == {str(tmp_path / "lost+found" / "x.png"): ""}


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="POSIX permissions")
def test_a_folder_that_may_not_be_entered_does_not_end_the_run(tmp_path):
    touch(tmp_path / "a.png", tmp_path / "locked" / "b.png", tmp_path / "z" / "c.png")
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    (tmp_path / "locked").chmod(0)
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(65534)
    try:
        found = categories(tmp_path, recursive=True)
        named = categories(tmp_path / "locked", tmp_path / "a.png")
        with pytest.raises(PermissionError, match="locked"):
            list_images(tmp_path, recursive=True)
    finally:
        if was_root:
            os.seteuid(0)
        (tmp_path / "locked").chmod(0o755)
    assert {Path(name).name: category for name, category in found.items()} == {
        "a.png": "",
        "locked": "no permission",
        "c.png": "",
    }
    assert sorted(named.values()) == ["", "no permission"]


def test_files_of_support_that_are_not_used_are_warned_of(tmp_path):
    boards.write_png(tmp_path / "a.png", boards.good(0))
    touch(tmp_path / "b.pgm")
    with pytest.warns(PassedOverWarning, match=r"1 \.pgm file cannot be read"):
        boards.universal().adapt(tmp_path)


def test_walking_tells_images_and_omissions_in_natural_order(tmp_path):
    touch(*(tmp_path / name for name in ("img10.png", "img2.png", "img3.heic")))
    found = list(walk(tmp_path))
    assert [Path(x if isinstance(x, str) else x.path).name for x in found] == [
        "img2.png",
        "img3.heic",
        "img10.png",
    ]
    assert isinstance(found[1], Omission)
