"""Errors name what is wrong and the nearest right, and survive the way from a worker."""

import pickle

import pytest

from galray.core import errors
from galray.core.errors import ImageRejected, MissingColumnError, nearest

TREE = [
    (errors.ConfigError, errors.GalrayError),
    (errors.InputError, errors.GalrayError),
    (errors.MissingColumnError, errors.InputError),
    (errors.EmptyInputError, errors.InputError),
    (errors.ImageRejected, errors.InputError),
    (errors.LineageError, errors.GalrayError),
    (errors.PublishError, errors.GalrayError),
    (errors.StorageUnreachable, errors.StorageError),
    (errors.StorageDenied, errors.StorageError),
]


@pytest.mark.parametrize(("child", "parent"), TREE)
def test_the_tree_is_as_drawn(child, parent):
    assert issubclass(child, parent)
    assert child.__name__ in (errors.__doc__ or "")


def test_missing_columns_are_named_with_their_nearest():
    error = MissingColumnError("votes.csv", ["dr7objid", "asset_id"], ["dr7_objid", "asset_id_", "ra"])
    assert "votes.csv lacks 2 needed column(s)" in str(error)
    assert "'dr7objid' (did you mean 'dr7_objid'?)" in str(error)
    assert "'asset_id' (did you mean 'asset_id_'?)" in str(error)
    assert "Rename the columns" in str(error)


def test_a_wrong_table_does_not_list_every_column():
    error = MissingColumnError("votes.csv", [f"t{i}" for i in range(37)], ["ra"])
    assert "lacks 37 needed column(s): 't0'; 't1'; 't2'; 't3'; 't4' and 32 more." in str(error)


@pytest.mark.parametrize(
    "error",
    [
        MissingColumnError("votes.csv", ["objid"], ["obj_id"]),
        ImageRejected("wrong_size", "3x4 pixels"),
        errors.StorageDenied("s3://bucket: denied"),
    ],
)
def test_an_error_survives_pickling(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert getattr(copy, "reason", None) == getattr(error, "reason", None)


def test_nearest_says_nothing_where_nothing_is_near():
    assert nearest("galaxy_id", ["flux", "ra"]) == ""
