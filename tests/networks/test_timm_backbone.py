"""Backbones of timm with random weights: the arithmetic and the errors, not the accuracy."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from metaformer import Detector, DetectorFileError, Metaformer
from metaformer.cli import app
from metaformer.detection.adaptation import prepare
from metaformer.detection.detector_file import read_detector_file, write_detector_file
from metaformer.detection.engines.graph import UnsupportedExportError, graph_of
from metaformer.networks.backbone_weights import BackboneError, digest
from metaformer.networks.efficientnet import load_backbone
from metaformer.networks.timm_backbone import load_timm_backbone
from tests.helpers import boards, trees

try:
    import timm
except (ImportError, RuntimeError) as error:
    # Beside a torch of another build torchvision raises RuntimeError when imported.
    pytest.skip(f"needs timm and a torchvision that fits torch ({error})", allow_module_level=True)

VIT, CNN = "test_vit.r160_in1k", "test_resnet.r160_in1k"


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="session")
def weights(folder):
    """name -> file of random weights; normalisations too are random, so that none can be lost."""

    @cache
    def make(name: str) -> Path:
        network = timm.create_model(name)
        generator = torch.Generator().manual_seed(0)
        state = network.state_dict()
        for key, tensor in state.items():
            if tensor.ndim == 1:
                noise = torch.rand(tensor.shape, generator=generator)
                state[key] = noise + 0.5 if "running_var" in key else tensor + 0.1 * noise
            else:
                state[key] = tensor.clone()
        file = folder / f"{name}.safetensors"
        save_file(state, file)
        return file

    return make


@pytest.fixture(autouse=True)
def no_other_weights(monkeypatch, tmp_path):
    monkeypatch.delenv("METAFORMER_WEIGHTS", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def picture(height: int, width: int) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1))


# -------------------------------------------------------------------------------------- features


@pytest.mark.parametrize(
    ("name", "channels", "resolution"),
    [
        pytest.param(VIT, {16: 64}, 512, id="vit"),
        pytest.param(CNN, {8: 48, 16: 192}, 256, id="resnet"),
        pytest.param("test_efficientnet.r160_in1k", {8: 32, 16: 48}, 256, id="efficientnet"),
        pytest.param("test_convnext.r160_in1k", {8: 32, 16: 48}, 256, id="convnext"),
        pytest.param(
            "vit_small_patch14_dinov2.lvd142m", {14: 384}, 448, marks=pytest.mark.slow, id="dinov2"
        ),
        pytest.param(
            "vit_small_patch14_reg4_dinov2.lvd142m",
            {14: 384},
            448,
            marks=pytest.mark.slow,
            id="dinov2 registers",
        ),
        pytest.param(
            "vit_base_patch14_dinov2.lvd142m", {14: 768}, 448, marks=pytest.mark.slow, id="base"
        ),
        pytest.param(
            "vit_small_patch16_dinov3.lvd1689m", {16: 384}, 512, marks=pytest.mark.slow, id="dinov3"
        ),
        pytest.param(
            "wide_resnet50_2.tv_in1k",
            {8: 512, 16: 1024},
            256,
            marks=pytest.mark.slow,
            id="wide resnet",
        ),
        pytest.param(
            "convnext_tiny.in12k_ft_in1k",
            {8: 192, 16: 384},
            256,
            marks=pytest.mark.slow,
            id="convnext tiny",
        ),
    ],
)
def test_features_are_those_of_timm(weights, name, channels, resolution):
    """Against timm's other ways to the same maps, with the same weights, on sides of any size."""
    file = weights(name)
    model = Metaformer.from_pretrained(backbone=name, backbone_weights=file).model
    backbone, config = model.backbone, model.config
    assert (config.levels, config.resolution) == (tuple(channels), resolution)
    assert (config.backbone, config.backbone_sha256) == (name, digest(file))
    assert backbone.channels == channels
    largest = max(channels)
    assert model.size_multiple == largest
    height, width = 5 * largest, 3 * largest
    maps = backbone(picture(height, width))
    shapes = {level: (1, c, height // level, width // level) for level, c in channels.items()}
    assert {level: tuple(m.shape) for level, m in maps.items()} == shapes

    settings = timm.data.resolve_model_data_config(timm.create_model(name))
    mean, std = (torch.tensor(settings[key])[:, None, None] for key in ("mean", "std"))
    x = (picture(height, width) - mean) / std
    if len(channels) == 1:
        whole = timm.create_model(name, dynamic_img_size=True).eval()
        whole.load_state_dict(load_file(file))
        with torch.inference_mode():
            tokens = whole.forward_features(x)[0, whole.num_prefix_tokens :]  # (N, C)
        expected = {largest: tokens.T.reshape(1, -1, height // largest, width // largest)}
    else:
        pyramid = timm.create_model(
            name, features_only=True, pretrained=True, pretrained_cfg_overlay={"file": str(file)}
        ).eval()
        with torch.inference_mode():
            by_stride = dict(zip(pyramid.feature_info.reduction(), pyramid(x), strict=True))
        expected = {level: by_stride[level] for level in channels}
    for level, found in maps.items():
        torch.testing.assert_close(found, expected[level], rtol=1e-4, atol=1e-4)


def test_our_own_weights_in_timm_s_network_give_our_own_features(tmp_path):
    peers = pytest.importorskip("benchmarks.accuracy.peers.backbone")
    network = timm.create_model(peers.TIMM_NAME, features_only=True, out_indices=(1, 2, 3, 4))
    peers.load_shipped_weights(network, (4, 8, 16, 32))
    save_file({k: v.clone() for k, v in network.state_dict().items()}, tmp_path / "w.safetensors")
    theirs = load_timm_backbone(peers.TIMM_NAME, weights=tmp_path / "w.safetensors")
    ours = load_backbone()
    # timm describes other weights of this network, made for images in [-1, 1].
    theirs.mean.copy_(ours.mean)
    theirs.std.copy_(ours.std)
    expected = ours(picture(96, 160))
    for level, found in theirs(picture(96, 160)).items():
        apart = float((found - expected[level]).abs().max() / expected[level].abs().max())
        assert apart < 1e-5


def test_nothing_random_and_nothing_to_train(weights):
    file = weights(VIT)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    backbone = load_timm_backbone(VIT, weights=file)
    assert torch.rand(1) == expected  # the global random state is untouched
    assert not backbone.training
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_images_come_at_a_multiple_of_the_patch(weights):
    name = "vit_tiny_patch14_reg4_dinov2"
    name = name if timm.is_model(name) else "eva02_tiny_patch14_224"
    model = Metaformer.from_pretrained(
        backbone=name, backbone_weights=weights(name), resolution=100
    ).model
    tokens = prepare(model, boards.good(0, height=90, width=130))
    assert tokens.features[14].shape[2:] == (6, 9)  # 84 x 126 pixels


# ------------------------------------------------------------------------------------- the names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wide_resnet50", "Did you mean .*wide_resnet50_2"),
        ("vit_small_patch14_dinov2.lvd124m", r"knows no such weights.*\.lvd142m"),
        ("local-dir:/tmp", "no backbone"),
        ("hf-hub:someone/something", "no backbone"),
        ("../test_vit", "no backbone"),
        ("", "no backbone"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(BackboneError, match=message):
        load_timm_backbone(name)


def test_a_name_without_its_weights_means_timm_s_first_choice(weights):
    assert load_timm_backbone("test_vit", weights=weights(VIT)).name == VIT


def test_networks_of_one_size_are_refused(weights):
    name = "mixer_s32_224"
    with pytest.raises(BackboneError, match="fixed input size"):
        load_timm_backbone(name, weights=weights(name))


# ------------------------------------------------------------------------------------- the files


def changed(source: Path, target: Path, **tensors: torch.Tensor | None) -> Path:
    state = {**load_file(source), **{k.replace("__", "."): v for k, v in tensors.items()}}
    save_file({k: v for k, v in state.items() if v is not None}, target)
    return target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks__1__norm1__bias": None}, r"blocks\.1\.norm1\.bias .*nothing of that name"),
        ({"pos_embed": torch.zeros(1, 50, 64)}, r"pos_embed has shape .* the file has shape"),
        # timm would resample these patches silently.
        ({"patch_embed__proj__weight": torch.zeros(64, 3, 14, 14)}, r"patch_embed\.proj\.weight"),
        (
            {"patch_embed__proj__weight": torch.zeros(64, 3, 14, 14), "norm__weight": None},
            r"patch_embed\.proj\.weight",
        ),
        ({"norm__weight": torch.full((64,), torch.nan)}, r"NaN .* in norm\.weight"),
    ],
)
def test_files_that_do_not_fit_name_the_first_tensor(weights, tmp_path, change, message):
    file = changed(weights(VIT), tmp_path / "w.safetensors", **change)
    with pytest.raises(BackboneError, match=message):
        load_timm_backbone(VIT, weights=file)


def test_the_weights_of_another_network_do_not_fit(weights):
    with pytest.raises(BackboneError, match=r"not weights of test_resnet.*conv1\.0\.weight"):
        load_timm_backbone(CNN, weights=weights(VIT))


def test_what_the_network_does_not_need_may_be_missing_or_more(weights, tmp_path):
    file = changed(
        weights(VIT), tmp_path / "w.safetensors", head__weight=None, extra=torch.zeros(2)
    )
    loaded = load_timm_backbone(VIT, weights=file)
    same = load_timm_backbone(VIT, weights=weights(VIT))
    image = picture(64, 64)
    assert torch.equal(loaded(image)[16], same(image)[16])


@pytest.mark.slow
def test_the_publisher_s_own_names_of_dinov3_are_understood(weights, tmp_path):
    """Meta names registers and layer scales otherwise, and has tensors for training alone."""
    name = "vit_small_patch16_dinov3.lvd1689m"
    published = {"mask_token": torch.zeros(1, 384), "rope_embed.periods": torch.zeros(16)}
    for key, tensor in load_file(weights(name)).items():
        key = key.replace("reg_token", "storage_tokens")
        key = key.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")
        published[key] = tensor
    save_file(published, tmp_path / "w.safetensors")
    image = picture(64, 64)
    renamed = load_timm_backbone(name, weights=tmp_path / "w.safetensors")
    assert torch.equal(
        renamed(image)[16], load_timm_backbone(name, weights=weights(name))(image)[16]
    )


@pytest.mark.slow
def test_the_publisher_s_own_names_of_dinov2_are_understood(weights, tmp_path):
    """Meta's file adds a position to the class token, which timm has added in beforehand."""
    name = "vit_small_patch14_reg4_dinov2.lvd142m"
    published = load_file(weights(name))
    position = torch.full((1, 1, 384), 0.25)
    published["mask_token"] = torch.zeros(1, 384)
    published["register_tokens"] = published.pop("reg_token")
    published["cls_token"] = published["cls_token"] - position
    published["pos_embed"] = torch.cat([position, published["pos_embed"]], dim=1)
    save_file(published, tmp_path / "w.safetensors")
    renamed = load_timm_backbone(name, weights=tmp_path / "w.safetensors")
    same = load_timm_backbone(name, weights=weights(name))
    image = picture(56, 56)
    torch.testing.assert_close(renamed(image)[14], same(image)[14], rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------- where files come from


def into_cache(cache_folder: Path, file: Path) -> None:
    """Lay ``file`` out as the Hugging Face cache does."""
    repository = cache_folder / f"models--timm--{VIT}"
    snapshot = repository / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abc")
    shutil.copy(file, snapshot / "model.safetensors")


def test_the_cache_is_read_and_the_network_never_asked(weights, tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(BackboneError, match=f"has no timm/{VIT}/model.safetensors.*hf download"):
        load_timm_backbone(VIT)
    into_cache(tmp_path / "hub", weights(VIT))
    assert load_timm_backbone(VIT).sha256 == digest(weights(VIT))


def test_the_folder_comes_before_the_cache_unless_its_file_is_another(
    weights, tmp_path, monkeypatch
):
    into_cache(tmp_path / "hub", weights(VIT))
    other = tmp_path / "folder" / f"{VIT}.safetensors"
    other.parent.mkdir()
    changed(weights(VIT), other, norm__bias=torch.ones(64))
    monkeypatch.setenv("METAFORMER_WEIGHTS", str(other.parent))
    assert load_timm_backbone(VIT).sha256 == digest(other)
    cached = digest(weights(VIT))
    assert load_timm_backbone(VIT, sha256=cached).sha256 == cached


class Hub(BaseHTTPRequestHandler):
    """As much of the Hugging Face hub as one file needs; told its path by the class below."""

    file: Path

    def do_HEAD(self) -> None:
        self.do_GET(with_body=False)

    def do_GET(self, with_body: bool = True) -> None:
        if self.path.split("?")[0] != f"/timm/{VIT}/resolve/main/model.safetensors":
            self.send_error(404)
            return
        content = self.file.read_bytes()
        self.send_response(200)
        self.send_header("ETag", f'"{digest(self.file)}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def command(environment: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "metaformer.cli", *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_download_happens_when_asked_for(weights, tmp_path):
    handler = type("ThisHub", (Hub,), {"file": weights(VIT)})
    good = boards.write_good(tmp_path / "good", 2)
    detector = tmp_path / "d.metaformer"
    adapt = ("adapt", good, "-o", detector, "--backbone", VIT, "--resolution", 96, "--download")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        environment = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home")}
        done = command(environment, *adapt)
        server.shutdown()
        thread.join()
    assert done.returncode == 0, done.stderr
    # From now on it is in the cache, without --download and without a hub.
    again = command({"HF_HOME": str(tmp_path / "home")}, "info", detector)
    assert json.loads(again.stdout)["settings"]["config"]["backbone_sha256"] == digest(weights(VIT))
    nowhere = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")}
    failed = command(nowhere, *adapt)
    assert failed.returncode == 1
    assert "could not be downloaded" in failed.stderr and "Traceback" not in failed.stderr


# ----------------------------------------------------------------------------------- the detector


@pytest.fixture(scope="session")
def detector(weights) -> Detector:
    universal = Metaformer.from_pretrained(
        backbone=VIT, backbone_weights=weights(VIT), resolution=96
    )
    return universal.adapt([boards.good(seed) for seed in range(3)])


def test_a_detector_records_its_backbone_but_does_not_hold_it(weights, detector, tmp_path):
    detector.save(tmp_path / "d.metaformer")
    header, tensors = read_detector_file(tmp_path / "d.metaformer")
    config = header["settings"]["config"]
    assert (config["backbone"], config["backbone_sha256"]) == (VIT, digest(weights(VIT)))
    assert not {"input_mean", "input_std"} & config.keys()  # those are the backbone's own
    assert {name for name in tensors if name.startswith("support")} == {
        f"support.{i}.16" for i in range(3)
    }
    assert {name.split(".")[0] for name in tensors} == {"support", "mirrored"}


def test_a_saved_detector_needs_the_same_weights(weights, detector, tmp_path, monkeypatch):
    path = tmp_path / "d.metaformer"
    detector.save(path)
    with pytest.raises(DetectorFileError, match=r"d\.metaformer: .*are not on this machine"):
        Detector.load(path)
    other = changed(weights(VIT), tmp_path / "o.safetensors", norm__bias=torch.ones(64))
    with pytest.raises(DetectorFileError, match="not the weights of"):
        Detector.load(path, backbone_weights=other)
    image = boards.defective(7)
    expected = detector.predict(image).raw_score
    assert Detector.load(path, backbone_weights=weights(VIT)).predict(image).raw_score == expected
    monkeypatch.setenv("METAFORMER_WEIGHTS", str(weights(VIT).parent))
    assert Detector.load(path).predict(image).raw_score == expected


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": "local-dir:/tmp"},
        {"backbone": 3},
        {"backbone": CNN},
        {"backbone_sha256": None},
        {"levels": [8]},
        {"levels": []},
    ],
)
def test_a_changed_detector_file_is_refused(weights, detector, tmp_path, change):
    path = tmp_path / "d.metaformer"
    detector.save(path)
    header, tensors = read_detector_file(path)
    header["settings"]["config"].update(change)
    write_detector_file(path, header, tensors)
    with pytest.raises(DetectorFileError):
        Detector.load(path, backbone_weights=weights(VIT))


def test_a_defect_stands_out_even_to_random_features(detector):
    plain = max(detector.predict(boards.good(seed)).raw_score for seed in range(50, 53))
    assert detector.predict(boards.defective(50)).raw_score > plain


def test_aligned_comparison_works_with_it(weights):
    universal = Metaformer.from_pretrained(
        backbone=CNN, backbone_weights=weights(CNN), resolution=96, aligned=True
    )
    aligned = universal.adapt([boards.good(0)])
    same, other = (aligned.predict(make(0)).raw_score for make in (boards.good, boards.defective))
    assert same < 0.05 * other


def test_it_leaves_pytorch_or_says_why_not(detector):
    """What ONNX can express is exported; what it cannot is refused by name."""
    pytest.importorskip("onnx")
    try:
        model = graph_of(detector.adapted, detector.model.size_multiple)
    except UnsupportedExportError as error:
        assert "ONNX cannot express this model" in str(error)
        return
    assert [output.name for output in model.graph.output] == ["raw_maps"]


# ------------------------------------------------------------------------------------ the command


def run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_adapt_and_predict_on_the_command_line(weights, tmp_path):
    good = boards.write_good(tmp_path / "good", 3)
    photos = boards.write_mixed(tmp_path / "photos", 2)
    path, given = tmp_path / "d.metaformer", ("--backbone-weights", weights(VIT))
    options = ("-o", path, "--backbone", VIT, "--resolution", 96)
    refused = run("adapt", good, *options)
    assert refused.exit_code == 1 and "--backbone-weights FILE" in refused.output
    assert run("adapt", good, *options, *given).exit_code == 0
    info = json.loads(run("info", path, "--json", *given).output)
    assert info["settings"]["config"]["backbone"] == VIT
    done = run("predict", path, photos, "-o", tmp_path / "out", *given)
    assert done.exit_code == 0, done.output
    assert "2 images scored" in done.output


def test_evaluate_on_the_command_line(weights, tmp_path):
    trees.write_mvtec(tmp_path / "set")
    output = tmp_path / "r.json"
    result = run(
        *("evaluate", tmp_path / "set", "--shots", 1, "--seeds", "0", "-o", output, "--limit", 4),
        *("--backbone", VIT, "--backbone-weights", weights(VIT), "--resolution", 96),
    )
    assert result.exit_code == 0, result.output
    settings = json.loads(output.read_text())["settings"]
    assert (settings["backbone"], settings["backbone_sha256"]) == (VIT, digest(weights(VIT)))
