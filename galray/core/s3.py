"""Amazon's S3, and the many stores that speak its language."""

from __future__ import annotations

import os

from pyarrow import fs

from galray.core.errors import ConfigError, StorageDenied, StorageError, StorageUnreachable

_CONNECT_TIMEOUT_S = 5.0
_REQUEST_TIMEOUT_S = 60.0
_ATTEMPTS = 4
_CREATED_BY_ANOTHER = (409, 412)  # at the same moment, before


def filesystem() -> fs.S3FileSystem:
    """Open the store that the standard AWS variables, a profile or the machine's role lead to."""
    endpoint = _endpoint()
    if endpoint and "://" not in endpoint:
        raise ConfigError(f"AWS_ENDPOINT_URL is {endpoint!r}; write it with its scheme, http:// or https://.")
    return fs.S3FileSystem(
        region=_region(),
        connect_timeout=_CONNECT_TIMEOUT_S,
        request_timeout=_REQUEST_TIMEOUT_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
        **({"endpoint_override": endpoint} if endpoint else {}),
    )


def _region() -> str:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def create(path: str, data: bytes) -> bool:
    """Put an object with If-None-Match, which pyarrow cannot say; boto3 finds the same keys as pyarrow."""
    from boto3.session import Session  # a new one each time: the default one would keep keys that expire
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    settings = Config(
        connect_timeout=_CONNECT_TIMEOUT_S,
        read_timeout=_REQUEST_TIMEOUT_S,
        retries={"total_max_attempts": _ATTEMPTS, "mode": "standard"},
        s3={"addressing_style": "path" if _endpoint() else "auto"},
    )
    bucket, key = path.split("/", 1)
    try:
        client = Session().client("s3", region_name=_region(), endpoint_url=_endpoint(), config=settings)
        client.put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
    except ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        if status in _CREATED_BY_ANOTHER:
            return False
        raise OSError(f"{error} (HTTP status {status})") from error
    except BotoCoreError as error:
        raise OSError(f"NETWORK_CONNECTION: {error}") from error
    return True


_EXPIRED_SIGNS = ("ExpiredToken", "TokenRefreshRequired", "REQUEST_EXPIRED")
_BAD_WITHOUT_REASON = "(HTTP status 400) during Head"  # no answer to HEAD has a body that could say why
_CLOCK_SIGNS = ("REQUEST_TIME_TOO_SKEWED", "RequestTimeTooSkewed")
_DENIED_SIGNS = (
    "ACCESS_DENIED",
    "INVALID_ACCESS_KEY_ID",
    "SIGNATURE_DOES_NOT_MATCH",
    "INVALID_CLIENT_TOKEN",
    "HTTP code 403",
    "HTTP status code 403",
    "code: 403",
    "HTTP status 403",
)
_UNREACHABLE_SIGNS = ("NETWORK_CONNECTION", "curlCode", "REQUEST_TIMEOUT", "Connection refused")
_FAILING_SIGNS = (
    "SLOW_DOWN",
    "SERVICE_UNAVAILABLE",
    "INTERNAL_FAILURE",
    "HTTP status 500",
    "HTTP status 503",
)


def told(uri: str, message: str) -> StorageError | None:
    """Say in galray's words what the store, or the network before it, has said; None for what is unknown."""
    if denied := _denied(uri, message):
        return denied
    if any(sign in message for sign in _UNREACHABLE_SIGNS):
        return StorageUnreachable(
            f"{uri}: no answer from {_endpoint() or 'AWS S3'}. "
            "Check AWS_ENDPOINT_URL, the region and the network."
        )
    if any(sign in message for sign in _FAILING_SIGNS):
        return StorageUnreachable.failing(uri, message)
    return None


def _denied(uri: str, message: str) -> StorageDenied | None:
    if any(sign in message for sign in _EXPIRED_SIGNS):
        return StorageDenied(
            f"{uri}: the keys have expired. Get new ones, such as by `aws sso login`, then go on with "
            "--resume; those of a machine's role renew themselves."
        )
    if _BAD_WITHOUT_REASON in message:
        return StorageDenied(
            f"{uri}: the object store refuses without a reason, as it does when keys have expired or "
            "AWS_REGION is not the bucket's. Get new keys or correct it, then go on with --resume."
        )
    if any(sign in message for sign in _CLOCK_SIGNS):
        return StorageDenied(f"{uri}: this machine's clock is wrong. Set it, then go on with --resume.")
    if any(sign in message for sign in _DENIED_SIGNS):
        return StorageDenied(
            f"{uri}: the object store refuses the keys or they lack the right. Check AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY (or the profile or role) and the bucket's policy."
        )
    return None
