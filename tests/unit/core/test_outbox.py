"""What is told of a tracking server's URI."""

import pytest

from galray.core.outbox import without_password


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("https://anna:s%40fe@mlflow.org:5000/x@y", "https://mlflow.org:5000/x@y"),
        ("http://anna@mlflow.org", "http://mlflow.org"),
        ("postgresql+psycopg2://anna:secret@db/runs", "postgresql+psycopg2://db/runs"),
        ("http://mlflow.org", "http://mlflow.org"),
        ("sqlite:////home/anna@work/mlflow.db", "sqlite:////home/anna@work/mlflow.db"),
        ("runs/mlflow", "runs/mlflow"),
        ("", ""),
    ],
)
def test_a_uri_is_told_without_user_and_password(uri: str, told: str) -> None:
    assert without_password(uri) == told
