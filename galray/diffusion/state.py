"""All that a training run is: kept as one file, and gone on with by however many workers."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from ray.train import Checkpoint
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard

from galray.core.averaging import move_average
from galray.core.errors import InputError
from galray.core.workers import is_first
from galray.diffusion.denoiser import Denoiser
from galray.diffusion.pretrained import trainable_parameters

if TYPE_CHECKING:
    from galray.diffusion.train import TrainConfig

STATE_FILE = "state.pt"
_ADAM_BETAS = (0.9, 0.99)  # gradients of other noise levels come every step: forget them sooner
_PARTLY = StateDictOptions(full_state_dict=True, strict=False)  # what is frozen is not in checkpoints
_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)


@dataclass
class TrainingState:
    """All that a training run is; saved and restored as one.

    Attributes
    ----------
    denoiser : Denoiser
    average : Denoiser
        The exponential moving average of its weights: what is published.
    optimizer : torch.optim.Optimizer
    step : int
        Steps taken, skipped ones included.
    skipped : int
        Steps that changed nothing, since their loss or gradient was not finite.
    """

    denoiser: Denoiser
    average: Denoiser
    optimizer: torch.optim.Optimizer
    step: int = 0
    skipped: int = 0

    @classmethod
    def new(cls, config: TrainConfig, denoiser: Denoiser) -> TrainingState:
        """Return the state before the first step; the denoiser is on its device already."""
        average = copy.deepcopy(denoiser)
        if config.scaling.shard:
            _shard(denoiser)
            _shard(average)
        optimizer = torch.optim.AdamW(
            trainable_parameters(denoiser),
            lr=config.learning_rate,
            betas=_ADAM_BETAS,
            weight_decay=config.weight_decay,
            fused=True,
        )
        return cls(denoiser, average, optimizer)

    def save(self, folder: str) -> None:
        """Write the state as one file; in a sharded run all workers must call this together."""
        state = {
            "denoiser": get_model_state_dict(self.denoiser, options=_FULL),
            "average": self.averaged_weights(),
            "optimizer": get_optimizer_state_dict(self.denoiser, self.optimizer, options=_FULL),
            "step": self.step,
            "skipped": self.skipped,
        }
        if is_first():
            torch.save(state, Path(folder, STATE_FILE))

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on where a checkpoint was taken, by however many workers."""
        with checkpoint.as_directory() as folder:
            state = read_state(Path(folder))
        restore_trained(self.denoiser, state["denoiser"])
        restore_trained(self.average, state["average"])
        set_optimizer_state_dict(self.denoiser, self.optimizer, state["optimizer"], options=_PARTLY)
        self.step, self.skipped = state["step"], state["skipped"]

    def averaged_weights(self) -> dict[str, Any]:
        """Return the averaged weights, undivided; all workers call this together, and the first gets them."""
        return get_model_state_dict(self.average, options=_FULL)

    def update_average(self, decay: float) -> None:
        """Move the average towards the weights."""
        average, weights = trainable_parameters(self.average), trainable_parameters(self.denoiser)
        move_average(average, weights, self.step, decay)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Read the file in a checkpoint's folder."""
    # weights_only: a checkpoint from a bucket must not run code here
    return torch.load(checkpoint / STATE_FILE, weights_only=True, map_location="cpu")


def restore_trained(module: nn.Module, weights: dict[str, Any]) -> None:
    """Load the trained weights of a checkpoint; those that are frozen are where the module came from."""
    missing = {name for name, p in module.named_parameters() if p.requires_grad} - set(weights)
    if missing:
        raise InputError(f"The checkpoint lacks {len(missing)} weights, such as {min(missing)}. Start over.")
    set_model_state_dict(module, weights, options=_PARTLY)


def _shard(denoiser: Denoiser) -> None:
    """Divide weights, gradients and optimiser state among the workers (FSDP2), a U-Net level at a time."""
    unet, encoder = denoiser.unet, cast(nn.Module, denoiser.condition_encoder)
    for level in (*unet.down_blocks, unet.mid_block, *unet.up_blocks, encoder):
        if level is not None:
            fully_shard(cast(nn.Module, level))
    fully_shard(denoiser)
