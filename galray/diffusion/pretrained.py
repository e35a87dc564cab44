"""Stable Diffusion as a start: its parts as a denoiser's parts, with or without LoRA.

Fine-tuning it is training with another network, condition encoder and codec; see `denoiser.Denoiser`. Its
autoencoder alone serves a network that is trained from scratch on latents.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from huggingface_hub import snapshot_download
from peft import LoraConfig
from torch import nn
from transformers.models.clip.modeling_clip import CLIPTextModel
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from galray.core.errors import ConfigError, InputError
from galray.core.models import refuse_pickled
from galray.diffusion.autoencoder import AutoencoderCodec
from galray.diffusion.captions import CaptionEncoder

INDEX = "model_index.json"
CLASSES = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "tokenizer": "CLIPTokenizer",
}
NETWORKS = ("unet", "vae", "text_encoder")
CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
TEXT_WEIGHTS = "model.safetensors"
# The hub's folder also holds the same weights pickled, halved and averaged: several times the download.
PIPELINE_FILES = (
    INDEX,
    *(f"{part}/{file}" for part in NETWORKS for file in (CONFIG, WEIGHTS, TEXT_WEIGHTS)),
    "tokenizer/*",
)
AUTOENCODER_FILES = (CONFIG, WEIGHTS, f"vae/{CONFIG}", f"vae/{WEIGHTS}")
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


class PretrainedParts(NamedTuple):
    """The parts of a `denoiser.Denoiser`, in its order."""

    unet: UNet2DConditionModel
    condition_encoder: CaptionEncoder
    codec: AutoencoderCodec


def load_stable_diffusion(
    source: str,
    *,
    size_px: int = 424,
    orientations: int = 1,
    lora_rank: int = 0,
    train_text_encoder: bool = False,
) -> PretrainedParts:
    """Load the parts of a Stable Diffusion 1.x, ready to be trained.

    Parameters
    ----------
    source : str
        A folder in the layout of ``StableDiffusionPipeline.save_pretrained``, or a hub id such as
        ``stable-diffusion-v1-5/stable-diffusion-v1-5``.
    size_px : int
        Height and width of the images; a multiple of 8. The U-Net takes any.
    orientations : int
        How many orientations of a galaxy the codec caches, see `AutoencoderCodec`.
    lora_rank : int
        Rank of the adapters of the U-Net's attention, which alone are trained of it then (Hu et al. 2021,
        arXiv:2106.09685). 0 trains the whole U-Net.
    train_text_encoder : bool
        Whether the text encoder is trained, whole, or frozen.

    Returns
    -------
    PretrainedParts
        In float32. Whatever is to be trained requires gradients; see `trainable_parameters`.

    Raises
    ------
    InputError
        There is no such folder, it holds a pickled file, or the hub does not hand it out; it is not in Stable
        Diffusion's layout.
    ConfigError
        `lora_rank` is negative, or the codec's options are out of range.
    """
    if lora_rank < 0:
        raise ConfigError(
            f"lora_rank={lora_rank} must be 0, for full fine-tuning, or more; 8 to 64 are usual."
        )
    folder = _local_folder(source, PIPELINE_FILES)
    _check_layout(folder)
    parts = _load(folder, size_px, orientations)
    _check_fit(folder, parts)
    parts.condition_encoder.requires_grad_(train_text_encoder)
    if lora_rank:
        add_adapters(parts.unet, lora_rank)
    return parts


def load_autoencoder(source: str, *, size_px: int, orientations: int = 1) -> AutoencoderCodec:
    """Load an ``AutoencoderKL`` as a codec, for a denoiser that is trained from scratch on its latents.

    Parameters
    ----------
    source : str
        A folder or hub id of the autoencoder itself, such as ``stabilityai/sd-vae-ft-mse``, or of a pipeline
        that holds one.
    size_px, orientations : int
        See `AutoencoderCodec`. Its statistics are yet to be fitted.

    Raises
    ------
    InputError
        As `load_stable_diffusion`.
    """
    folder = _local_folder(source, AUTOENCODER_FILES)
    folder = folder / "vae" if (folder / "vae").is_dir() else folder
    if (found := _read_json(folder / CONFIG).get("_class_name")) != CLASSES["vae"]:
        raise InputError(f"{folder} holds {found}, and {CLASSES['vae']} is needed here. Give another folder.")
    autoencoder = _open(AutoencoderKL, folder, WEIGHTS)
    return AutoencoderCodec.from_autoencoder(autoencoder, size_px=size_px, orientations=orientations)


def _local_folder(source: str, files: Sequence[str]) -> Path:
    """Return the folder, of which the files are fetched from the hub if it is not here."""
    if Path(source).is_dir():
        refuse_pickled(Path(source))
        return Path(source)
    if not _HUB_ID.fullmatch(source):
        raise InputError(f"{source}: there is no such folder, and it is no id of the Hugging Face hub.")
    try:
        return Path(snapshot_download(source, allow_patterns=list(files)))
    except Exception as error:  # the hub's client raises those of its HTTP library too
        raise InputError(
            f"{source} is no folder here, and the Hugging Face hub did not hand it out: {_first_line(error)}."
            " Give the path of a folder that holds the model, or mend the network or the name."
        ) from error


def _check_layout(folder: Path) -> None:
    """Refuse what is not laid out as Stable Diffusion."""
    index = _read_json(folder / INDEX)
    found = {part: entry[-1] for part, entry in index.items() if isinstance(entry, list) and entry}
    wrong = [part for part, name in CLASSES.items() if found.get(part) != name]
    extra = [part for part, name in found.items() if part.endswith("_2") and name]
    if wrong or extra:
        raise InputError(
            f"{folder} is not in Stable Diffusion's layout: its {INDEX} names "
            f"{', '.join(f'{part}={found.get(part)}' for part in wrong + extra)}, where "
            f"{', '.join(f'{part}={CLASSES.get(part)}' for part in wrong + extra)} is needed. "
            "Give Stable Diffusion 1.x as diffusers saves it."
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(
            f"{path.parent} holds no model of diffusers: it has no {path.name}. Give the folder that does."
        ) from error
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}. Fetch it again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: it holds no settings. Fetch it again.")
    return content


def _load(folder: Path, size_px: int, orientations: int) -> PretrainedParts:
    unet = _open(UNet2DConditionModel, folder / "unet", WEIGHTS)
    autoencoder = _open(AutoencoderKL, folder / "vae", WEIGHTS)
    text_model = _open(CLIPTextModel, folder / "text_encoder", TEXT_WEIGHTS)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}/tokenizer does not open: {_first_line(error)}") from error
    codec = AutoencoderCodec.from_autoencoder(autoencoder, size_px=size_px, orientations=orientations)
    return PretrainedParts(unet, CaptionEncoder.from_parts(text_model, tokenizer), codec)


def _open(kind: Any, folder: Path, weights: str) -> Any:
    """Open one model in float32; weights that its file lacks would stay random, so none may."""
    if not (folder / weights).is_file():
        raise InputError(f"{folder} lacks {weights}. Save the model again with safe_serialization=True.")
    options = {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    try:
        model, report = kind.from_pretrained(folder, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{folder} does not open: {_first_line(error)} Fetch it again.") from error
    if report["missing_keys"]:
        raise InputError(
            f"{folder / weights} lacks {len(report['missing_keys'])} weights, such as "
            f"{min(report['missing_keys'])}. Fetch it again."
        )
    return model.float()


def _check_fit(folder: Path, parts: PretrainedParts) -> None:
    needed = {
        "in_channels": parts.codec.latent_shape[0],
        "out_channels": parts.codec.latent_shape[0],
        "cross_attention_dim": parts.condition_encoder.text_model.config.hidden_size,
    }
    for name, value in needed.items():
        if parts.unet.config[name] != value:
            raise InputError(
                f"{folder}: the U-Net's {name} is {parts.unet.config[name]}, and its autoencoder and text "
                f"encoder need {value}. Give a text-to-image model, not one for inpainting or depth."
            )


def add_adapters(unet: UNet2DConditionModel, rank: int) -> None:
    """Freeze a U-Net and add LoRA adapters of the given rank to its attention, which change nothing yet."""
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(LORA_TARGETS)))


def merge_adapters(unet: UNet2DConditionModel) -> None:
    """Add the adapters, if there are any, to the weights that they adapt, and remove them.

    The U-Net computes the same and is saved like any other: its folder opens without peft.
    """
    if getattr(unet, "peft_config", None):
        unet.fuse_lora(safe_fusing=True)
        unet.unload_lora()


def trainable_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that training changes: with LoRA only adapters, nothing of a frozen encoder.

    Raises
    ------
    ConfigError
        There is none.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not trained:
        raise ConfigError(f"Nothing of this {type(module).__name__} is to be trained: all of it is frozen.")
    return trained


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
