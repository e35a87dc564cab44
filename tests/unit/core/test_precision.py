"""Which numbers networks compute in."""

from __future__ import annotations

import pytest
import torch

from galray.core.precision import in_bfloat16


@pytest.mark.parametrize(
    ("instructions", "expected"),
    [
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False}, False),  # emulated: many times slower
        ({"avx2": True, "avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"neon": True, "bf16": True}, True),
        ({"neon": True}, False),
    ],
)
def test_processors_compute_in_bfloat16_where_they_have_instructions(
    monkeypatch: pytest.MonkeyPatch, instructions: dict[str, bool], expected: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    assert in_bfloat16("auto", "cpu") is expected


@pytest.mark.parametrize(("precision", "expected"), [("bfloat16", True), ("float32", False)])
def test_what_is_asked_for_is_done(precision, expected) -> None:
    assert in_bfloat16(precision, torch.device("cpu")) is expected
