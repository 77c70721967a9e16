"""Any feature model of timm as the frozen backbone of the ``feature`` preset.

timm builds the network, the user has the weights (``backbone_weights``). Which maps are compared
follows from the strides that the network offers; ``docs/backbones.md`` gives the reasons.
"""

from __future__ import annotations

import contextlib
import difflib
import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metaformer.networks.backbone_weights import BackboneError, HubFile, find_weights, read_weights

PYRAMID_LEVELS = (8, 16)
PYRAMID_WEIGHTS = (0.5, 1.0)
PYRAMID_RESOLUTION = 256
"""A network whose maps shrink step by step: as with the backbone inside the package."""
PLAIN_GRID = 32
"""A network of one stride, a ViT: so many tokens a side, as many as the finest of the above."""


class TimmBackbone(nn.Module):
    """(B, 3, H, W) in [0, 1] -> ``{stride: (B, C, H / stride, W / stride)}``, sides multiples of
    the largest stride. Class and register tokens are left out. Made by ``load_timm_backbone``.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: Any, name: str, sha256: str, levels: tuple[int, ...]) -> None:
        super().__init__()
        reductions = [info["reduction"] for info in network.feature_info]
        self.network = network
        self.name = name
        """timm's, with the tag of the weights."""
        self.sha256 = sha256
        self.levels = levels
        self.is_plain = is_plain(reductions)
        last = [len(reductions) - 1 - reductions[::-1].index(level) for level in levels]
        self.channels = {
            level: int(network.feature_info[i]["num_chs"])
            for level, i in zip(levels, last, strict=True)
        }
        # Blocks beyond the deepest map are never run; their weights need not be in memory.
        self.indices = network.prune_intermediate_layers(
            last, prune_norm=not self.is_plain, prune_head=True
        )
        config = network.pretrained_cfg
        self.register_buffer("mean", torch.tensor(config["mean"])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(config["std"])[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        maps = self.network.forward_intermediates(
            (images - self.mean) / self.std,  # (B, 3, H, W)
            indices=self.indices,
            norm=self.is_plain,  # the last block of a ViT is meant to be read after its norm
            output_fmt="NCHW",
            intermediates_only=True,
        )
        return dict(zip(self.levels, maps, strict=True))


def is_plain(reductions: list[int]) -> bool:
    """Whether every map has the same stride, as in a ViT."""
    return len(reductions) > 0 and len(set(reductions)) == 1


def level_settings(backbone: TimmBackbone) -> dict[str, Any]:
    """The fields of ``FeatureConfig`` that suit this backbone."""
    plain = backbone.is_plain
    return {
        "backbone": backbone.name,
        "backbone_sha256": backbone.sha256,
        "levels": backbone.levels,
        "level_weights": (1.0,) if plain else PYRAMID_WEIGHTS,
        "resolution": PLAIN_GRID * backbone.levels[0] if plain else PYRAMID_RESOLUTION,
    }


def load_timm_backbone(
    name: str,
    *,
    weights: Path | None = None,
    sha256: str | None = None,
    levels: tuple[int, ...] | None = None,
    download: bool = False,
) -> TimmBackbone:
    """The backbone ``name`` with its weights, frozen and in evaluation mode.

    Args:
        name: a model of timm, ``vit_small_patch14_dinov2.lvd142m`` for example. What follows the
            dot says which weights; without it timm's first choice is meant.
        weights: safetensors file; looked for as ``find_weights`` says if None.
        sha256: of the weights that are needed; any if None.
        levels: strides to give; those that suit the network if None.
        download: the network may be used if the weights are not on this machine.

    Raises:
        BackboneError: timm is not installed, the name is unknown, the weights are missing, are
            others than needed, do not fit, or the network has no maps that can be compared.
    """
    timm = _import_timm()
    full_name, hub = _look_up(timm, name)
    # Before the network is built: an unknown detector file must not make us build a giant.
    found = find_weights(full_name, hub, file=weights, sha256=sha256, download=download)
    network = _build(timm, full_name)
    offered = [info["reduction"] for info in getattr(network, "feature_info", ())]
    levels = levels or choose_levels(full_name, offered)
    if not set(levels) <= set(offered):
        raise BackboneError(f"{full_name}: has strides {sorted(set(offered))}, asked is {levels}.")
    if not hasattr(network, "forward_intermediates"):
        raise BackboneError(f"{full_name}: timm offers no feature maps of this network.")
    backbone = TimmBackbone(network, full_name, found.sha256, levels)
    _load_fitting(backbone.network, read_weights(found.path), full_name, found.path)
    backbone.eval().requires_grad_(False)
    _try_out(backbone)
    return backbone


def choose_levels(name: str, reductions: list[int]) -> tuple[int, ...]:
    """The strides to compare, of those that a network offers."""
    if is_plain(reductions):
        return (reductions[0],)
    if set(PYRAMID_LEVELS) <= set(reductions):
        return PYRAMID_LEVELS
    raise BackboneError(
        f"{name}: has maps of strides {sorted(set(reductions))}; needed are {PYRAMID_LEVELS}, or "
        f"a single stride as in a ViT."
    )


def _import_timm() -> Any:
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision of another torch
        raise BackboneError(
            f"other backbones need timm and a torchvision that fits the installed torch "
            f"{torch.__version__} ({error}). Run: pip install 'metaformer-ad[backbones]'. The "
            f"backbone inside the package needs neither."
        ) from error
    return timm


def _look_up(timm: Any, name: str) -> tuple[str, HubFile | None]:
    """timm's full name, and where the weights are published."""
    architecture = name.partition(".")[0]
    # timm also takes folders and addresses as names; a name out of a file must not be one.
    if not re.fullmatch(r"\w+(\.\w+)?", name) or not timm.is_model(architecture):
        known = timm.list_models() + timm.list_models(pretrained=True)
        near = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
        near = near or [known_name for known_name in known if name in known_name][:4]
        advice = f" Did you mean {', '.join(near)}?" if near else ""
        raise BackboneError(
            f'no backbone "{name}" in timm {timm.__version__}.{advice} `python -c "import timm; '
            f"print(*timm.list_models(pretrained=True), sep='\\n')\"` lists all."
        )
    tags = timm.list_models(f"{architecture}.*", pretrained=True)
    if "." in name and name not in tags:
        raise BackboneError(
            f"{name}: timm {timm.__version__} knows no such weights of {architecture}, but "
            f"{', '.join(tags) or 'none at all: give the name without what follows the dot'}."
        )
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.tag:
        return architecture, None
    filename = config.hf_hub_filename or "model.safetensors"
    is_published = config.hf_hub_id and filename.endswith(".safetensors")
    hub = HubFile(config.hf_hub_id, filename) if is_published else None
    return f"{architecture}.{config.tag}", hub


def _build(timm: Any, name: str) -> Any:
    """The network with random weights; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        try:
            # ViTs take images of any size only if asked to; other networks do not know the word.
            return timm.create_model(name, pretrained=False, dynamic_img_size=True)
        except TypeError:
            return timm.create_model(name, pretrained=False)


def _load_fitting(network: Any, state: dict[str, Tensor], name: str, path: Path) -> None:
    """Load ``state``, which may hold more than the network has.

    Raises:
        BackboneError: names the first tensor that is missing, of another shape or not finite.
    """
    wanted = network.state_dict()
    source = state
    if not wanted.keys() <= state.keys():
        # Published under other names, the original DINOv3 for example: timm knows how to rename.
        convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
        # If it stumbles this is no file of the network; what is missing is told below.
        with contextlib.suppress(KeyError, AttributeError, RuntimeError, ValueError):
            state = convert(dict(state), network) if convert else state
    for key, tensor in wanted.items():
        # timm would resample patches of another size without a word: look at the source there.
        tensors = source if "patch_embed" in key and key in source else state
        shape = tuple(tensors[key].shape) if key in tensors else None
        if shape != tuple(tensor.shape):
            found = "nothing of that name" if shape is None else f"shape {shape}"
            raise BackboneError(
                f"{path}: not weights of {name}: {key} has shape {tuple(tensor.shape)} there, the "
                f"file has {found}. Give the file of this backbone, or name the backbone of this "
                f"file."
            )
        if not torch.isfinite(state[key]).all():
            raise BackboneError(f"{path}: NaN or infinite values in {key}; the file is damaged.")
    network.load_state_dict({key: state[key].to(tensor.dtype) for key, tensor in wanted.items()})


@torch.inference_mode()
def _try_out(backbone: TimmBackbone) -> None:
    """Raises: BackboneError: the network does not give the maps it promises at any size."""
    largest = max(backbone.levels)
    height, width = 4 * largest, 6 * largest
    try:
        maps = backbone(torch.zeros(1, 3, height, width))
    except (AssertionError, RuntimeError, ValueError, TypeError) as error:
        raise BackboneError(
            f"{backbone.name}: cannot take images of {height} x {width} pixels ({error}). Networks "
            f"of one fixed input size cannot be used."
        ) from error
    for level, features in maps.items():
        expected = (1, backbone.channels[level], height // level, width // level)
        if tuple(features.shape) != expected:
            raise BackboneError(
                f"{backbone.name}: gives a map of shape {tuple(features.shape)} at stride {level}, "
                f"{expected} was expected. This network cannot be used."
            )
