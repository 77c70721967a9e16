from __future__ import annotations

import hashlib
import shlex
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from metaformer import Detector, DetectorFileError, Metaformer
from metaformer.detection.detector_file import read_detector_file, write_detector_file
from metaformer.networks.backbone_weights import BackboneError, digest, find_weights, read_weights

NAME = "some_network.tag"


@pytest.fixture(autouse=True)
def no_folder(monkeypatch):
    monkeypatch.delenv("METAFORMER_WEIGHTS", raising=False)


def weights(path: Path, value: float = 0.0) -> Path:
    path.parent.mkdir(exist_ok=True)
    save_file({"w": torch.full((3,), value)}, path)
    return path


def test_the_file_given_is_taken_and_its_digest_told(tmp_path):
    file = weights(tmp_path / "w.safetensors")
    found = find_weights(NAME, None, file=file)
    assert found.path == file
    assert found.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_file_given_is_never_replaced_by_another(tmp_path, monkeypatch):
    in_folder = weights(tmp_path / "folder" / f"{NAME}.safetensors")
    monkeypatch.setenv("METAFORMER_WEIGHTS", str(in_folder.parent))
    with pytest.raises(BackboneError, match=r"other\.safetensors: no such file"):
        find_weights(NAME, None, file=tmp_path / "other.safetensors")
    other = weights(tmp_path / "other.safetensors", 1.0)
    with pytest.raises(BackboneError, match=r"other\.safetensors: not the weights.*adapt again"):
        find_weights(NAME, None, file=other, sha256=digest(in_folder))


def test_the_folder_of_the_environment_is_searched(tmp_path, monkeypatch):
    file = weights(tmp_path / "folder" / f"{NAME}.safetensors")
    monkeypatch.setenv("METAFORMER_WEIGHTS", str(file.parent))
    assert find_weights(NAME, None).path == file
    assert find_weights(NAME, None, sha256=digest(file)).path == file
    with pytest.raises(BackboneError, match=r"with SHA-256 abc .*has another SHA-256"):
        find_weights(NAME, None, sha256="abc")


def test_missing_weights_say_where_was_looked_and_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(BackboneError, match=r"METAFORMER_WEIGHTS is not set.*--backbone-weights"):
        find_weights(NAME, None)
    monkeypatch.setenv("METAFORMER_WEIGHTS", str(tmp_path))
    with pytest.raises(BackboneError, match=rf"there is no {tmp_path}/{NAME}\.safetensors"):
        find_weights(NAME, None)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("old_format", [False, True])
def test_a_pickle_is_refused_with_a_command_that_converts_it(tmp_path, nested, old_format):
    state = {"w": torch.arange(3.0)}
    path = tmp_path / "w.pth"
    torch.save(
        {"state_dict": state} if nested else state,
        path,
        _use_new_zipfile_serialization=not old_format,
    )
    with pytest.raises(BackboneError, match="never read here") as caught:
        read_weights(path)
    command = str(caught.value).splitlines()[1]
    program, option, code = shlex.split(command)
    assert (program, option) == ("python", "-c")
    exec(code, {})
    assert torch.equal(read_weights(tmp_path / "w.safetensors")["w"], state["w"])


def test_the_name_of_a_file_does_not_make_it_safe(tmp_path):
    torch.save({"w": torch.zeros(3)}, tmp_path / "w.safetensors")
    with pytest.raises(BackboneError, match="never read here"):
        read_weights(tmp_path / "w.safetensors")


def test_a_file_cut_short_is_said_to_be(tmp_path):
    file = weights(tmp_path / "w.safetensors")
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(BackboneError, match="cut short"):
        read_weights(file)


def test_without_timm_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "timm", None)  # importing it raises ImportError
    with pytest.raises(BackboneError, match=r"pip install 'metaformer-ad\[backbones\]'"):
        Metaformer.from_pretrained(backbone="resnet18", backbone_weights=tmp_path / "r")


def test_the_backbone_of_the_package_takes_no_weights(tmp_path):
    with pytest.raises(BackboneError, match="inside the package"):
        Metaformer.from_pretrained(backbone_weights=tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="pixel preset has no backbone"):
        Metaformer.from_pretrained("pixel", backbone="resnet18")


def test_a_detector_of_the_package_s_backbone_says_nothing_of_backbones():
    """Its file is what it was before there were others."""
    black = torch.zeros(64, 64, 3).byte().numpy()
    _, settings = Metaformer.from_pretrained(resolution=64).adapt([black]).adapted.state()
    assert settings["config"]["resolution"] == 64
    assert not [key for key in settings["config"] if "backbone" in key]


def test_a_detector_file_with_an_unnamed_backbone_file_is_refused(tmp_path):
    made = Metaformer.from_pretrained(resolution=64).adapt([torch.zeros(64, 64, 3).byte().numpy()])
    made.save(tmp_path / "d.metaformer")
    header, tensors = read_detector_file(tmp_path / "d.metaformer")
    header["settings"]["config"] |= {"backbone": "resnet18"}
    write_detector_file(tmp_path / "d.metaformer", header, tensors)
    with pytest.raises(DetectorFileError, match="no SHA-256 of the weights of resnet18"):
        Detector.load(tmp_path / "d.metaformer")
