"""The moving average of weights, which is what a training publishes."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

_WARMUP_POWER = 0.75


def move_average(average: Sequence[Tensor], current: Sequence[Tensor], step: int, decay: float) -> None:
    """Move averages towards current values, in place.

    Parameters
    ----------
    average, current : sequence of Tensor
        Of the same shapes, floating point.
    step : int
        Steps taken before this one: early on the average follows faster than `decay`, which would keep
        the start.
    decay : float
        Share of the average that a step keeps, at most.
    """
    warming = 1 - (1 + step) ** -_WARMUP_POWER
    update: Any = get_ema_multi_avg_fn(min(decay, warming))
    update(average, current, 0)
