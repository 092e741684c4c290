"""How a bucket is reached: endpoint, region, credentials and timeout, from what the AWS tools read too."""

import configparser
import os
from datetime import timedelta
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from storage.errors import StoreError

TIMEOUT_S = 120.0
"""For one request, body included. `OCCFLOW_S3_TIMEOUT_S` in the environment overrides it."""
_LONGEST_S = 24 * 3600.0
"""Of that variable: a day. What is much longer, infinity for one, does not fit the client's durations."""


def open_bucket(bucket: str, options: dict[str, Any], retries: int) -> Any:
    """obstore's handle of a bucket. `retries`: of its own, per request. Raises StoreError."""
    try:
        from obstore.store import S3Store
    except ImportError as error:
        message = f"s3://{bucket}: object storage needs the package obstore: pip install 'occflow[s3]'."
        raise StoreError(message) from error
    timeout = timedelta(seconds=_timeout_s())
    client: dict[str, Any] = {"timeout": timeout, "connect_timeout": min(timeout, timedelta(seconds=10))}
    client["allow_http"] = str(options.get("endpoint", "")).startswith("http://")
    retry: Any = {"max_retries": retries, "retry_timeout": 2 * timeout}
    try:
        return S3Store(bucket, **options, client_options=cast(Any, client), retry_config=retry)
    except Exception as error:
        raise StoreError(f"s3://{bucket}: cannot be opened: {error}. Check the AWS_… variables.") from error


def _timeout_s() -> float:
    """Seconds that one request may take. Raises StoreError for what is no such number."""
    given = os.environ.get("OCCFLOW_S3_TIMEOUT_S") or str(TIMEOUT_S)
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _LONGEST_S:
        raise StoreError(
            f"OCCFLOW_S3_TIMEOUT_S={given}: expected seconds above 0, at most {_LONGEST_S:.0f}, such as "
            f"{TIMEOUT_S:.0f}; or unset it"
        )
    return seconds


def options_of_environment() -> dict[str, Any]:
    """What the environment says of endpoint, region and credentials, as the AWS tools read it.

    Raises StoreError for an endpoint that is no address.
    """
    env = os.environ
    options: dict[str, Any] = {}
    name = "AWS_ENDPOINT_URL_S3" if env.get("AWS_ENDPOINT_URL_S3") else "AWS_ENDPOINT_URL"
    endpoint = env.get(name)
    if endpoint:
        if not _is_address(endpoint):  # obstore panics over one
            raise StoreError(f"{name}={endpoint}: no address of a server; expected http://HOST:PORT or https://HOST")
        options["endpoint"] = endpoint.rstrip("/")
    options["region"] = env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or "us-east-1"
    names = {"access_key_id": "AWS_ACCESS_KEY_ID", "secret_access_key": "AWS_SECRET_ACCESS_KEY"}
    names["session_token"] = "AWS_SESSION_TOKEN"
    given = {option: env[name] for option, name in names.items() if env.get(name)}
    return options | (given or _profile())


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        named = parts.hostname and parts.port != 0
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(named) and not any(character.isspace() for character in text)


def _profile() -> dict[str, str]:
    """Credentials of AWS_PROFILE, or the default profile, in ~/.aws/credentials; none where there is no such file."""
    path = os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or Path.home() / ".aws" / "credentials"
    parser = configparser.RawConfigParser(default_section="")
    try:
        parser.read(path)
        section = dict(parser[os.environ.get("AWS_PROFILE", "default")])
    except (KeyError, configparser.Error, OSError):
        return {}
    names = {"aws_access_key_id": "access_key_id", "aws_secret_access_key": "secret_access_key"}
    names["aws_session_token"] = "session_token"
    return {option: section[name] for name, option in names.items() if name in section}
