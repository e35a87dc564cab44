"""The classifier network: masks, balance, augmentation, and a model folder that holds no code."""

import json
import pickle

import numpy as np
import pytest
import torch

from galray.classifier.network import (
    BACKBONES,
    Balance,
    Classifier,
    ClassifierConfig,
    Outputs,
    augment,
    balance,
    examine,
    load,
    loss,
    predict,
    save,
)
from galray.classifier.targets import DUST_LANE_EARLY_TYPE, MORPHOLOGY, RING, Target
from galray.core.errors import ConfigError, InputError

EVEN = Balance(prevalence=(0.5, 0.5), pos_weight=(1.0, 1.0))


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
    weights = balance(morphology.numpy(), none.numpy(), 5)
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
    ],
)
def test_contradictions_are_refused(options, complaint):
    with pytest.raises(ConfigError, match=complaint):
        ClassifierConfig(**options)


def outputs_of(morphology, targets) -> Outputs:
    return Outputs(torch.tensor(morphology, requires_grad=True), torch.tensor(targets, requires_grad=True))


def test_loss_by_hand():
    outputs = outputs_of([[0.0, 0.0], [9.0, 0.0]], [[0.0, 9.0], [9.0, 0.0]])
    value = loss(outputs, torch.tensor([1, -1]), torch.tensor([[1, -1], [-1, 0]]), EVEN)
    assert value.item() == pytest.approx(2 * np.log(2))  # log 2 from each head; the nines are unknown


def test_unknown_labels_have_no_gradient():
    outputs = outputs_of([[0.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]])
    loss(outputs, torch.tensor([1, -1]), torch.tensor([[1, -1], [-1, 0]]), EVEN).backward()
    assert outputs.morphology.grad is not None
    assert outputs.targets.grad is not None
    assert (outputs.morphology.grad != 0).tolist() == [[True, True], [False, False]]
    assert (outputs.targets.grad != 0).tolist() == [[True, False], [False, True]]


def test_nothing_known_costs_nothing_and_still_has_a_gradient():
    outputs = outputs_of([[3.0, 0.0]], [[3.0, 1.0]])
    value = loss(outputs, torch.tensor([-1]), torch.tensor([[-1, -1]], dtype=torch.int8), EVEN)
    value.backward()
    assert value.item() == 0
    assert outputs.morphology.grad is not None
    assert not outputs.morphology.grad.any()


def test_a_positive_weighs_as_much_as_it_is_rare():
    weighted = Balance(prevalence=(0.1, 0.5), pos_weight=(9.0, 1.0))
    outputs = outputs_of([[0.0, 0.0]], [[0.0, 0.0]])
    unknown, positive = torch.tensor([-1]), torch.tensor([[1, -1]])
    assert loss(outputs, unknown, positive, weighted).item() == pytest.approx(9 * np.log(2))


def test_balance_by_hand():
    targets = np.array([[1, 1], [0, 1], [0, 0], [0, 0], [0, -1], [-1, -1]])
    result = balance(np.array([0, 0, 0, 1, -1, -1]), targets, 2, logit_adjustment=1.0)
    assert result.prevalence == pytest.approx((1.5 / 6, 2.5 / 5))
    assert result.pos_weight == pytest.approx((3.0, 1.0))
    assert result.assumed_prevalence == pytest.approx((0.5, 0.5))
    np.testing.assert_allclose(result.log_prior, np.log([3.5 / 5, 1.5 / 5]))


def test_the_weight_of_a_rare_positive_is_clipped():
    targets = np.zeros((5000, 1), dtype=np.int8)
    targets[0] = 1
    result = balance(np.full(5000, -1), targets, 5, max_pos_weight=20)
    assert result.pos_weight == (20.0,)
    assert result.log_prior == ()
    assert result.assumed_prevalence[0] == pytest.approx(20 * 0.0003 / (20 * 0.0003 + 0.9997), rel=1e-3)


def test_weighted_loss_is_least_at_the_assumed_prevalence():
    """Without any feature, the best constant probability is the one that `assumed_prevalence` states."""
    targets = torch.zeros((200, 1), dtype=torch.int8)
    targets[:10] = 1
    weighted = balance(np.full(200, -1), targets.numpy(), 2, max_pos_weight=5.0)
    probability = torch.linspace(0.01, 0.99, 99)
    values = [
        loss(
            Outputs(torch.zeros(200, 2), p.logit().expand(200, 1)), torch.full((200,), -1), targets, weighted
        )
        for p in probability
    ]
    best = probability[int(torch.stack(values).argmin())].item()
    assert best == pytest.approx(weighted.assumed_prevalence[0], abs=0.015)


def test_logit_adjustment_asks_more_of_the_common_class():
    common = Balance((0.5, 0.5), (1.0, 1.0), log_prior=(float(np.log(0.9)), float(np.log(0.1))))
    outputs, unknown = outputs_of([[0.0, 0.0]], [[0.0, 0.0]]), torch.tensor([[-1, -1]])
    assert loss(outputs, torch.tensor([0]), unknown, common).item() == pytest.approx(-np.log(0.9))
    assert loss(outputs, torch.tensor([1]), unknown, common).item() == pytest.approx(-np.log(0.1))


def test_augment_repeats_with_its_generator(images):
    first = augment(images, torch.Generator().manual_seed(7))
    assert torch.equal(first, augment(images, torch.Generator().manual_seed(7)))
    assert not torch.equal(first, augment(images, torch.Generator().manual_seed(8)))
    assert first.shape == images.shape
    assert first.dtype == torch.uint8


def test_augment_without_shift_gives_all_eight_symmetries_alike():
    image = torch.arange(16, dtype=torch.uint8).reshape(1, 4, 4, 1)
    turned = augment(image.expand(4000, -1, -1, -1), torch.Generator().manual_seed(0), shift_px=0)
    seen, counts = torch.unique(turned.flatten(1), dim=0, return_counts=True)
    expected = {
        tuple(torch.rot90(side, turns).flatten().tolist())
        for side in (image[0, :, :, 0], image[0, :, :, 0].T)
        for turns in range(4)
    }
    assert {tuple(row) for row in seen.tolist()} == expected
    assert counts.min() > 400  # 500 each, give or take


def test_augment_shifts_by_no_more_than_asked():
    image = torch.zeros((500, 21, 21, 1), dtype=torch.uint8)
    image[:, 10, 10] = 255  # the centre stays the centre under flips and turns
    moved = augment(image, torch.Generator().manual_seed(0), shift_px=2)
    _, rows, columns, _ = torch.nonzero(moved, as_tuple=True)
    assert len(rows) == 500
    assert set(rows.tolist()) == set(columns.tolist()) == {8, 9, 10, 11, 12}


def test_augment_mirrors_the_edge():
    ramp = torch.arange(1, 9, dtype=torch.uint8)[None, :, None, None].expand(64, 8, 8, 1)
    moved = augment(ramp, torch.Generator().manual_seed(0), shift_px=3)
    assert moved.min() >= 1  # nothing black moves in
    lines = {
        tuple(line) for line in [*moved[:, :, 0, 0].tolist(), *moved[:, 0, :, 0].tolist()] if len({*line}) > 1
    }
    assert (3, 2, 1, 2, 3, 4, 5, 6)[::-1] in lines or (3, 2, 1, 2, 3, 4, 5, 6) in lines


def test_oblong_images_are_refused():
    with pytest.raises(ConfigError, match="cannot be turned"):
        augment(torch.zeros((1, 8, 9, 3)), torch.Generator())


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
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for start in list(range(0, 192, 32)) * 4:
        rows = slice(start, start + 32)
        value = loss(model(augment(images[rows], generator)), elongated[rows], targets[rows], EVEN)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    held_out = predict(model, augment(images[192:], generator))
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
