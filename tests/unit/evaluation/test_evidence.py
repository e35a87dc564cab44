"""What a fidelity report reads, where the jobs before it write it."""

from galray.classifier.train import PRESETS as CLASSIFIERS
from galray.evaluation.evidence import EvaluateConfig


def test_the_reference_classifier_is_where_its_preset_publishes_it() -> None:
    assert CLASSIFIERS["classes"].config.output == EvaluateConfig().classifier
