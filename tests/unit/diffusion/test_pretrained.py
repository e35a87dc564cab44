import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors.torch import load_file, save_file

from galray.core.errors import ConfigError, InputError
from galray.diffusion.captions import caption
from galray.diffusion.denoiser import Denoiser
from galray.diffusion.objective import PAPER
from galray.diffusion.pipeline import GalaxyPipeline
from galray.diffusion.pretrained import (
    PretrainedParts,
    load_autoencoder,
    load_stable_diffusion,
    merge_adapters,
    trainable_parameters,
)
from tests.unit.diffusion import tiny_stable_diffusion

SIZE_PX = 72  # latents of 9 x 9, which the U-Net halves to 5, 3 and 2: odd, as those of 424 px are
UNET = "unet/diffusion_pytorch_model.safetensors"

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stable_diffusion")
    tiny_stable_diffusion.save(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """One to be damaged."""
    folder = tmp_path / "copy"
    for file in saved.rglob("*.*"):
        target = folder / file.relative_to(saved)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    return folder


def load(folder: Path, **options: object) -> PretrainedParts:
    return load_stable_diffusion(str(folder), size_px=SIZE_PX, **options)  # type: ignore[arg-type]


def denoiser_of(parts: PretrainedParts) -> Denoiser:
    return Denoiser(*parts, PAPER.scheduler())


def predict(parts: PretrainedParts, votes: torch.Tensor) -> torch.Tensor:
    noisy = torch.randn(len(votes), *parts.codec.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return denoiser_of(parts)(noisy, torch.full((len(votes),), 0.5), votes)


def train_one_step(parts: PretrainedParts, votes: torch.Tensor) -> set[str]:
    """Take one step on random galaxies, from the codec's cache; returns the parameters that changed."""
    denoiser = denoiser_of(parts)
    before = {name: tensor.clone() for name, tensor in denoiser.state_dict().items()}
    images = torch.randint(256, (len(votes), SIZE_PX, SIZE_PX, 3)).to(torch.uint8)
    latents = parts.codec.latents(parts.codec.prepare(images), torch.zeros(len(votes)).long())
    draws = PAPER.draw(tuple(latents.shape), torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(trainable_parameters(denoiser), lr=0.01, weight_decay=0.0)
    PAPER.loss(denoiser, latents, draws, votes).per_galaxy.mean().backward()
    optimizer.step()
    after = denoiser.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_the_real_layout_is_read(saved: Path, votes: torch.Tensor) -> None:
    parts = load(saved)
    weights = load_file(saved / UNET)
    assert all(torch.equal(weights[name], value) for name, value in parts.unet.state_dict().items())
    text = load_file(saved / "text_encoder" / "model.safetensors")
    for name, value in parts.condition_encoder.text_model.state_dict().items():
        assert torch.equal(text[f"text_model.{name}"], value)
    query = load_file(saved / "vae" / UNET.split("/")[1])["encoder.mid_block.attentions.0.query.weight"]
    encoder = parts.codec.autoencoder.state_dict()
    assert torch.equal(encoder["encoder.mid_block.attentions.0.to_q.weight"], query)
    assert parts.codec.latent_shape == (4, 9, 9)
    assert parts.codec.std.flatten().tolist() == pytest.approx([1 / 0.18215] * 4)
    assert predict(parts, votes).isfinite().all()


def test_tokens_are_those_of_the_pipeline_itself(saved: Path, votes: torch.Tensor) -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(saved)
    prompts = [caption(row) for row in votes]
    expected, without = pipeline.encode_prompt(prompts, "cpu", 1, True)
    encoder = load(saved).condition_encoder
    torch.testing.assert_close(encoder(votes).tokens, expected)
    torch.testing.assert_close(encoder.unconditional(8).tokens, without)


def test_an_autoencoder_alone_is_a_codec(saved: Path) -> None:
    of_pipeline = load_autoencoder(str(saved), size_px=SIZE_PX)
    alone = load_autoencoder(str(saved / "vae"), size_px=SIZE_PX)
    assert alone.fingerprint() == of_pipeline.fingerprint() == load(saved).codec.fingerprint()
    with pytest.raises(InputError, match="holds UNet2DConditionModel, and AutoencoderKL is needed"):
        load_autoencoder(str(saved / "unet"), size_px=SIZE_PX)
    with pytest.raises(InputError, match=r"has no config\.json"):
        load_autoencoder(str(saved / "tokenizer"), size_px=SIZE_PX)


@pytest.mark.parametrize("train_text_encoder", [False, True])
def test_full_fine_tuning_changes_the_network_and_not_the_codec(
    saved: Path, votes: torch.Tensor, train_text_encoder: bool
) -> None:
    parts = load(saved, train_text_encoder=train_text_encoder)
    changed = train_one_step(parts, votes)
    assert {name.split(".")[0] for name in changed} == (
        {"unet", "condition_encoder"} if train_text_encoder else {"unet"}
    )
    unet = {f"unet.{name}" for name, _ in parts.unet.named_parameters()}
    assert unet <= changed


def test_lora_changes_adapters_alone(saved: Path, votes: torch.Tensor) -> None:
    parts = load(saved, lora_rank=2)
    torch.testing.assert_close(predict(parts, votes), predict(load(saved), votes))
    changed = train_one_step(parts, votes)
    assert changed
    assert all(name.startswith("unet.") and ".lora_" in name for name in changed)
    count = sum(p.numel() for p in trainable_parameters(parts.unet))
    assert count < 0.2 * sum(p.numel() for p in parts.unet.parameters())


def test_merged_adapters_compute_the_same_and_leave_no_trace(saved: Path, votes: torch.Tensor) -> None:
    parts = load(saved, lora_rank=2)
    untrained = predict(parts, votes)
    for _ in range(3):
        train_one_step(parts, votes)
    trained = predict(parts, votes)
    assert (trained - untrained).abs().max() > 1e-3
    merge_adapters(parts.unet)
    torch.testing.assert_close(predict(parts, votes), trained, atol=1e-5, rtol=1e-4)
    assert set(parts.unet.state_dict()) == set(load(saved).unet.state_dict())
    merge_adapters(parts.unet)
    torch.testing.assert_close(predict(parts, votes), trained, atol=1e-5, rtol=1e-4)


def open_with_diffusers_alone(folder: Path) -> GalaxyPipeline:
    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    assert isinstance(pipeline, GalaxyPipeline)
    return pipeline


@pytest.mark.parametrize("opener", [GalaxyPipeline.from_pretrained, open_with_diffusers_alone])
def test_a_fine_tuned_model_folder_paints_the_same(
    saved: Path, votes: torch.Tensor, tmp_path: Path, opener: Callable[[Path], GalaxyPipeline]
) -> None:
    parts = load(saved, lora_rank=2, orientations=2)
    train_one_step(parts, votes)
    merge_adapters(parts.unet)
    pipeline = GalaxyPipeline.from_denoiser(denoiser_of(parts))
    pipeline.save_pretrained(tmp_path)
    suffixes = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".safetensors", ".py"}
    reopened = opener(tmp_path)
    options = {"num_steps": 3, "guidance_scale": 3.0}
    painted = reopened(votes, **options)
    assert painted.shape == (8, SIZE_PX, SIZE_PX, 3)
    assert np.array_equal(painted, pipeline(votes, **options))
    assert reopened.codec.fingerprint() == parts.codec.fingerprint()
    assert not any(p.requires_grad for p in reopened.codec.parameters())


def test_nothing_to_train_is_refused(saved: Path) -> None:
    with pytest.raises(ConfigError, match="all of it is frozen"):
        trainable_parameters(load(saved).condition_encoder)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        load(tmp_path / "nowhere")


def test_a_model_that_the_hub_does_not_hand_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"nobody/nothing is no folder here.*Give the path"):
        load_stable_diffusion("nobody/nothing")


def test_pickled_weights_are_refused_beside_sound_ones_too(copy: Path) -> None:
    (copy / "safety_checker").mkdir()
    (copy / "safety_checker/pytorch_model.bin").write_bytes(b"")
    for opened in (load, lambda folder: load_autoencoder(str(folder), size_px=SIZE_PX)):
        with pytest.raises(InputError, match=r"holds pickled files.*: safety_checker/pytorch_model\.bin\."):
            opened(copy)


def test_weights_that_are_not_there_are_named(copy: Path) -> None:
    (copy / UNET).unlink()
    with pytest.raises(InputError, match=r"unet lacks diffusion_pytorch_model\.safetensors\. Save"):
        load(copy)


def test_other_layouts_are_refused(copy: Path) -> None:
    index = json.loads((copy / "model_index.json").read_text())
    other = {**index, "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"], "unet": [None, None]}
    (copy / "model_index.json").write_text(json.dumps(other))
    with pytest.raises(InputError, match=r"unet=None, text_encoder_2=CLIPTextModelWithProjection"):
        load(copy)
    (copy / "model_index.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        load(copy)
    (copy / "model_index.json").unlink()
    with pytest.raises(InputError, match=r"has no model_index\.json"):
        load(copy)


def test_weights_that_are_missing_do_not_stay_random(copy: Path) -> None:
    weights = load_file(copy / "text_encoder" / "model.safetensors")
    weights.pop("text_model.final_layer_norm.weight")
    save_file(weights, copy / "text_encoder" / "model.safetensors")
    with pytest.raises(InputError, match=r"lacks 1 weights, such as final_layer_norm\.weight"):
        load(copy)


def test_truncated_weights_are_refused(copy: Path) -> None:
    (copy / UNET).write_bytes((copy / UNET).read_bytes()[:1000])
    with pytest.raises(InputError, match="unet does not open"):
        load(copy)


def test_a_network_for_something_else_is_refused(tmp_path: Path) -> None:
    tiny_stable_diffusion.save(tmp_path, in_channels=9)
    with pytest.raises(InputError, match=r"in_channels is 9.*need 4"):
        load(tmp_path)


def test_impossible_options_are_refused(saved: Path) -> None:
    with pytest.raises(ConfigError, match="lora_rank=-1"):
        load(saved, lora_rank=-1)
    with pytest.raises(ConfigError, match="no multiple of 8"):
        load_stable_diffusion(str(saved), size_px=100)
