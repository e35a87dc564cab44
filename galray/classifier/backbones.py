"""What turns an image into features: networks of transformers, from scratch or pretrained."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, ConvNextV2Config, PreTrainedConfig, ResNetConfig, ViTConfig

from galray.core.errors import ConfigError, InputError, nearest
from galray.core.models import refuse_pickled

PRETRAINED = "pretrained"


def _resnet(stem: int, widths: list[int], depth: int) -> ResNetConfig:
    return ResNetConfig(
        embedding_size=stem, hidden_sizes=widths, depths=[depth] * len(widths), layer_type="basic"
    )


def _convnext(widths: list[int], depths: list[int]) -> ConvNextV2Config:
    return ConvNextV2Config(hidden_sizes=widths, depths=depths)


def _vit(width: int, layers: int, heads: int) -> ViTConfig:
    return ViTConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        patch_size=8,
    )


BACKBONES: Mapping[str, PreTrainedConfig] = {
    "resnet-tiny": _resnet(8, [8, 16, 32, 64], 1),
    "resnet-small": _resnet(32, [32, 64, 128, 256], 1),
    "resnet-18-half": _resnet(32, [32, 64, 128, 256], 2),
    "resnet-18": _resnet(64, [64, 128, 256, 512], 2),
    "convnextv2-femto": _convnext([48, 96, 192, 384], [2, 2, 6, 2]),
    "convnextv2-tiny": _convnext([96, 192, 384, 768], [3, 3, 9, 3]),
    "vit-tiny": _vit(192, 12, 3),
    "vit-small": _vit(384, 12, 6),
}


def architecture_of(backbone: str, size_px: int) -> dict[str, Any]:
    """Return a built-in backbone's configuration, as transformers writes it, for images of a size.

    Raises
    ------
    ConfigError
        There is no such backbone, or it cannot take this size.
    """
    if backbone not in BACKBONES:
        close = nearest(backbone, BACKBONES)
        raise ConfigError(f"no backbone {backbone!r}{close}; choose from {', '.join(BACKBONES)}")
    config = copy.deepcopy(BACKBONES[backbone])
    if isinstance(config, ViTConfig):
        if size_px % int(config.patch_size):  # pyright: ignore[reportArgumentType]
            raise ConfigError(
                f"{backbone} cuts images into patches of {config.patch_size} px; {size_px} px are no "
                "multiple of it. Choose another size"
            )
        config.image_size = size_px
    return config.to_dict()


def build(architecture: Mapping[str, Any]) -> nn.Module:
    """Return an untrained network of an architecture that transformers knows; no code comes with it."""
    return AutoModel.from_config(_config(architecture))


def width_of(architecture: Mapping[str, Any]) -> int:
    """Return the number of pooled features."""
    config = _config(architecture)
    widths = getattr(config, "hidden_sizes", None)
    return widths[-1] if widths else config.hidden_size


def _config(architecture: Mapping[str, Any]) -> PreTrainedConfig:
    return AutoConfig.for_model(**architecture)


def load_pretrained(source: str, size_px: int) -> nn.Module:
    """Open a pretrained network, a local folder or hub id, from safetensors alone.

    Raises
    ------
    InputError
        It is not there, holds a pickle, or is no network of transformers.
    ConfigError
        It does not take images of this size, or gives no pooled features.
    """
    if Path(source).is_dir():
        refuse_pickled(Path(source))
    try:
        model = AutoModel.from_pretrained(source, use_safetensors=True, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"--pretrained {source} cannot be opened: {str(error).splitlines()[0]} Give a folder or hub id "
            "with config.json and model.safetensors, of a network that transformers knows."
        ) from error
    check_fit(model, f"--pretrained {source}", size_px)
    return model


@torch.inference_mode()
def check_fit(model: nn.Module, option: str, size_px: int) -> None:
    """Refuse a network that cannot take images of this size, or gives no pooled features.

    Raises
    ------
    ConfigError
    """
    try:
        pooled = model(pixel_values=torch.zeros(1, 3, size_px, size_px)).pooler_output
    except (ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{option} does not take images of {size_px} px or gives no pooled features: "
            f"{str(error).splitlines()[0]} Give its own --size-px, or another network."
        ) from error
    if pooled is None:
        raise ConfigError(f"{option} gives no pooled features. Give another network.")
