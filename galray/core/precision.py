"""Which numbers a network computes in: bfloat16 where the hardware does, or float32."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["auto", "bfloat16", "float32"]
StatedPrecision = Literal["bfloat16", "float32"]
"""Of what must come out the same on every machine that takes part or goes on: never "auto"."""
_BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


def in_bfloat16(precision: Precision, device: torch.device | str) -> bool:
    """Return whether to compute in bfloat16, by autocast, on this machine's `device`.

    "auto" does where the hardware does: there it trains up to three times as fast as float32. A processor
    without such instructions emulates them, one galaxy after another: sixteen times slower than float32 on
    an AMD EPYC of the third generation.
    """
    if precision != "auto":
        return precision == "bfloat16"
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    instructions = torch.cpu.get_capabilities()
    return any(instructions.get(name) for name in _BFLOAT16_INSTRUCTIONS)
