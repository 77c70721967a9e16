from __future__ import annotations

import functools
import hashlib
import http.server
import io
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlparse

import pytest

from metaformer.data.datasets.download import (
    PUBLIC_SETS,
    FetchError,
    PublicSet,
    fetch,
    fetch_set,
    unpack,
)
from metaformer.data.datasets.loading import LAYOUT_NAMES, load_categories
from tests.helpers import trees


@pytest.fixture
def server(tmp_path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address at which this machine serves it."""
    folder = tmp_path / "server"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def pack(folder: Path, archive: Path) -> str:
    """Pack a folder; returns the SHA-256 of the archive."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as zipped:
            for path in files:
                zipped.write(path, path.relative_to(folder))
    else:
        with tarfile.open(archive, f"w:{'xz' if archive.suffix == '.xz' else ''}") as tarred:
            tarred.add(folder, arcname=".")
    return hashlib.sha256(archive.read_bytes()).hexdigest()


def toy_set(**changes: object) -> PublicSet:
    base = PublicSet(
        name="toy",
        title="Toys",
        homepage="https://example.org/toys",
        licence="CC0 1.0",
        citation="Nobody 2020",
        layout="mvtec",
        url=None,
        archive="toys.zip",
        sha256=None,
        by_hand="Download it from the home page.",
    )
    return replace(base, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["toys.zip", "toys.tar", "toys.tar.xz"])
def test_download_check_unpack(name, server, tmp_path, capfd):
    folder, address = server
    source = trees.write_mvtec(tmp_path / "source" / "bottle").parent
    digest = pack(source, folder / name)
    public = toy_set(url=f"{address}/{name}", archive=name, sha256=digest)
    target = fetch_set(public, tmp_path / "data" / "sets")
    assert target == tmp_path / "data" / "sets" / "toy"
    assert [path.name for path in target.parent.iterdir()] == ["toy"]  # no archive, no leftovers
    (category,) = load_categories(target / "bottle")
    assert len(category.train) == 6
    for path in source.rglob("*.png"):
        assert (target / path.relative_to(source)).read_bytes() == path.read_bytes()
    note = (target / "SOURCE.txt").read_text()
    for fact in ("https://example.org/toys", "CC0 1.0", "Nobody 2020", digest):
        assert fact in note
    assert capfd.readouterr() == ("", "")


def test_what_is_there_is_not_fetched_again(server, tmp_path):
    (tmp_path / "toy").mkdir()
    public = toy_set(url=f"{server[1]}/gone.zip", sha256="0" * 64)
    assert fetch_set(public, tmp_path) == tmp_path / "toy"


def test_wrong_checksum_leaves_nothing(server, tmp_path):
    folder, address = server
    pack(trees.write_mvtec(tmp_path / "source"), folder / "toys.zip")
    public = toy_set(url=f"{address}/toys.zip", sha256="0" * 64)
    with pytest.raises(FetchError, match=r"not toy as it is known .*example.org/toys") as caught:
        fetch_set(public, tmp_path / "data")
    assert "0" * 64 in str(caught.value)
    assert list((tmp_path / "data").iterdir()) == []


def test_missing_at_the_source(server, tmp_path):
    public = toy_set(url=f"{server[1]}/gone.zip", sha256="0" * 64)
    with pytest.raises(FetchError, match=r"the download failed \(404.*Put toys.zip into"):
        fetch_set(public, tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_no_connection(tmp_path):
    public = toy_set(url="http://127.0.0.1:9/toys.zip", sha256="0" * 64)  # nobody listens there
    with pytest.raises(FetchError, match="Check the connection"):
        fetch_set(public, tmp_path)


def test_by_hand(tmp_path):
    with pytest.raises(FetchError, match=r"Put toys.zip into .* Home page: https://example.org"):
        fetch_set(toy_set(), tmp_path)
    digest = pack(trees.write_mvtec(tmp_path / "source"), tmp_path / "toys.zip")
    with pytest.raises(FetchError, match=f"its SHA-256 is {digest}"):
        fetch_set(toy_set(sha256="0" * 64), tmp_path)
    assert not (tmp_path / "toy").exists()
    target = fetch_set(toy_set(sha256=digest), tmp_path)
    assert len(load_categories(target)) == 1
    assert (tmp_path / "toys.zip").is_file()  # what was put there by hand stays


def test_by_hand_without_an_archive(tmp_path):
    with pytest.raises(FetchError, match="git clone"):
        fetch("magnetic_tile", tmp_path)


def test_unknown_name(tmp_path):
    with pytest.raises(ValueError, match=r"no data set 'mvtek' is known; known are mvtec_ad, "):
        fetch("mvtek", tmp_path)


# Archives that must not be trusted


@pytest.mark.parametrize("name", ["../evil.txt", "a/../../evil.txt", "/evil.txt", "..\\evil.txt"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_entries_that_would_land_elsewhere(kind, name, tmp_path):
    archive = tmp_path / f"bad.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as zipped:
            zipped.writestr("good.txt", "good")
            zipped.writestr(name, "evil")
    else:
        with tarfile.open(archive, "w") as tarred:
            info = tarfile.TarInfo(name)
            info.size = 4
            tarred.addfile(info, io.BytesIO(b"evil"))
    inner = tmp_path / "inner"
    inner.mkdir()
    with pytest.raises(FetchError, match="would land elsewhere"):
        unpack(archive, inner / "target")
    assert list(inner.iterdir()) == []
    assert not (tmp_path / "evil.txt").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_links_and_devices(kind, tmp_path):
    archive = tmp_path / "bad.tar"
    with tarfile.open(archive, "w") as tarred:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = kind, "/etc/passwd"
        tarred.addfile(info)
    with pytest.raises(FetchError, match=r"link"):
        unpack(archive, tmp_path / "target")
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("name", ["toys.zip", "toys.tar.xz"])
@pytest.mark.parametrize("part", [0.0, 0.4, 0.9])
def test_damaged_archive(name, part, tmp_path):
    archive = tmp_path / name
    pack(trees.write_mvtec(tmp_path / "source"), archive)
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(FetchError, match="damaged"):
        unpack(archive, tmp_path / "target")
    assert {path.name for path in tmp_path.iterdir()} == {name, "source"}


# The table


def test_a_tar_archive_that_ends_in_a_zip_archive_is_a_tar_archive(tmp_path):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as packed:
        packed.writestr("inside.txt", "inside")
    with tarfile.open(tmp_path / "set.tar", "w") as packed:
        for name, content in (("first.txt", b"first"), ("last.zip", inner.getvalue())):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            packed.addfile(info, io.BytesIO(content))
    unpack(tmp_path / "set.tar", tmp_path / "set")
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["first.txt", "last.zip"]


def test_table_is_complete_and_consistent():
    for name, public in PUBLIC_SETS.items():
        assert public.name == name
        assert public.layout in LAYOUT_NAMES
        assert urlparse(public.homepage).scheme == "https"
        assert public.licence
        assert public.citation
        assert public.by_hand
        if public.url is not None:
            assert urlparse(public.url).scheme == "https"
            assert public.sha256 is not None
            assert public.archive is not None
            assert public.url.endswith(public.archive)
        if public.sha256 is not None:
            assert len(bytes.fromhex(public.sha256)) == 32


def test_listing_sets_loads_no_network_library():
    code = (
        "import sys, metaformer.data.datasets.download; "
        "print({'pooch', 'requests', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
