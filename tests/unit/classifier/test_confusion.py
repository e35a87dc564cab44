"""How classes are told apart, against hand-computed cases."""

import numpy as np
import pytest

from galray.classifier import confusion
from galray.core.errors import InputError


def test_classification_by_hand():
    truth = np.array([0, 0, 1, 1, 1, 2, -1])
    predicted = np.array([0, 1, 1, 1, 0, 1, 2])
    report = confusion.classification(truth, predicted, ("a", "b", "c", "never"))
    assert report.confusion.tolist() == [[1, 1, 0, 0], [1, 2, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert (report.accuracy.count, report.accuracy.total) == (3, 6)
    assert [(r.count, r.total) for r in report.completeness] == [(1, 2), (2, 3), (0, 1), (0, 0)]
    assert [(r.count, r.total) for r in report.purity] == [(1, 2), (2, 4), (0, 0), (0, 0)]
    np.testing.assert_allclose(report.f1, [1 / 2, 4 / 7, 0, np.nan])
    assert report.macro_f1 == pytest.approx((1 / 2 + 4 / 7) / 3)
    assert report.as_dict()["b_completeness"] == pytest.approx(2 / 3)
    assert "b      completeness 0.67" in str(report)


def test_classification_takes_probabilities():
    probability = np.array([[0.6, 0.4], [0.1, 0.9]])
    assert confusion.classification(np.array([0, 1]), probability, ("a", "b")).accuracy.value == 1.0
    with pytest.raises(InputError, match="1 true and 2 predicted"):
        confusion.classification(np.array([0]), probability, ("a", "b"))


def test_macro_figures_by_hand():
    truth, predicted = np.array([0, 0, 1, 1, 1, 2, -1]), np.array([0, 1, 1, 1, 0, 1, 2])
    assert confusion.macro_f1(truth, predicted) == pytest.approx((1 / 2 + 4 / 7) / 3)
    probability = np.eye(4)[[0, 0, 1, 1, 1, 2, 3]]
    assert confusion.macro_average_precision(truth, probability) == 1
    assert np.isnan(confusion.macro_f1(truth[-1:], predicted[-1:]))
