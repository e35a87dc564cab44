"""What a training starts from: a new network on pixels or latents, Stable Diffusion, or another denoiser."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from galray.core.config import require
from galray.core.errors import ConfigError
from galray.core.manifest import Manifest, ancestry
from galray.core.storage import open_location
from galray.data.labelled import Labelled
from galray.data.lineage import JUDGED_SPLITS, refuse_other_labels, refuse_seen
from galray.diffusion.codec import Codec, PixelCodec
from galray.diffusion.denoiser import Denoiser, DenoiserConfig, build_denoiser
from galray.diffusion.objective import Diffusion, FlowMatching
from galray.diffusion.pipeline import open_published
from galray.diffusion.pretrained import PretrainedParts, load_autoencoder, load_stable_diffusion

Statistics = tuple[Tensor, Tensor]
_LEARNT = ("prediction_type", "rescale_betas_zero_snr")


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
    start_from : str
        URI of a published denoiser to go on from, its codec and statistics included; its averaged weights
        are what was published.
    """

    network: DenoiserConfig
    objective: FlowMatching | Diffusion
    stable_diffusion: str = ""
    autoencoder: str = ""
    orientations: int = 1
    lora_rank: int = 0
    train_text_encoder: bool = False
    start_from: str = ""

    def __post_init__(self) -> None:
        require(
            not (self.start_from and (self.stable_diffusion or self.autoencoder)),
            "--start-from brings its own network and codec: leave --stable-diffusion and --autoencoder out.",
        )
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
        if self.start_from:
            return self._published().codec
        if self.stable_diffusion:
            return self._parts().codec
        if self.autoencoder:
            return load_autoencoder(self.autoencoder, size_px=size_px, orientations=self.orientations)
        return PixelCodec(size_px, self.network.fold)

    @property
    def fits_statistics(self) -> bool:
        """Whether the latents' scale is the galaxies' own, or the one that the network was trained with."""
        return not (self.stable_diffusion or self.start_from)

    def denoiser(self, seed: int, statistics: Statistics | None) -> Denoiser:
        """Return the untrained denoiser; the same for the same seed.

        Parameters
        ----------
        seed : int
        statistics : (Tensor, Tensor) or None
            Mean and deviation of the codec's latents, as `Codec.fit_statistics` took them.
        """
        torch.manual_seed(seed)
        if self.start_from:
            return self._published()
        if self.stable_diffusion:
            return Denoiser(*self._parts(), self.objective.scheduler())
        codec = self.codec()
        if statistics is not None:
            codec.mean.copy_(statistics[0])
            codec.std.copy_(statistics[1])
        return build_denoiser(self.network, codec, self.objective)

    def _published(self) -> Denoiser:
        """Open the denoiser to go on from.

        Raises
        ------
        InputError
            There is none.
        ConfigError
            It was trained for other images, or to predict something else.
        """
        denoiser = open_published(open_location(self.start_from)).denoiser.train()
        size_px, wanted = denoiser.codec.size_px, self.objective.scheduler().config
        if size_px != self.network.size_px:
            raise ConfigError(
                f"--start-from {self.start_from} is of {size_px} px: give --denoiser.size-px {size_px}."
            )
        if any(denoiser.scheduler.config.get(name) != wanted.get(name) for name in _LEARNT):
            raise ConfigError(
                f"--start-from {self.start_from} was trained with another objective "
                f"({denoiser.scheduler.config['prediction_type']}): give --objective as it was then."
            )
        return denoiser

    def _parts(self) -> PretrainedParts:
        return load_stable_diffusion(
            self.stable_diffusion,
            size_px=self.network.size_px,
            orientations=self.orientations,
            lora_rank=self.lora_rank,
            train_text_encoder=self.train_text_encoder,
        )


def check_start(uri: str, labelled: Labelled | None) -> dict[str, str]:
    """Return the fingerprint of a denoiser to go on from, having made sure that it saw no galaxy that judges.

    Raises
    ------
    InputError
        There is none.
    LineageError
        It, or what it came from, has seen galaxies that judge, or known labels that `labelled` hides; or its
        history cannot be vouched for.
    """
    if not uri:
        return {}
    place = open_location(uri)
    history = ancestry(place)
    refuse_seen(history, JUDGED_SPLITS, "what --start-from leads to")
    refuse_other_labels(history, labelled, "this denoiser")
    return {place.uri: Manifest.read(place, "denoiser").fingerprint}
