"""What a training starts from: a new network on pixels or latents, or Stable Diffusion."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from galray.core.config import require
from galray.diffusion.codec import Codec, PixelCodec
from galray.diffusion.denoiser import Denoiser, DenoiserConfig, build_denoiser
from galray.diffusion.objective import Diffusion, FlowMatching
from galray.diffusion.pretrained import PretrainedParts, load_autoencoder, load_stable_diffusion

Statistics = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Start:
    """The denoiser before its first step, and the codec whose latents it learns.

    Attributes
    ----------
    network : DenoiserConfig
        Of a new denoiser; its ``size_px`` is that of the images in any case.
    objective : FlowMatching or Diffusion
    stable_diffusion : str
        Folder or hub id of the Stable Diffusion to fine-tune; empty for a new denoiser.
    autoencoder : str
        Folder or hub id of the autoencoder on whose latents a new denoiser works; empty for pixels.
    orientations : int
        How many orientations of a galaxy an autoencoder's cache holds: 1, 2, 4 or 8.
    lora_rank : int
        Rank of the adapters that are trained in the place of the network; 0 trains all of it.
    train_text_encoder : bool
    """

    network: DenoiserConfig
    objective: FlowMatching | Diffusion
    stable_diffusion: str = ""
    autoencoder: str = ""
    orientations: int = 1
    lora_rank: int = 0
    train_text_encoder: bool = False

    def __post_init__(self) -> None:
        require(
            not (self.stable_diffusion and self.autoencoder),
            "--stable-diffusion brings its own autoencoder: leave --autoencoder out.",
        )
        require(
            bool(self.stable_diffusion) or not (self.lora_rank or self.train_text_encoder),
            "--lora-rank and --train-text-encoder are for fine-tuning: give --stable-diffusion.",
        )
        require(
            not self.stable_diffusion or isinstance(self.objective, Diffusion),
            "Stable Diffusion predicts no flow: take a preset that learns diffusion in steps, such as paper.",
        )

    def codec(self) -> Codec:
        """Return the codec; without statistics of these galaxies where `fits_statistics`."""
        size_px = self.network.size_px
        if self.stable_diffusion:
            return self._parts().codec
        if self.autoencoder:
            return load_autoencoder(self.autoencoder, size_px=size_px, orientations=self.orientations)
        return PixelCodec(size_px, self.network.fold)

    @property
    def fits_statistics(self) -> bool:
        """Whether the latents' scale is the galaxies' own, or the one that the network was trained with."""
        return not self.stable_diffusion

    def denoiser(self, seed: int, statistics: Statistics | None) -> Denoiser:
        """Return the untrained denoiser; the same for the same seed.

        Parameters
        ----------
        seed : int
        statistics : (Tensor, Tensor) or None
            Mean and deviation of the codec's latents, as `Codec.fit_statistics` took them.
        """
        torch.manual_seed(seed)
        if self.stable_diffusion:
            return Denoiser(*self._parts(), self.objective.scheduler())
        codec = self.codec()
        if statistics is not None:
            codec.mean.copy_(statistics[0])
            codec.std.copy_(statistics[1])
        return build_denoiser(self.network, codec, self.objective)

    def _parts(self) -> PretrainedParts:
        return load_stable_diffusion(
            self.stable_diffusion,
            size_px=self.network.size_px,
            orientations=self.orientations,
            lora_rank=self.lora_rank,
            train_text_encoder=self.train_text_encoder,
        )
