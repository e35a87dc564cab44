"""The methods that a study compares: ways to learn from few labels, with synthetic galaxies and without."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PAINTED = "synthetic"
"""Galaxies painted from noise, by a denoiser that has learnt what labels there are."""
VARIATIONS = "variations"
"""Labelled galaxies, half hidden by noise and painted anew by a denoiser that knows no label."""


@dataclass(frozen=True)
class Method:
    """One way to learn from few labels.

    Attributes
    ----------
    title : str
    options : mapping
        Of the classifier's job, where they differ from the study's.
    synthetic : str
        The synthetic galaxies that it learns from too, `PAINTED` or `VARIATIONS`; the baselines have none.
    teacher : str
        The method whose confident answers label the unlabelled galaxies; none where they stay out.
    approver : str
        The method that must recognise a synthetic galaxy; none where all are learnt from.
    """

    title: str
    options: Mapping[str, Any] = field(default_factory=dict)
    synthetic: str = ""
    teacher: str = ""
    approver: str = ""

    @property
    def augmented(self) -> bool:
        return bool(self.synthetic)

    @property
    def advisers(self) -> tuple[str, ...]:
        """The methods that must come before."""
        return tuple(filter(None, (self.teacher, self.approver)))


REAL_ONLY, SELF_TRAINING, AUGMENTED = "real-only", "self-training", "augmented"
METHODS: dict[str, Method] = {
    REAL_ONLY: Method("real galaxies, classical augmentation"),
    "class-balanced": Method("class-balanced sampling", {"balance": "class-balanced"}),
    "focal": Method("focal loss", {"loss": "focal"}),
    "logit-adjustment": Method("logit adjustment", {"balance": "logit-adjustment"}),
    SELF_TRAINING: Method("self-training on unlabelled galaxies", teacher=REAL_ONLY),
    AUGMENTED: Method("synthetic galaxies", synthetic=PAINTED),
    "augmented-class-balanced": Method(
        "synthetic galaxies, class-balanced sampling", {"balance": "class-balanced"}, synthetic=PAINTED
    ),
    "augmented-approved": Method(
        "synthetic galaxies that self-training recognises", synthetic=PAINTED, approver=SELF_TRAINING
    ),
    "augmented-variations": Method("variations of real galaxies", synthetic=VARIATIONS),
    "augmented-variations-class-balanced": Method(
        "variations, class-balanced sampling", {"balance": "class-balanced"}, synthetic=VARIATIONS
    ),
    "augmented-variations-self-training": Method(
        "variations, self-training on unlabelled galaxies",
        synthetic=VARIATIONS,
        teacher="augmented-variations",
    ),
    "augmented-self-training": Method(
        "synthetic galaxies, self-training on unlabelled ones", synthetic=PAINTED, teacher=AUGMENTED
    ),
}

BASELINES = tuple(name for name, method in METHODS.items() if not method.augmented)
