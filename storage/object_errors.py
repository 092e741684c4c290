"""What an object store's refusal means: whether it may pass, and what to do about it."""

import errno
import re
from dataclasses import dataclass

from storage.errors import StoreError

TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP answers that may pass; 409 too, which S3 gives to one of two conditional writes at the same moment."""
_TRANSIENT_CODES = frozenset({"RequestTimeout", "SlowDown", "ConditionalRequestConflict", "OperationAborted"})
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_KIND = re.compile(r"kind: (Connect|Timeout|Request|Interrupted|Decode|Unknown)\b")
_NO_CREDENTIALS = ("/latest/api/token", "/latest/meta-data", "169.254.170.2")
"""Where credentials are looked for last: the services that clouds offer to their own machines."""


class ObjectStoreError(StoreError):
    """A request to an object store that failed for good; the message names object, endpoint and remedy."""


@dataclass(frozen=True)
class Failure:
    """A failed request: HTTP `status` (None without an answer), S3's error `code` or how the connection failed."""

    status: int | None
    code: str
    text: str

    @property
    def transient(self) -> bool:
        """Whether the same request may succeed later."""
        if self.status is None:
            return self.code != "NoCredentials"
        return self.status in TRANSIENT_STATUS or self.status == 409 or self.code in _TRANSIENT_CODES

    @property
    def absent(self) -> bool:
        """Whether the object is not there (the bucket is)."""
        return self.status == 404 and self.code != "NoSuchBucket"

    @property
    def unconditional(self) -> bool:
        """Whether the server does not know the condition that the request carried."""
        return self.status == 501 or self.code == "NotImplemented"


def failure_of(error: BaseException) -> Failure:
    """What an exception of obstore says: its classes do not tell throttled from broken, its text does."""
    text = str(error)
    status, code, kind = _STATUS.search(text), _CODE.search(text), _KIND.search(text)
    first = text.split("\n", 1)[0].split(": <", 1)[0]
    if any(sign in first for sign in _NO_CREDENTIALS):
        return Failure(None, "NoCredentials", first)
    if status is not None:
        return Failure(int(status[1]), code[1] if code else "", first)
    if isinstance(error, FileNotFoundError):
        return Failure(404, "NoSuchKey", first)
    return Failure(None, kind[1] if kind else "", first)


def explain(failure: Failure, what: str, where: str, bucket: str, endpoint: str, tries: int = 1) -> ObjectStoreError:
    """The error for a request that failed for good.

    Args:
        what: the request, as "PUT".
        where: the object, as s3://bucket/key.
        tries: how often it was sent.
    """
    status, code = failure.status, failure.code
    again = "everything committed before is intact; run the same command again: it resumes"
    if code == "NoCredentials":
        remedy = (
            "no credentials were found. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN where "
            "there is one), or AWS_PROFILE with ~/.aws/credentials"
        )
    elif code == "NoSuchBucket":
        remedy = (
            f"there is no bucket {bucket!r} at this endpoint. Make it (aws s3 mb s3://{bucket}), correct its name, or "
            "set AWS_ENDPOINT_URL and AWS_REGION to where it is"
        )
    elif code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken") or status == 401:
        remedy = (
            "the server does not accept these credentials. Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and "
            "AWS_SESSION_TOKEN (is the token expired?), and that AWS_REGION is the bucket's"
        )
    elif status == 403:
        remedy = (
            f"permission denied. Allow this user s3:ListBucket on {bucket!r}, and s3:GetObject, s3:PutObject and "
            "s3:DeleteObject below the store's prefix"
        )
    elif status in (301, 307) or code in ("AuthorizationHeaderMalformed", "PermanentRedirect"):
        remedy = "the bucket lies in another region; set AWS_REGION to it"
    elif status in (429, 503) or code == "SlowDown":
        remedy = f"the server throttles ({again}); use fewer workers, or spread the work over time"
    elif status is None and code == "Connect":
        remedy = "the endpoint cannot be reached. Check AWS_ENDPOINT_URL, the network and proxies; " + again
    elif failure.transient:
        remedy = f"the server or the network was in trouble all the while; {again}"
    else:
        remedy = f"the server refuses this request. Check AWS_ENDPOINT_URL and the bucket's settings; {again}"
    found = f"{status} {code}".strip() if status is not None else failure.text
    often = f" {tries} times" if tries > 1 else ""
    error = ObjectStoreError(f"{where} at {endpoint}: {what} failed{often} ({found}): {remedy}.")
    if failure.transient:
        error.__cause__ = OSError(errno.ETIMEDOUT, failure.text)  # tells schedulers that trying again makes sense
    return error
