"""The pipeline: saved and opened again, by diffusers alone too, and what it refuses to open."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from galray.core.errors import ConfigError, InputError
from galray.diffusion.denoiser import Denoiser
from galray.diffusion.objective import PAPER, Diffusion, FlowMatching, Objective
from galray.diffusion.pipeline import GalaxyPipeline

# diffusers 0.42 converts a tensor in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def pipeline(tiny: Denoiser) -> GalaxyPipeline:
    return GalaxyPipeline.from_denoiser(tiny)


def test_pipeline_needs_a_seed_for_each_galaxy(pipeline: GalaxyPipeline, votes: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="8 galaxies need as many seeds, not 2"):
        pipeline(votes, seeds=[1, 2])


@pytest.mark.parametrize("objective", [FlowMatching(), Diffusion(), PAPER])
def test_model_folder_round_trip(
    tiny: Denoiser, votes: torch.Tensor, tmp_path: Path, objective: Objective
) -> None:
    tiny.scheduler = objective.scheduler()
    pipeline = GalaxyPipeline.from_denoiser(tiny)
    pipeline.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".safetensors", ".py"}
    reopened = GalaxyPipeline.from_pretrained(tmp_path)
    assert type(reopened) is GalaxyPipeline
    options = {"num_steps": 3, "guidance_scale": 3.0, "sampler": "dpm++"}
    assert np.array_equal(reopened(votes, **options), pipeline(votes, **options))


PAINT_WITH_DIFFUSERS_ALONE = """
import sys, torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
votes = torch.full((2, 37), float("nan"))
votes[0, 0] = 1.0
pipeline.set_progress_bar_config(disable=True)
print(type(pipeline).__module__, pipeline(votes, seeds=[1, 2], num_steps=2).tolist())
"""


def test_diffusers_opens_the_folder_by_itself_and_paints(pipeline: GalaxyPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "model")
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PAINT_WITH_DIFFUSERS_ALONE, str(tmp_path / "model")],
        env=os.environ | offline | {"PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    votes = torch.full((2, 37), float("nan"))
    votes[0, 0] = 1.0
    painted = pipeline(votes, seeds=[1, 2], num_steps=2).tolist()
    assert done.stdout.strip() == f"galray.diffusion.pipeline {painted}"


def test_galray_never_runs_code_of_a_folder(pipeline: GalaxyPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path)
    (tmp_path / "pipeline.py").write_text("raise SystemExit('ran')\n")
    (tmp_path / "codec" / "galray.diffusion.codec.py").write_text("raise SystemExit('ran')\n")
    with pytest.raises(ValueError, match="trust_remote_code"):
        GalaxyPipeline.from_pretrained(tmp_path)
    (tmp_path / "codec" / "galray.diffusion.codec.py").unlink()
    assert type(GalaxyPipeline.from_pretrained(tmp_path)) is GalaxyPipeline


def test_pickles_are_refused(pipeline: GalaxyPipeline, tmp_path) -> None:
    pipeline.save_pretrained(tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.BIN").write_bytes(b"\x80\x04.")
    with pytest.raises(InputError, match=r"unet/diffusion_pytorch_model\.BIN.*safetensors"):
        GalaxyPipeline.from_pretrained(tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="is no model folder"):
        GalaxyPipeline.from_pretrained(tmp_path / "nowhere")
