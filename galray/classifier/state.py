"""All that a classifier's training is: kept in one file, and gone on with by however many workers."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from galray.classifier.losses import Balance
from galray.classifier.network import Classifier, Shares, shift_priors
from galray.core.averaging import move_average

if TYPE_CHECKING:
    from galray.classifier.train import ClassifyConfig

STATE_FILE = "state.pt"


@dataclass
class TrainingState:
    """All that a training is; saved and restored as one.

    Attributes
    ----------
    model : Classifier
    average : Classifier
        The exponential moving average of its weights and batch statistics: what is judged and published.
    optimizer : torch.optim.Optimizer
    step : int
        Steps taken.
    """

    model: Classifier
    average: Classifier
    optimizer: torch.optim.Optimizer
    step: int = 0

    @classmethod
    def new(cls, config: ClassifyConfig, model: Classifier) -> TrainingState:
        """Return the state before the first step; the model is on its device already."""
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        return cls(model, copy.deepcopy(model), optimizer)

    def save(self, folder: Path) -> None:
        """Write the state as one file."""
        parts = {name: getattr(self, name).state_dict() for name in ("model", "average", "optimizer")}
        torch.save({**parts, "step": self.step}, folder / STATE_FILE)

    def restore(self, folder: Path) -> None:
        """Go on where a state was saved."""
        # weights_only: a checkpoint from a bucket must not run code here
        state = torch.load(folder / STATE_FILE, weights_only=True, map_location="cpu")
        for name in ("model", "average", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.step = state["step"]

    def update_average(self, decay: float) -> None:
        """Move the average towards the weights and batch statistics."""
        move_average(_averaged(self.average), _averaged(self.model), self.step, decay)

    def published(self, balance: Balance) -> Classifier:
        """Return the average, moved from the shares that training assumed to those that its config states."""
        published = copy.deepcopy(self.average)
        settings = published.config
        shift_priors(published, balance.assumed, Shares(settings.class_shares, settings.prevalence))
        return published


def _averaged(model: nn.Module) -> list[Tensor]:
    statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    return [*(parameter.detach() for parameter in model.parameters()), *statistics]
