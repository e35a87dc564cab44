"""The classifier network: masks, balance, augmentation, and a model folder that holds no code."""

import json
import pickle

import numpy as np
import pytest
import torch

from galray.classifier.augment import Augmentation, resample
from galray.classifier.backbones import BACKBONES
from galray.classifier.losses import Balance, balance, loss
from galray.classifier.network import (
    Classifier,
    ClassifierConfig,
    Shares,
    examine,
    load,
    predict,
    save,
    shift_priors,
    symmetries,
)
from galray.classifier.targets import DUST_LANE_EARLY_TYPE, MORPHOLOGY, RING, Target
from galray.core.errors import ConfigError, InputError

EVEN = Balance((0.5, 0.5), (0.2,) * 5, pos_weight=(1.0, 1.0))


@pytest.fixture
def config() -> ClassifierConfig:
    return ClassifierConfig(backbone="resnet-tiny", size_px=32, targets=(DUST_LANE_EARLY_TYPE, RING))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(256, (6, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_gives_logits(backbone, images):
    outputs = Classifier(ClassifierConfig(backbone=backbone, size_px=32))(images)
    assert outputs.morphology.shape == (6, 5)
    assert outputs.targets.shape == (6, 1)


def test_bfloat16_autocast_changes_little(config, images):
    torch.manual_seed(0)
    model = Classifier(config)
    exact, fast = predict(model, images), predict(model, images.numpy(), bfloat16=True)
    assert exact.morphology.dtype == fast.targets.dtype == np.float32
    np.testing.assert_allclose(exact.morphology.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(exact.morphology, fast.morphology, atol=0.02)
    np.testing.assert_allclose(exact.targets, fast.targets, atol=0.02)


def test_classes_alone(images, tmp_path):
    torch.manual_seed(0)
    model = Classifier(ClassifierConfig(backbone="resnet-tiny", size_px=32, targets=()))
    said = predict(model, images)
    assert said.targets.shape == (6, 0)
    save(model, tmp_path / "model")
    np.testing.assert_array_equal(predict(load(tmp_path / "model"), images).morphology, said.morphology)
    morphology, none = torch.tensor([0, 1, 2, 3, 4, -1]), torch.empty(6, 0, dtype=torch.int8)
    weights = balance({"morphology": morphology.numpy(), "targets": none.numpy()}, 5)
    assert weights.assumed_prevalence == ()
    loss(model(images), morphology, none, weights).backward()
    assert model.morphology_head.weight.grad is not None
    assert model.morphology_head.weight.grad.abs().sum() > 0


def test_features_are_what_the_heads_see(config, images):
    torch.manual_seed(0)
    model = Classifier(config)
    said, features = examine(model, images)
    np.testing.assert_array_equal(said.targets, predict(model, images).targets)
    logits = model.heads(torch.from_numpy(features)).morphology
    np.testing.assert_allclose(logits.softmax(dim=1).detach(), said.morphology, rtol=1e-5)


def test_a_shift_of_priors_is_bayes_rule(config, images):
    torch.manual_seed(0)
    model = Classifier(config)
    before = predict(model, images)
    even, natural = Shares((0.2,) * 5, (0.5, 0.5)), Shares((0.4, 0.3, 0.02, 0.08, 0.2), (0.01, 0.5))
    shift_priors(model, even, natural)
    after = predict(model, images)
    joint = before.morphology * np.array(natural.classes)
    np.testing.assert_allclose(after.morphology, joint / joint.sum(axis=1, keepdims=True), rtol=1e-4)
    rare, common = before.targets[:, 0] * 0.01, (1 - before.targets[:, 0]) * 0.99
    np.testing.assert_allclose(after.targets[:, 0], rare / (rare + common), rtol=1e-4)
    np.testing.assert_allclose(after.targets[:, 1], before.targets[:, 1], rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 64, 64, 3), (2, 3, 32, 32)])
def test_images_of_another_shape_are_refused(config, shape):
    with pytest.raises(InputError, match=r"\[B, 32, 32, 3\]"):
        Classifier(config)(torch.zeros(shape, dtype=torch.uint8))


def test_float_images_are_refused(config, images):
    with pytest.raises(InputError, match="float32"):
        Classifier(config)(images.float() / 255)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"backbone": "resnet-smal"}, "did you mean 'resnet-small'"),
        ({"size_px": 16}, "at least 32"),
        ({"classes": MORPHOLOGY[:1]}, "two or more"),
        ({"targets": (RING, Target("ring", "ring > 0.9"))}, "same name"),
        ({"prevalence": (0.1, 0.1)}, "2 prevalence"),
        ({"class_shares": (0.1, 0.9)}, "2 share"),
        ({"backbone": "vit-tiny", "size_px": 60}, "patches of 8 px"),
    ],
)
def test_contradictions_are_refused(options, complaint):
    with pytest.raises(ConfigError, match=complaint):
        ClassifierConfig(**options)


def test_the_network_learns(config):
    """Round and elongated blobs are told apart after a few steps on the CPU."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    elongated = torch.randint(2, (256,), generator=generator)
    axis = torch.arange(32) - 15.5
    radius = axis[:, None] ** 2 + axis[None] ** 2 * torch.where(elongated.bool(), 9.0, 1.0)[:, None, None]
    images = (255 * torch.exp(-radius / 60)).to(torch.uint8)[..., None].expand(-1, -1, -1, 3)
    targets = torch.stack([elongated, 1 - elongated], dim=1).to(torch.int8)
    model = Classifier(config).train()

    def varied(chosen: torch.Tensor) -> torch.Tensor:
        return resample(chosen, Augmentation().draw(len(chosen), generator))

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for start in list(range(0, 192, 32)) * 4:
        rows = slice(start, start + 32)
        value = loss(model(varied(images[rows])), elongated[rows], targets[rows], EVEN)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    held_out = predict(model, varied(images[192:]))
    assert (held_out.morphology.argmax(axis=1) == elongated[192:].numpy()).mean() > 0.9
    assert ((held_out.targets[:, 0] > 0.5) == elongated[192:].numpy()).mean() > 0.9


def test_a_saved_model_opens_as_it_was(config, images, tmp_path):
    model = Classifier(ClassifierConfig(**{**vars(config), "prevalence": (0.3, 0.01)}))
    model.train()(images)  # moves the batch statistics, which must be saved too
    save(model, tmp_path / "model")
    opened = load(tmp_path / "model")
    assert opened.config == model.config
    assert not opened.training
    for before, after in zip(predict(model, images), predict(opened, images), strict=True):
        np.testing.assert_array_equal(before, after)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_a_model_is_never_overwritten(config, tmp_path):
    save(Classifier(config), tmp_path)
    with pytest.raises(InputError, match="already holds a model"):
        save(Classifier(config), tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "x.PKL", "last.ckpt"])
def test_a_folder_with_a_pickle_is_refused(config, tmp_path, name):
    save(Classifier(config), tmp_path)
    (tmp_path / name).write_bytes(pickle.dumps({}))
    with pytest.raises(InputError, match="pickled"):
        load(tmp_path)


def test_damaged_folders_are_refused(config, tmp_path):
    with pytest.raises(InputError, match=r"config\.json"):
        load(tmp_path / "nowhere")
    save(Classifier(config), tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"model\.safetensors"):
        load(tmp_path)
    weights.unlink()
    with pytest.raises(InputError, match=r"model\.safetensors"):
        load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "something else"},
        {"version": 2},
        {"surprise": 1},
        {"targets": [{"name": "x", "expression": "__import__('os') > smooth", "description": ""}]},
        {"classes": 3},
        {"backbone": "resnet-huge"},
    ],
)
def test_a_config_of_another_kind_is_refused(config, tmp_path, change):
    save(Classifier(config), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match="does not describe a galray classifier"):
        load(tmp_path)


def test_weights_of_another_size_are_refused(config, tmp_path):
    save(Classifier(config), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"backbone": "resnet-small"}))
    with pytest.raises(InputError, match="does not hold this model's weights"):
        load(tmp_path)


def test_the_symmetries_are_eight_and_undo_one_another():
    image = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
    assert len({turn.tobytes() for turn in symmetries(image)}) == 8
