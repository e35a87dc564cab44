"""The denoiser: a U-Net, its condition encoder and its codec."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from galray.core.errors import ConfigError
from galray.diffusion.codec import Codec, PixelCodec
from galray.diffusion.conditions import ConditionTokens, VoteEncoder, summarise
from galray.diffusion.objective import TIMESTEPS, FlowMatching, Objective
from galray.diffusion.sampler import is_flow


@dataclass(frozen=True)
class DenoiserConfig:
    """The shape of a denoiser; see `PRESETS`.

    Attributes
    ----------
    size_px : int
        Height and width of the images.
    fold : int
        Side of the block of pixels that `PixelCodec` folds into channels.
    channels : tuple of int
        Width of each level; each level has half the resolution of the one before.
    attention : tuple of bool
        Which levels attend to themselves and to the condition tokens. The lowest always should.
    layers_per_level : int
        Residual blocks on each level of the way down; one more on the way up.
    head_dim : int
        Channels of one attention head.
    token_dim : int
        Length of a condition token.
    norm_groups : int
        Groups of the group normalisation.
    """

    size_px: int = 64
    fold: int = 2
    channels: tuple[int, ...] = (64, 128, 192)
    attention: tuple[bool, ...] = (False, False, True)
    layers_per_level: int = 1
    head_dim: int = 32
    token_dim: int = 128
    norm_groups: int = 32

    def __post_init__(self) -> None:
        if not self.channels or len(self.attention) != len(self.channels):
            raise ConfigError(
                f"attention={self.attention} must say yes or no for each level of channels={self.channels}."
            )
        if not self.attention[-1]:
            raise ConfigError("The lowest level must attend: without it the denoiser does not see the votes.")
        step = self.fold * 2 ** (len(self.channels) - 1)
        if self.size_px % step:
            raise ConfigError(
                f"size_px={self.size_px} is no multiple of {step}, the fold times all halvings."
            )
        if any(width % self.norm_groups or width % self.head_dim for width in self.channels):
            raise ConfigError(
                f"channels={self.channels} must be multiples of norm_groups={self.norm_groups} "
                f"and head_dim={self.head_dim}."
            )


PRESETS: dict[str, DenoiserConfig] = {
    "debug": DenoiserConfig(16, 4, (32, 64), (False, True), token_dim=32, norm_groups=8),
    "32px": DenoiserConfig(32, 1),
    "64px": DenoiserConfig(64, 2),
    # A sixth of the arithmetic of "64px": recognisable classes within minutes on a CPU, in coarser detail.
    "64px-quick": DenoiserConfig(64, 4, (64, 96, 160), attention=(False, False, True)),
    "128px": DenoiserConfig(128, 4, (128, 192, 256)),
    "64px-gpu": DenoiserConfig(64, 2, (192, 384, 576), (False, True, True), 2, head_dim=64, token_dim=512),
    "128px-gpu": DenoiserConfig(
        128, 2, (128, 256, 384, 512), (False, False, True, True), 2, head_dim=64, token_dim=512
    ),
}
"""Denoisers by name: the size of their images, for a CPU unless it says ``-gpu``.

What training takes of a GPU in bfloat16, as `memory.training_memory` counts it: weights, optimiser and
average once, and activations for each image of a batch.

=============  ==========  ========  =============  ==============================
name           parameters  once      for each image  largest batch, 24 GiB / 80 GiB
=============  ==========  ========  =============  ==============================
``32px``        10 M       0.25 GiB   17 MiB        1250 / 4200
``64px``        10 M       0.25 GiB   17 MiB        1250 / 4200
``64px-quick``   7 M       0.17 GiB    4 MiB        5450 / 18300
``128px``       21 M       0.50 GiB   27 MiB         750 / 2500
``64px-gpu``   151 M       3.7 GiB   110 MiB         155 / 600
``128px-gpu``  134 M       3.2 GiB   208 MiB          84 / 319
=============  ==========  ========  =============  ==============================
"""


@runtime_checkable  # diffusers checks the types of a pipeline's parts
class ConditionEncoder(Protocol):
    """What the denoiser needs of a condition encoder, an ``nn.Module``: see `VoteEncoder`."""

    def __call__(self, votes: Tensor, weights: Tensor | None = None) -> ConditionTokens:
        """Return the tokens of B galaxies with votes [B, 37], and weights [B, 37] if any."""
        ...

    def unconditional(self, count: int) -> ConditionTokens:
        """Return the tokens of `count` galaxies about which nothing is asked."""
        ...


class Denoiser(nn.Module):
    """Predicts what an `objective.Objective` asks for, at any noise level and for any condition.

    Its ``parameters()`` are all that is trained: those of the network and of the condition encoder.

    Parameters
    ----------
    unet : UNet2DConditionModel
    condition_encoder : ConditionEncoder
        Returns `ConditionTokens` of whatever condition it is called with.
    codec : Codec
        Frozen; images to latents and back.
    scheduler : diffusers scheduler
        ``objective.scheduler()``, or a model folder's: its config tells what is predicted. The U-Net's
        output is that itself, as in Stable Diffusion, except for flow matching: see `preconditioning`.
    """

    def __init__(
        self, unet: UNet2DConditionModel, condition_encoder: ConditionEncoder, codec: Codec, scheduler: Any
    ) -> None:
        super().__init__()
        self.unet, self.condition_encoder, self.codec = unet, condition_encoder, codec
        self.scheduler = scheduler

    def forward(self, latents: Tensor, t: Tensor, *condition: Tensor) -> Tensor:
        """Return the prediction [B, C, h, w].

        Parameters
        ----------
        latents : Tensor of float32, shape (B, C, h, w)
            x_t, galaxies with noise.
        t : Tensor of float32, shape (B,)
            Times in [0, 1]; 1 is noise.
        *condition : Tensor
            What the condition encoder takes: votes [B, 37], and weights [B, 37] if any.
        """
        return self.predict(latents, t, self.condition_encoder(*condition))

    def predict(self, latents: Tensor, t: Tensor, condition: ConditionTokens) -> Tensor:
        """Return the prediction [B, C, h, w] for tokens that are already encoded."""
        if not is_flow(self.scheduler):
            return self._run(latents, t, condition)
        skip, scale_in, scale_out = preconditioning(t.view(-1, 1, 1, 1), self.codec.detail_std)
        return skip * latents - scale_out * self._run(scale_in * latents, t, condition)

    def attend_plainly(self) -> None:
        """Attend in plain steps, not by torch's fused attention: faster to train on CPUs in bfloat16.

        Of so few places as networks from scratch attend to, the fused one takes a quarter of a step on its
        way back. What is predicted is the same, but for rounding.
        """
        self.unet.set_attn_processor(AttnProcessor())

    def _run(self, latents: Tensor, t: Tensor, condition: ConditionTokens) -> Tensor:
        tokens, mask = condition
        timestep = t * TIMESTEPS  # the network embeds its time as a sinusoid made for 1000 discrete steps
        summary = summarise(condition) if self.unet.class_embedding is not None else None
        output = self.unet(latents, timestep, tokens, summary, encoder_attention_mask=mask, return_dict=False)
        return output[0]


def preconditioning(t: Tensor, detail_std: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return (skip, scale_in, scale_out) with which the network's output becomes a velocity.

    The velocity is ``skip * x_t - scale_out * network(scale_in * x_t, t)``. This is the preconditioning
    of Karras et al. (2022, arXiv:2206.00364, eq. 7 and table 1), written for the paths of
    `objective.FlowMatching` and a velocity: the network is asked for what an optimal linear denoiser of data
    of deviation s cannot tell, at unit variance at each noise level,

    .. math::

        \\hat v = \\frac{t - (1 - t) s^2}{q}\\, x_t - \\frac{s}{\\sqrt{q}}\\,
                 F\\Bigl(\\frac{x_t}{\\sqrt{(1 - t)^2 + t^2}}, t\\Bigr), \\qquad q = (1 - t)^2 s^2 + t^2

    For t well above s the network predicts the galaxy, which is smooth. Without this it must pass on noise,
    pixel by pixel, for which folded pixels leave it too few channels: after 250 steps at 64 px the loss
    was 0.71 without, 0.65 with s = 1, and 0.29 with s = 0.25.

    Parameters
    ----------
    t : Tensor of float32
        Times in [0, 1]; the results have its shape.
    detail_std : float
        s, see `PixelCodec`.
    """
    variance = (1 - t).square() * detail_std**2 + t.square()
    skip = (t - (1 - t) * detail_std**2) / variance
    return skip, ((1 - t).square() + t.square()).rsqrt(), detail_std * variance.rsqrt()


def build_denoiser(
    config: DenoiserConfig, codec: Codec | None = None, objective: Objective | None = None
) -> Denoiser:
    """Return a new, untrained denoiser.

    Parameters
    ----------
    config : DenoiserConfig
    codec : Codec, optional
        Fitted to the training images, as `PixelCodec.fit` does. Default: pixels, without statistics.
    objective : Objective, optional
        What it is to be trained on. Default: flow matching.

    Raises
    ------
    ConfigError
        The codec's latents do not suit `config`.
    """
    codec = codec or PixelCodec(config.size_px, config.fold)
    if isinstance(codec, PixelCodec) and (codec.size_px, codec.fold) != (config.size_px, config.fold):
        raise ConfigError(
            f"The codec is for {codec.size_px} px folded by {codec.fold}, the denoiser for "
            f"{config.size_px} px folded by {config.fold}. Fit the codec at the same size_px and fold."
        )
    with torch.device("cpu"):  # a schedule is plain numbers, also where the network has none yet ("meta")
        scheduler = (objective or FlowMatching()).scheduler()
    return Denoiser(_build_unet(config, codec), VoteEncoder(config.token_dim), codec, scheduler)


def _build_unet(config: DenoiserConfig, codec: Codec) -> UNet2DConditionModel:
    latent_channels, side, _ = codec.latent_shape
    # diffusers takes the number of heads under the name of their dimension (its issue 2011).
    heads: Any = tuple(width // config.head_dim for width in config.channels)
    kinds = [
        ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D") if a else ("DownBlock2D", "UpBlock2D")
        for a in config.attention
    ]
    unet = UNet2DConditionModel(
        sample_size=side,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=tuple(down for down, _ in kinds),
        up_block_types=tuple(up for _, up in reversed(kinds)),
        block_out_channels=config.channels,
        layers_per_block=config.layers_per_level,
        cross_attention_dim=config.token_dim,
        attention_head_dim=heads,
        norm_num_groups=config.norm_groups,
        resnet_time_scale_shift="scale_shift",
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=config.token_dim,
    )
    # Start from the linear denoiser alone (see `preconditioning`), not from a random picture on top, and
    # from noise levels alone: a random summary of the votes is one more noise in every layer.
    for layer in (unet.conv_out, cast(nn.Linear, unet.class_embedding)):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(cast(Tensor, layer.bias))
    return unet
