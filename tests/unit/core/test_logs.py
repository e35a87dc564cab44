"""What libraries say that nobody needs to read."""

import logging

import pytest

from galray.core.logs import quiet_driver

WARNING = "Warning: The Ray cluster currently does not have any available CPUs. The Dataset job will hang"


@pytest.mark.parametrize(("address", "told"), [("", False), ("10.0.0.1:6379", True)])
def test_only_a_cluster_that_others_use_can_want_for_cores(
    monkeypatch: pytest.MonkeyPatch, address: str, told: bool
) -> None:
    logger = logging.getLogger("ray.data.dataset")
    monkeypatch.setattr(logger, "filters", [])
    monkeypatch.setenv("RAY_ADDRESS", address)
    quiet_driver()
    record = logger.makeRecord(logger.name, logging.WARNING, "dataset.py", 1, WARNING, (), None)
    assert bool(logger.filter(record)) is told
