"""The loss: what is unknown costs nothing, what is rare weighs more, and what the outputs then assume."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from galray.classifier.losses import Balance, ClassBalance, balance, loss
from galray.classifier.network import Outputs

EVEN = Balance((0.5, 0.5), (0.5, 0.5), pos_weight=(1.0, 1.0))


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
    weighted = Balance((0.1, 0.5), (0.5, 0.5), pos_weight=(9.0, 1.0))
    outputs = outputs_of([[0.0, 0.0]], [[0.0, 0.0]])
    unknown, positive = torch.tensor([-1]), torch.tensor([[1, -1]])
    assert loss(outputs, unknown, positive, weighted).item() == pytest.approx(9 * np.log(2))


def labels_of(morphology: list[int], targets: list[list[int]]) -> dict[str, np.ndarray]:
    return {"morphology": np.array(morphology), "targets": np.array(targets, dtype=np.int8)}


def test_balance_by_hand():
    labels = labels_of([0, 0, 0, 1, -1, -1], [[1, 1], [0, 1], [0, 0], [0, 0], [0, -1], [-1, -1]])
    result = balance(labels, 2)
    assert result.prevalence == pytest.approx((1.5 / 6, 2.5 / 5))
    assert result.pos_weight == pytest.approx((3.0, 1.0))
    assert result.assumed.prevalence == pytest.approx((0.5, 0.5))
    assert result.assumed.classes == result.class_shares == pytest.approx((3.5 / 5, 1.5 / 5))
    assert balance(labels, 2, "none").assumed.prevalence == pytest.approx(result.prevalence)


def test_logit_adjustment_assumes_equal_shares():
    labels = labels_of([0, 0, 0, 1, -1, -1], [[1], [0], [0], [0], [0], [-1]])
    adjusted = balance(labels, 2, "logit-adjustment")
    assert adjusted.pos_weight == (1.0,)
    np.testing.assert_allclose(adjusted.log_prior, np.log([3.5 / 5, 1.5 / 5]))
    np.testing.assert_allclose(adjusted.assumed.classes, [0.5, 0.5])
    np.testing.assert_allclose(adjusted.assumed.prevalence, [0.5])


def test_the_weight_of_a_rare_positive_is_clipped():
    targets = np.zeros((5000, 1), dtype=np.int8)
    targets[0] = 1
    result = balance({"morphology": np.full(5000, -1), "targets": targets}, 5, max_pos_weight=20)
    assert result.pos_weight == (20.0,)
    assert result.log_prior == ()
    assert result.assumed_prevalence[0] == pytest.approx(20 * 0.0003 / (20 * 0.0003 + 0.9997), rel=1e-3)


@pytest.mark.parametrize("method", ["none", "pos-weight", "logit-adjustment"])
def test_loss_is_least_at_what_the_outputs_assume(method):
    """Without any feature, the best constant probability is the one that `assumed` states."""
    targets = torch.zeros((200, 1), dtype=torch.int8)
    targets[:30] = 1
    unknown = torch.full((200,), -1)
    weighted = balance(
        {"morphology": unknown.numpy(), "targets": targets.numpy()}, 2, method, max_pos_weight=3.0
    )
    probability = torch.linspace(0.01, 0.99, 99)
    values = [
        loss(Outputs(torch.zeros(200, 2), p.logit().expand(200, 1)), unknown, targets, weighted)
        for p in probability
    ]
    best = probability[int(torch.stack(values).argmin())].item()
    assert best == pytest.approx(weighted.assumed.prevalence[0], abs=0.015)


def test_focal_loss_by_hand():
    """Equation 4 of Lin et al. (2017): (1 - p)^2 of the cross-entropy, in both heads."""
    outputs = outputs_of([[2.0, 0.0]], [[1.0, 0.0]])
    value = loss(outputs, torch.tensor([1]), torch.tensor([[1, 0]]), EVEN, focal_gamma=2.0)
    p_class, p_yes, p_no = (torch.tensor(z).sigmoid() for z in (-2.0, 1.0, 0.0))
    focal = [-((1 - p) ** 2) * p.log() for p in (p_class, p_yes, p_no)]
    assert value.item() == pytest.approx(float(focal[0] + (focal[1] + focal[2]) / 2), rel=1e-5)


def test_cross_entropy_is_torchs_own():
    generator = torch.Generator().manual_seed(0)
    outputs = Outputs(*(torch.randn(8, 2, generator=generator) for _ in range(2)))
    morphology, targets = torch.arange(8) % 2, (torch.arange(16) % 3 == 0).view(8, 2)
    weighted = Balance((0.5, 0.5), (0.5, 0.5), pos_weight=(4.0, 2.0))
    expected = F.cross_entropy(outputs.morphology, morphology) + F.binary_cross_entropy_with_logits(
        outputs.targets, targets.float(), pos_weight=torch.tensor([4.0, 2.0])
    )
    assert loss(outputs, morphology, targets.to(torch.int8), weighted).item() == pytest.approx(
        expected.item()
    )


def test_classes_are_drawn_alike():
    labels = labels_of([0, 0, 0, 1, 2, -1], [[]] * 6)
    weights = ClassBalance.of(labels, 4)(labels)
    np.testing.assert_allclose(weights, [1 / 3, 1 / 3, 1 / 3, 1, 1, 0])


def test_a_rare_target_is_drawn_as_often_as_all_others():
    labels = labels_of([0, 0, 0, 0], [[1], [0], [-1], [0]])
    draw = ClassBalance.of(labels, 5)
    np.testing.assert_allclose(draw(labels), [1, 1 / 3, 1 / 3, 1 / 3])
    drawn = balance(labels, 5, "class-balanced", weights=2 * draw(labels))
    assert drawn.assumed.prevalence[0] == pytest.approx((2 + 0.5) / (2 + 4 / 3 + 1))
