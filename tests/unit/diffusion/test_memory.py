import pytest
import torch

from galray.core.errors import ConfigError
from galray.diffusion.conditions import ConditionTokens
from galray.diffusion.denoiser import PRESETS, Denoiser, build_denoiser
from galray.diffusion.memory import TrainingMemory, training_memory

GIB = 2**30


def saved_for_real(denoiser: Denoiser, count: int) -> int:
    """Return the bytes that autograd saves when the network does compute, in float32 and without weights."""
    weights = {p.untyped_storage().data_ptr() for p in denoiser.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if (at := tensor.untyped_storage().data_ptr()) not in weights:
            kept[at] = tensor
        return tensor

    tokens = ConditionTokens(*(part.detach() for part in denoiser.condition_encoder.unconditional(count)))
    noisy = torch.randn(count, *denoiser.codec.latent_shape)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        prediction = denoiser.predict(noisy, torch.full((count,), 0.5), tokens)
    assert prediction.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_activations_told_are_those_that_a_real_pass_saves(tiny: Denoiser) -> None:
    tiny.train()
    told = training_memory(tiny, bfloat16=False).image_bytes
    seen = [saved_for_real(tiny, count) for count in (2, 4, 8)]
    assert seen[2] - seen[1] == 2 * (seen[1] - seen[0]), "linear in the batch"
    assert told == pytest.approx((seen[2] - seen[1]) / 4, rel=0.02)


def test_nothing_is_changed_and_nothing_computed(tiny: Denoiser) -> None:
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    random_state = torch.get_rng_state()
    training_memory(tiny)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, before[name]) for name, value in tiny.state_dict().items())
    assert all(type(p) is torch.nn.Parameter and p.grad is None for p in tiny.parameters())
    assert not tiny.training


def test_state_is_six_copies_of_what_is_trained_and_one_of_what_is_frozen(tiny: Denoiser) -> None:
    weights = sum(p.numel() for p in tiny.parameters())
    assert training_memory(tiny, bfloat16=False).state_bytes == pytest.approx(24 * weights, rel=0.02)
    tiny.unet.requires_grad_(False)
    network = sum(p.numel() for p in tiny.unet.parameters())
    frozen = training_memory(tiny, bfloat16=False).state_bytes
    assert frozen == pytest.approx(24 * (weights - network) + 4 * network, rel=0.05)


def test_bfloat16_and_checkpointing_save_activations() -> None:
    with torch.device("meta"):
        denoiser = build_denoiser(PRESETS["64px"])
    plain, half = (training_memory(denoiser, bfloat16=bf16).image_bytes for bf16 in (False, True))
    denoiser.unet.enable_gradient_checkpointing()
    checkpointed = training_memory(denoiser).image_bytes
    assert 0.5 * plain < half < plain, "norms stay in float32"
    assert checkpointed < 0.5 * half


def test_largest_batch_fits_and_one_more_does_not() -> None:
    memory = TrainingMemory(state_bytes=2 * GIB, image_bytes=GIB // 10)
    most = memory.largest_batch(24 * GIB)
    assert memory.of_batch(most) <= 0.85 * 24 * GIB < memory.of_batch(most + 1)
    memory.require_fits(most, 24 * GIB)
    with pytest.raises(ConfigError, match=rf"The largest that fits is {most}: lower --batch-size"):
        memory.require_fits(most + 1, 24 * GIB)
    assert memory.largest_batch(2 * GIB) == 0


def test_the_largest_preset_fits_the_gpus_that_it_is_for() -> None:
    with torch.device("meta"):
        denoiser = build_denoiser(PRESETS["128px-gpu"])
    memory = training_memory(denoiser)
    assert memory.largest_batch(24 * GIB) >= 64
    assert memory.largest_batch(80 * GIB) >= 256
