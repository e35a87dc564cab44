"""What workers of one training tell each other."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from torch import Tensor


def is_first() -> bool:
    """Say whether this is the worker that speaks for all."""
    return rank_of()[0] == 0


def rank_of() -> tuple[int, int]:
    """Return which worker this is, of how many."""
    if not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def of_all_workers(values: Any) -> Any:
    """Join each worker's tensor, or list; all workers must call this together."""
    if not torch.distributed.is_initialized():
        return values
    shares: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(shares, values.cpu() if isinstance(values, Tensor) else values)
    return torch.cat(shares) if isinstance(values, Tensor) else [value for share in shares for value in share]
