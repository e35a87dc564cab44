"""A denoiser small enough to train and sample in a test."""

from collections.abc import Iterator
from typing import cast

import pytest
import torch

from galray.diffusion.codec import PixelCodec
from galray.diffusion.conditions import condition
from galray.diffusion.denoiser import Denoiser, DenoiserConfig, build_denoiser

TINY = DenoiserConfig(
    size_px=8, fold=2, channels=(16, 32), attention=(False, True), head_dim=16, token_dim=16, norm_groups=8
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small only lose time to several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny() -> Denoiser:
    """An untrained denoiser of 8 px images, the same in every test."""
    torch.manual_seed(0)
    codec = PixelCodec.from_statistics((-0.8, -0.8, -0.9), (0.3, 0.2, 0.2), size_px=8, fold=2)
    denoiser = build_denoiser(TINY, codec).eval()
    # A new network's output is zero, and no layer knows what is asked for; a test of what it sees needs more.
    for layer in (denoiser.unet.conv_out, denoiser.unet.class_embedding):
        torch.nn.init.normal_(cast(torch.nn.Linear, layer).weight, std=0.1)
    return denoiser


@pytest.fixture
def votes() -> torch.Tensor:
    """Votes [8, 37]: four requests, each twice."""
    requests = (["smooth"], {"spiral": 0.7}, ["edge_on", "odd"], ["smooth", "odd", "dust_lane"])
    return torch.stack([condition(request).votes for request in requests]).repeat(2, 1)
