"""Pretrained backbones: from a local folder with safetensors, and nothing that could run code."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, ConvNextV2Config, ViTConfig

from galray.classifier.backbones import PRETRAINED, load_pretrained
from galray.classifier.network import Classifier, ClassifierConfig, load, predict, save
from galray.core.errors import ConfigError, InputError

IMAGES = torch.randint(256, (4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    tiny = ConvNextV2Config(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)
    AutoModel.from_config(tiny).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_a_classifier_is_built_on_it_and_opens_without_it(folder: Path, tmp_path: Path) -> None:
    backbone: Any = load_pretrained(str(folder), 32)
    config = ClassifierConfig(PRETRAINED, 32, architecture=backbone.config.to_dict())
    model = Classifier(config)
    model.backbone.load_state_dict(backbone.state_dict())
    save(model, tmp_path / "model")
    for path in folder.iterdir():
        path.unlink()
    opened = load(tmp_path / "model")
    torch.testing.assert_close(
        torch.from_numpy(predict(opened, IMAGES).morphology),
        torch.from_numpy(predict(model, IMAGES).morphology),
        rtol=0,
        atol=0,
    )


def test_pickles_are_refused(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match="pickled"):
        load_pretrained(str(folder), 32)


def test_a_folder_without_a_network(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--pretrained .* cannot be opened"):
        load_pretrained(str(tmp_path), 32)


def test_images_of_another_size(tmp_path: Path) -> None:
    tiny = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=64
    )
    AutoModel.from_config(tiny).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"does not take images of 32 px.*--size-px"):
        load_pretrained(str(tmp_path), 32)
