"""AWS Signature Version 4 for GET requests, as S3 and the stores that imitate it ask for it.

Pure. https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
"""

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from urllib.parse import quote

EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
_ALGORITHM = "AWS4-HMAC-SHA256"


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """An access key; never shown."""

    access_key_id: str = field(repr=False)
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


def encode_path(path: str) -> str:
    """Each byte but unreserved ones and "/" as %XX, the form that is signed and the form that is sent."""
    return quote(path, safe="/-_.~")


def encode_query(pairs: Sequence[tuple[str, str]]) -> str:
    """Sorted, encoded; empty for no pairs."""
    encoded = sorted((quote(name, safe="-_.~"), quote(text, safe="-_.~")) for name, text in pairs)
    return "&".join(f"{name}={text}" for name, text in encoded)


def sign_get(
    *, host: str, path: str, query: str, region: str, credentials: Credentials, now: datetime
) -> Mapping[str, str]:
    """Headers of a signed GET without a body. `path` and `query` are encoded already; `now` is UTC; `host` as in the Host header."""
    stamp = now.strftime("%Y%m%dT%H%M%SZ")
    headers = {"host": host, "x-amz-content-sha256": EMPTY_SHA256, "x-amz-date": stamp}
    if credentials.session_token is not None:
        headers["x-amz-security-token"] = credentials.session_token
    names = ";".join(sorted(headers))
    canonical_headers = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
    canonical = "\n".join(("GET", path, query, canonical_headers, names, EMPTY_SHA256))
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    to_sign = "\n".join((_ALGORITHM, stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()))
    key = f"AWS4{credentials.secret_access_key}".encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    signature = hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest()
    credential = f"{credentials.access_key_id}/{scope}"
    authorization = f"{_ALGORITHM} Credential={credential}, SignedHeaders={names}, Signature={signature}"
    sent = {name: text for name, text in headers.items() if name != "host"}
    return {**sent, "Authorization": authorization}
