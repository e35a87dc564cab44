"""What the classifier's training minimises, and how it makes up for rare positives and uneven classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from galray.classifier.network import Outputs, Shares
from galray.classifier.targets import UNKNOWN

BalanceMethod = Literal["none", "pos-weight", "class-balanced", "logit-adjustment"]
Draw = Callable[[Mapping[str, np.ndarray]], np.ndarray]
"""Returns of galaxies, by their labels, how likely each is drawn, shape (n,)."""


@dataclass(frozen=True)
class Balance:
    """How the loss makes up for rare positives and uneven classes, and what its outputs assume for it.

    Attributes
    ----------
    prevalence : tuple of float
        Share of positives of each target among those known, as they come in batches.
    class_shares : tuple of float
        Share of each morphology class among those known, as they come in batches.
    pos_weight : tuple of float
        Weight of a positive of each target against a negative.
    log_prior : tuple of float
        Added to the morphology logits in the loss (logit adjustment, Menon et al. 2021, equation 10), so
        that the bare logits are those of equal shares; empty for none.
    log_odds : tuple of float
        The same for the targets' logits.
    """

    prevalence: tuple[float, ...]
    class_shares: tuple[float, ...]
    pos_weight: tuple[float, ...]
    log_prior: tuple[float, ...] = ()
    log_odds: tuple[float, ...] = ()

    @property
    def assumed_prevalence(self) -> tuple[float, ...]:
        """Share of positives that the network's probabilities assume: odds w p / (1 - p), adjusted."""
        shares, weights = np.array(self.prevalence), np.array(self.pos_weight)
        odds = weights * shares / (1 - shares) / np.exp(self.log_odds or 0.0)
        return tuple((odds / (1 + odds)).tolist())

    @property
    def assumed(self) -> Shares:
        """All shares that the network's probabilities assume."""
        shares = np.array(self.class_shares) / np.exp(self.log_prior or 0.0)
        return Shares(tuple((shares / shares.sum()).tolist()), self.assumed_prevalence)


def evenly(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the same weight for every galaxy, shape (n,)."""
    return np.ones(len(rows["morphology"]))


@dataclass(frozen=True)
class ClassBalance:
    """How likely galaxies are drawn so that those of every class come equally often.

    Attributes
    ----------
    counts : tuple of int
        Galaxies of each class; of a rare target, the others and those of the target.
    of_target : bool
        Whether the first target's galaxies are balanced against all others, or the morphology classes.
    """

    counts: tuple[int, ...]
    of_target: bool

    @classmethod
    def of(cls, labels: Mapping[str, np.ndarray], n_classes: int) -> ClassBalance:
        """Count ``morphology`` [n], or ``targets`` [n, targets] where there are any."""
        of_target = labels["targets"].shape[1] > 0
        classes = _class_of(labels, of_target)
        counts = np.bincount(classes[classes != UNKNOWN], minlength=2 if of_target else n_classes)
        return cls(tuple(counts.tolist()), of_target)

    def __call__(self, rows: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return each galaxy's weight, shape (n,); 0 where its class is unknown."""
        weights = np.array([1 / count if count else 0.0 for count in self.counts] + [0.0])
        return weights[_class_of(rows, self.of_target)]


def _class_of(rows: Mapping[str, np.ndarray], of_target: bool) -> np.ndarray:
    return (rows["targets"][:, 0] == 1).astype(np.int64) if of_target else rows["morphology"]


def balance(
    labels: Mapping[str, np.ndarray],
    n_classes: int,
    method: BalanceMethod = "pos-weight",
    *,
    max_pos_weight: float = 20.0,
    weights: np.ndarray | None = None,
) -> Balance:
    """Measure the training set's `Balance`.

    Parameters
    ----------
    labels : mapping
        ``morphology`` int [n], -1 unknown, and ``targets`` int [n, targets]: 1, 0, or -1 unknown.
    n_classes : int
    method : str
        ``pos-weight`` weighs a target's positives by negatives over positives; ``logit-adjustment``
        shifts the logits of classes and targets in the loss; the others leave the loss alone.
    max_pos_weight : float
        Most that a positive weighs: a handful of positives with weights in the hundreds makes training
        unstable.
    weights : ndarray of float, shape (n,), optional
        How often each galaxy comes in batches, 1 being once an epoch.
    """
    morphology, targets = labels["morphology"], labels["targets"]
    weights = np.ones(len(morphology)) if weights is None else weights
    positives, negatives = ((weights[:, None] * (targets == value)).sum(axis=0) for value in (1, 0))
    prevalence = (positives + 0.5) / (positives + negatives + 1)  # Jeffreys: never exactly 0 or 1
    known = morphology != UNKNOWN
    counts = np.bincount(morphology[known], weights[known], minlength=n_classes) + 0.5
    shares = counts / counts.sum()
    weighed, adjusted = method == "pos-weight", method == "logit-adjustment"
    odds = (1 - prevalence) / prevalence
    pos_weight = np.clip(odds, 1.0, max_pos_weight) if weighed else np.ones_like(odds)
    return Balance(
        prevalence=tuple(prevalence.tolist()),
        class_shares=tuple(shares.tolist()),
        pos_weight=tuple(pos_weight.tolist()),
        log_prior=tuple(np.log(shares).tolist()) if adjusted else (),
        log_odds=tuple((-np.log(odds)).tolist()) if adjusted else (),
    )


def loss(
    outputs: Outputs, morphology: Tensor, targets: Tensor, balance: Balance, focal_gamma: float = 0.0
) -> Tensor:
    """Return the mean cross-entropy of the classes plus the mean binary one of the targets.

    Parameters
    ----------
    outputs : Outputs
    morphology : Tensor of int, [B]
        Class index; -1 (unknown) is left out.
    targets : Tensor of int, [B, targets]
        1 or 0; -1 (unknown) is left out.
    balance : Balance
    focal_gamma : float
        Each galaxy's loss is weighed by ``(1 - p)**gamma`` with the probability p of what is true of it
        (focal loss, Lin et al. 2017, equation 4); 0 is the cross-entropy.

    Returns
    -------
    Tensor
        Scalar, float32; a head without a known label in the batch adds 0, never NaN.
    """
    logits = outputs.morphology + outputs.morphology.new_tensor(balance.log_prior or 0.0)
    of_class = F.cross_entropy(logits, morphology.long(), ignore_index=UNKNOWN, reduction="none")
    known, truth = targets != UNKNOWN, targets.clamp(min=0).float()
    logits = outputs.targets + outputs.targets.new_tensor(balance.log_odds or 0.0)
    of_target = F.binary_cross_entropy_with_logits(logits, truth, reduction="none") * known
    weight = 1 + truth * (outputs.targets.new_tensor(balance.pos_weight) - 1)
    return _mean(_focal(of_class, focal_gamma), morphology != UNKNOWN) + _mean(
        weight * _focal(of_target, focal_gamma), known
    )


def _focal(cross_entropy: Tensor, gamma: float) -> Tensor:
    return cross_entropy * (1 - torch.exp(-cross_entropy)) ** gamma if gamma else cross_entropy


def _mean(losses: Tensor, known: Tensor) -> Tensor:
    return losses.sum() / known.sum().clamp(min=1)
