"""Google Cloud Storage."""

from __future__ import annotations

import os
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from urllib.parse import urlsplit

from pyarrow import fs

from galray.core.errors import ConfigError, StorageDenied, StorageError, StorageUnreachable

_PATIENCE_S = 60.0


def filesystem() -> fs.GcsFileSystem:
    """Open the store as the application default credentials have it: a machine's role, or a person's login.

    ``STORAGE_EMULATOR_HOST`` leads to a service on another address, without credentials.

    Raises
    ------
    ConfigError
        Google's library is not installed.
    """
    try:
        version("google-cloud-storage")  # not imported, for it takes a second
    except PackageNotFoundError as error:
        raise ConfigError("gs:// needs Google's library: pip install 'galray[gcs]'.") from error
    emulator = urlsplit(os.environ.get("STORAGE_EMULATOR_HOST", ""))
    elsewhere = {"anonymous": True, "scheme": emulator.scheme, "endpoint_override": emulator.netloc}
    return fs.GcsFileSystem(
        retry_time_limit=timedelta(seconds=_PATIENCE_S), **(elsewhere if emulator.netloc else {})
    )


def create(path: str, data: bytes) -> bool:
    """Insert an object where none stands, on condition that its generation is 0; see `storage.Store`."""
    from google.api_core.exceptions import GoogleAPIError, PreconditionFailed
    from google.auth.exceptions import GoogleAuthError
    from google.cloud import storage
    from google.cloud.storage.retry import DEFAULT_RETRY

    bucket, name = path.split("/", 1)
    try:
        client = storage.Client(project="")  # of no project: a bucket belongs to one by itself
        blob = client.bucket(bucket).blob(name)
        blob.upload_from_string(data, if_generation_match=0, retry=DEFAULT_RETRY.with_timeout(_PATIENCE_S))
    except PreconditionFailed:
        return False
    except GoogleAuthError as error:
        raise OSError(f"{_NO_TOKEN}: {error}") from error
    except (GoogleAPIError, OSError) as error:
        response = getattr(getattr(error, "cause", error), "response", None)  # the last of several
        sign = _NO_ANSWER if response is None else f"{_STATUS} {response.status_code}"
        raise OSError(f"{sign}: {error}") from error
    return True


# Of what pyarrow says; `create` puts it into the same words.
_NO_TOKEN, _NO_ANSWER, _STATUS = "OAuth2 access token", "CURL error", "HTTP status code:"
_DENIED_SIGNS = ("PERMISSION_DENIED", "UNAUTHENTICATED", f"{_STATUS} 401", f"{_STATUS} 403")
_FAILING_SIGNS = ("UNAVAILABLE", "INTERNAL", "RESOURCE_EXHAUSTED", f"{_STATUS} 5", f"{_STATUS} 429")


def told(uri: str, message: str) -> StorageError | None:
    """Say in galray's words what the store, or the network before it, has said; None for what is unknown."""
    if _NO_TOKEN in message:
        return StorageDenied(
            f"{uri}: no credentials for Google Cloud. Give the machine a service account, set "
            "GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`."
        )
    if any(sign in message for sign in _DENIED_SIGNS):
        return StorageDenied(
            f"{uri}: Google Cloud refuses these credentials or they lack the right. Check the machine's "
            "service account, or GOOGLE_APPLICATION_CREDENTIALS, and the bucket's policy."
        )
    if _NO_ANSWER in message:
        place = os.environ.get("STORAGE_EMULATOR_HOST") or "Google Cloud Storage"
        return StorageUnreachable(f"{uri}: no answer from {place}. Check the network.")
    if any(sign in message for sign in _FAILING_SIGNS):
        return StorageUnreachable.failing(uri, message)
    return None
