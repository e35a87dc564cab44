"""A Stable Diffusion of a few thousand weights, saved by diffusers in the layout of the real one."""

import json
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from safetensors.torch import load_file, save_file
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from galray.diffusion.captions import PHRASES

TOKEN_DIM = 16


def tokenizer() -> CLIPTokenizer:
    """A byte-pair encoding of the words that galaxies are described with."""
    return CLIPTokenizer(model_max_length=77).train_new_from_iterator([", ".join(PHRASES)], vocab_size=400)


def text_model(vocabulary: int) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=TOKEN_DIM,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=0,
        eos_token_id=1,
    )
    return CLIPTextModel(config).eval()


def autoencoder(levels: int = 4, **options: object) -> AutoencoderKL:
    """An autoencoder that shrinks by 8, as the real one, or by half as much for each level fewer."""
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": (8,) * levels,
        "norm_num_groups": 4,
    }
    return AutoencoderKL(**{**blocks, **options}).eval()  # type: ignore[arg-type]


def unet(**options: object) -> UNet2DConditionModel:
    """A U-Net of the real one's levels, which halve three times."""
    shape = {
        "block_out_channels": (8, 8, 16, 16),
        "layers_per_block": 1,
        "cross_attention_dim": TOKEN_DIM,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**{**shape, **options}).eval()  # type: ignore[arg-type]


def save(folder: Path, **unet_options: object) -> None:
    """Save an untrained pipeline, the same each time."""
    torch.manual_seed(0)
    words = tokenizer()
    pipeline = StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=text_model(len(words)),
        tokenizer=words,
        unet=unet(**unet_options),
        scheduler=PNDMScheduler(steps_offset=1, skip_prk_steps=True),  # type: ignore[arg-type]
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    _age(folder, words)


def _age(folder: Path, words: CLIPTokenizer) -> None:
    """Bring files into the form of 2022, in which the real model is published."""
    (folder / "tokenizer" / "tokenizer.json").unlink()
    words.backend_tokenizer.model.save(str(folder / "tokenizer"))
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(_TOKENIZER_CONFIG))
    weights = folder / "text_encoder" / "model.safetensors"
    aged = {f"text_model.{name}": tensor for name, tensor in load_file(weights).items()}
    save_file({**aged, "text_model.embeddings.position_ids": torch.arange(77)[None]}, weights)
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({_aged_attention(name): tensor for name, tensor in load_file(weights).items()}, weights)


def _aged_attention(name: str) -> str:
    for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
        name = name.replace(new, old)
    return name


_END = {
    "__type": "AddedToken",
    "content": "<|endoftext|>",
    "lstrip": False,
    "normalized": True,
    "rstrip": False,
    "single_word": False,
}
_TOKENIZER_CONFIG = {
    "add_prefix_space": False,
    "bos_token": {**_END, "content": "<|startoftext|>"},
    "do_lower_case": True,
    "eos_token": _END,
    "errors": "replace",
    "model_max_length": 77,
    "pad_token": "<|endoftext|>",
    "tokenizer_class": "CLIPTokenizer",
    "unk_token": _END,
}
