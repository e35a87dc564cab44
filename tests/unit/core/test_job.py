"""The error that a user is told, however often Ray wrapped it."""

import pytest
from ray.exceptions import RayTaskError

from galray.core.errors import InputError, MissingColumnError, StorageDenied
from galray.core.job import user_error

MINE = MissingColumnError("votes.csv", ["objid"], ["obj_id"])


def wrapped(error: Exception, times: int = 1) -> Exception:
    for _ in range(times):
        error = RayTaskError("task", "traceback", error).as_instanceof_cause()
    return error


def chained(error: Exception) -> Exception:
    try:
        raise RuntimeError("outer") from error
    except RuntimeError as outer:
        return outer


class WorkerGroupError(Exception):
    """Shaped as Ray Train's: the failures of its workers by rank."""

    def __init__(self, failures: dict[int, Exception]) -> None:
        super().__init__("workers failed")
        self.worker_failures = failures


@pytest.mark.parametrize(
    "error",
    [
        MINE,
        wrapped(MINE),
        wrapped(MINE, times=2),
        chained(MINE),
        chained(wrapped(MINE)),
        WorkerGroupError({0: RuntimeError("lost"), 1: wrapped(MINE)}),
    ],
)
def test_the_cause_is_found(error):
    found = user_error(error)
    assert isinstance(found, InputError)
    assert not isinstance(found, RayTaskError)
    assert str(found) == str(MINE)


def test_a_bug_is_not_a_users_error():
    assert user_error(wrapped(KeyError("x"))) is None
    assert user_error(chained(ValueError("x"))) is None
    assert user_error(None) is None


def test_an_errors_own_cause_is_not_preferred():
    error = StorageDenied("s3://b: denied")
    error.__cause__ = MINE
    assert user_error(error) is error
