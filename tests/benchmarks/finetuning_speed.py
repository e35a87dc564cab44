"""Speed of fine-tuning Stable Diffusion with galray, beside the loop of diffusers' training example.

    python tests/benchmarks/finetuning_speed.py [steps] [repeats] [batch size]

The other loop does each step what diffusers' ``train_text_to_image.py`` does with its defaults and
``--use_ema``: a DataLoader without processes decodes, resizes and crops the JPEGs and reads tokenised
captions; the frozen autoencoder encodes the images; the frozen text encoder reads the captions; the network
predicts the noise; AdamW; gradient clipping; moving average. galray reads the autoencoder's posterior from
its cache, and does all the rest too. Same network, autoencoder, text encoder, galaxies, batch size and
precision (float32), on all cores. The shape is Stable Diffusion 1.5's at half its width, network and
autoencoder alike, with random weights, at the paper's 424 px. Both are timed after their first steps;
computing the cache, once for all trainings, is given apart. Runs alternate. Prints one JSON object on the
last line.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.training_utils import EMAModel
from hardware import hardware
from noise_galaxies import publish_noise
from PIL import Image
from rates import compared
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader
from training_speed import job_rate
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from galray.core.cells import votes_array
from galray.core.cluster import connect
from galray.core.storage import open_location
from galray.diffusion.captions import PHRASES, leading_answers
from galray.diffusion.train import PRESETS, TrainConfig, train

GALAXIES, SIZE_PX = 64, 424
WARMUP_STEPS = 2

# Ray's workers are nice by default: on a busy machine the other loop would get the processor, they not.
os.environ.setdefault("RAY_worker_niceness", "0")


def main(steps: int = 16, repeats: int = 3, batch_size: int = 2) -> None:
    job, example, cache_s = [], [], 0.0
    with tempfile.TemporaryDirectory(prefix="galray-finetuning-speed-") as name, connect():
        publish_noise(open_location(f"{name}/galaxies"), GALAXIES, SIZE_PX)
        save_half_width(Path(name, "stable-diffusion"))
        for i in range(repeats):
            config = replace(
                PRESETS["paper"].config,
                root=name,
                output=f"{name}/denoiser-{i}",
                stable_diffusion=f"{name}/stable-diffusion",
                train_text_encoder=False,
                scaling=PRESETS["laptop"].config.scaling,
                loader_processes=0,
                precision="float32",
                steps=steps,
                batch_size=batch_size,
                log_every=WARMUP_STEPS,
                checkpoint_every=10 * steps * WARMUP_STEPS,
                sample_every=0,
            )
            started_s = time.perf_counter()
            train(config)
            cache_s = cache_s or time.perf_counter() - started_s
            job.append(job_rate(Path(name), config))
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                example.append(pool.submit(example_rate, config).result())
    figures = {
        "hardware": hardware(),
        "network": "Stable Diffusion 1.5 at half its width, 424 px, float32",
        "batch_size": batch_size,
        "steps": steps,
        "repeats": repeats,
        **compared(job, example, "example"),
        "first_job_with_its_cache_s": round(cache_s, 1),
    }
    print(json.dumps(figures))


def save_half_width(folder: Path) -> None:
    """Save Stable Diffusion 1.5's parts at half their width, with random weights."""
    torch.manual_seed(0)
    words = CLIPTokenizer(model_max_length=77).train_new_from_iterator([", ".join(PHRASES)], vocab_size=400)
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=12,
        num_attention_heads=6,
        bos_token_id=0,
        eos_token_id=1,
    )
    autoencoder: Any = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (64, 128, 256, 256),
        "layers_per_block": 2,
    }
    StableDiffusionPipeline(
        vae=AutoencoderKL(**autoencoder),
        text_encoder=CLIPTextModel(text),
        tokenizer=words,
        unet=UNet2DConditionModel(
            block_out_channels=(160, 320, 640, 640), cross_attention_dim=384, attention_head_dim=8
        ),
        scheduler=noise_schedule(),  # pyright: ignore[reportArgumentType]
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    ).save_pretrained(folder)


def noise_schedule() -> DDPMScheduler:
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


class DecodedEachTime(torch.utils.data.Dataset):
    """JPEGs with their captions' token ids, decoded whenever one is asked for."""

    def __init__(self, root: str, tokenizer: CLIPTokenizer) -> None:
        galaxies = pq.read_table(f"{root}/galaxies/shards/part-0.parquet")
        answers = leading_answers(torch.from_numpy(votes_array(galaxies).copy()))
        captions = [", ".join(PHRASES[index] for index in row) for row in answers]
        self._ids = tokenizer(captions, padding="max_length", return_tensors="pt")["input_ids"]
        self._jpegs = galaxies["image"].to_pylist()

    def __len__(self) -> int:
        return len(self._jpegs)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        with Image.open(io.BytesIO(self._jpegs[index])) as image:
            resized = image.convert("RGB").resize((SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.asarray(resized).copy()).permute(2, 0, 1) / 127.5 - 1
        return {"pixels": pixels, "ids": torch.as_tensor(self._ids[index])}


def example_rate(config: TrainConfig) -> float:
    """Fine-tune as the example does; returns images a second after the warm-up."""
    parts: Any = StableDiffusionPipeline.from_pretrained(config.stable_diffusion, safety_checker=None)
    unet, schedule = parts.unet.train(), noise_schedule()
    parts.vae.requires_grad_(False)
    parts.text_encoder.requires_grad_(False)
    average = EMAModel(unet.parameters(), model_cls=UNet2DConditionModel, model_config=unet.config)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=config.learning_rate)
    loader = DataLoader(
        DecodedEachTime(config.root, parts.tokenizer), config.batch_size, shuffle=True, drop_last=True
    )
    started_s = 0.0
    for step, batch in zip(range(config.steps), loader, strict=False):
        if step == WARMUP_STEPS:
            started_s = time.perf_counter()
        latents = parts.vae.encode(batch["pixels"]).latent_dist.sample() * parts.vae.config.scaling_factor
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, schedule.config["num_train_timesteps"], (len(latents),))
        tokens = parts.text_encoder(batch["ids"], return_dict=False)[0]
        noisy: Any = schedule.add_noise(latents, noise, timesteps)  # pyright: ignore[reportArgumentType]
        loss = mse_loss(unet(noisy, timesteps, tokens, return_dict=False)[0], noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), config.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()
        average.step(unet.parameters())
    return config.batch_size * (config.steps - WARMUP_STEPS) / (time.perf_counter() - started_s)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
