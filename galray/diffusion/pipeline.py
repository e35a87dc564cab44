"""A denoiser as a diffusers pipeline: votes in, galaxies out; saved as a model folder."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils.logging import disable_progress_bar
from torch import Tensor

from galray.core.errors import ConfigError, InputError
from galray.core.manifest import local_folder
from galray.core.models import refuse_pickled
from galray.core.storage import Location
from galray.diffusion.codec import Codec, to_uint8
from galray.diffusion.conditions import Condition, ConditionTokens
from galray.diffusion.denoiser import ConditionEncoder, Denoiser
from galray.diffusion.sampler import OUTLINE_UNTIL, Guidance, sample, scheduler_named


class GalaxyPipeline(DiffusionPipeline):
    """Votes in, galaxies out; a diffusers pipeline.

    ``save_pretrained(folder)`` writes safetensors, JSON, and ``pipeline.py``, one line that imports this
    class. The folder opens with ``GalaxyPipeline.from_pretrained(folder)``, which never runs that line,
    and, where galray is installed, with diffusers alone:
    ``DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)``. diffusers 0.42 imports no package
    because a folder names it; a file in the folder that the caller trusts is its only way to a class
    that is not its own.

    Parameters
    ----------
    unet, condition_encoder, codec, scheduler
        The parts of a `Denoiser`.
    """

    def __init__(
        self, unet: UNet2DConditionModel, condition_encoder: ConditionEncoder, codec: Codec, scheduler: Any
    ) -> None:
        super().__init__()
        self.register_modules(
            unet=unet, condition_encoder=condition_encoder, codec=codec, scheduler=scheduler
        )

    @classmethod
    def from_denoiser(cls, denoiser: Denoiser) -> Self:
        """Return a pipeline around the parts of `denoiser`, which are shared, not copied."""
        return cls(denoiser.unet, denoiser.condition_encoder, denoiser.codec, denoiser.scheduler)

    @property
    def denoiser(self) -> Denoiser:
        """The parts as a `Denoiser`, shared, e.g. to train on."""
        return Denoiser(self.unet, self.condition_encoder, self.codec, self.scheduler)

    def save_config(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Write the folder's index, and the line of Python by which diffusers alone finds this class."""
        super().save_config(save_directory, *args, **kwargs)
        name, index = type(self).__name__, Path(save_directory, self.config_name)
        named = json.loads(index.read_text()) | {"_class_name": ["pipeline", name]}
        index.write_text(json.dumps(named, indent=2) + "\n")
        index.with_name("pipeline.py").write_text(f"from {type(self).__module__} import {name}\n")

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """Read the folder's index, but take this very class instead of the one that the folder names."""
        config: Any = super().load_config(*args, **kwargs)
        return config | {"_class_name": cls.__name__}

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Import galray's own modules that the parts come from, as diffusers imports none."""
        for part in config_dict.values():
            if isinstance(part, list | tuple) and str(part[0]).startswith("galray."):
                importlib.import_module(part[0])
        return super().extract_init_dict(config_dict, **kwargs)

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, folder: str | os.PathLike, **kwargs: Any
    ) -> Self:
        """Open a model folder.

        Parameters
        ----------
        folder : path
            A local folder, as `save_pretrained` wrote it.
        **kwargs
            As diffusers' ``DiffusionPipeline.from_pretrained``.

        Raises
        ------
        InputError
            There is no model folder at that path, or it holds a pickled file.
        """
        check_model_folder(folder)
        return super().from_pretrained(
            folder, **{"low_cpu_mem_usage": False, **kwargs, "use_safetensors": True}
        )

    def __call__(
        self,
        votes: Tensor,
        weights: Tensor | None = None,
        *,
        seeds: Sequence[int] | None = None,
        num_steps: int = 30,
        guidance_scale: float = 2.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        guidance_rescale: float = 0.0,
        outline: Condition | None = None,
        outline_until: float = OUTLINE_UNTIL,
        sampler: str = "unipc",
        start: np.ndarray | None = None,
        start_time: float = 1.0,
    ) -> np.ndarray:
        """Paint one galaxy for each row of votes.

        Parameters
        ----------
        votes : Tensor of float32, shape (B, 37)
            NaN where anything goes; see `conditions.condition`.
        weights : Tensor of float32, shape (B, 37), optional
        seeds : sequence of int, optional
            One for each galaxy; the same seed and condition give the same galaxy in any batch.
            Default: 0 to B-1.
        num_steps : int
        guidance_scale, guidance_interval, guidance_rescale
            See `sampler.Guidance`.
        outline : Condition, optional
            Votes and weights, shape (B, 37) each, asked for at times above `outline_until` instead.
        outline_until : float
        sampler : str
            One of ``sampler.SAMPLERS``.
        start : ndarray of uint8, shape (B, H, W, 3), optional
            Images to vary, of the codec's size, instead of painting from noise alone.
        start_time : float
            How far noise hides them first: 0 not at all, 1 wholly; see `sampler.sample`.

        Returns
        -------
        ndarray of uint8, shape (B, H, W, 3)

        Raises
        ------
        ConfigError
            An option out of range, or not one seed for each galaxy.
        """
        seeds = range(len(votes)) if seeds is None else seeds
        if len(seeds) != len(votes):
            raise ConfigError(f"{len(votes)} galaxies need as many seeds, not {len(seeds)}.")
        with torch.inference_mode():
            latents = sample(
                self.denoiser.predict,
                seeds,
                self.codec.latent_shape,
                self._encoded(votes, weights),
                self.condition_encoder.unconditional(len(votes)),
                scheduler=scheduler_named(sampler, self.scheduler),
                num_steps=num_steps,
                guidance=Guidance(guidance_scale, guidance_interval, guidance_rescale),
                outline=self._encoded(*outline) if outline else None,
                outline_until=outline_until,
                start=None if start is None else self.codec.encode(torch.from_numpy(start).to(self.device)),
                start_time=start_time,
            )
            return to_uint8(self.codec.decode(latents)).cpu().numpy()

    def _encoded(self, votes: Tensor, weights: Tensor | None) -> ConditionTokens:
        weights = weights if weights is None else weights.to(self.device)
        return self.condition_encoder(votes.to(self.device), weights)


def check_model_folder(folder: str | os.PathLike) -> None:
    """Refuse what is no model folder, and any that holds a pickle.

    Raises
    ------
    InputError
    """
    if not Path(folder, DiffusionPipeline.config_name).is_file():
        raise InputError(
            f"{folder} is no model folder: it has no {DiffusionPipeline.config_name}. "
            "Give the folder that training wrote."
        )
    refuse_pickled(Path(folder))


def open_published(denoiser: Location) -> GalaxyPipeline:
    """Open a published denoiser, without the bar that diffusers draws for the tenth of a second.

    Raises
    ------
    InputError
        There is none, or a file is not the one that was published.
    """
    disable_progress_bar()
    with local_folder(denoiser, "denoiser") as folder:
        return GalaxyPipeline.from_pretrained(folder)
