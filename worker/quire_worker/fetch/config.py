"""What one fetch is told: a frozen dataclass, and the command line and environment that make it.

This module reads neither: `__main__` passes both as plain values.
"""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from quire_contract import names
from quire_worker.fetch.sigv4 import Credentials

DEFAULT_HF_ENDPOINT = "https://huggingface.co"
PROXY_VARIABLES = frozenset({"HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "https_proxy", "http_proxy", "no_proxy"})
_SCHEMES = ("hf", "s3", "http", "https")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FetchConfig:
    """One model from one source into one folder."""

    uri: str
    """hf://org/name, s3://bucket/prefix, http(s)://host/folder or archive."""
    revision: str | None = None
    """Commit, tag or branch of an hf:// repository; None: main."""
    dest: Path
    """The folder that holds the model afterwards; its parent is the cache."""
    hf_endpoint: str = DEFAULT_HF_ENDPOINT
    """Where hf:// repositories are."""
    s3_endpoint: str | None = None
    """Where s3:// buckets are; None: AWS."""
    ca_file: Path | None = None
    """PEM file with authorities to trust beside the system's."""
    max_bytes: int | None = None
    """The whole model at most; None: what the disk has."""
    cache_bytes: int | None = None
    """All models of the cache at most, this one included: the least recently used that nobody reads are deleted for it; None: no limit,
    and nothing is deleted."""
    parallel: int = 4
    """Files at once."""
    retry_for_s: float = 120.0
    """How long trouble of the source in a row is borne."""
    progress_host: str = "127.0.0.1"
    """Where GET /progress is answered."""
    progress_port: int = names.PORT_FETCH
    """Its port; 0 lets the system choose."""
    termination_log: Path = Path("/dev/termination-log")
    """Where the reason of a failure is written, if the file is there."""
    log_level: str = "info"
    """debug, info, warning or error."""
    pod: str = "local"
    """Who fetches, for those who wait."""
    pod_uid: str | None = None
    """The same when the container is restarted; None: of one run."""
    token: str | None = dataclasses.field(default=None, repr=False)
    """Bearer token of an hf:// or http(s):// source."""
    s3_credentials: Credentials | None = dataclasses.field(default=None, repr=False)
    """None: anonymous."""
    s3_region: str | None = None
    """None: found out."""
    proxies: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    """HTTPS_PROXY, HTTP_PROXY, NO_PROXY."""

    @property
    def scheme(self) -> str:
        """The source's kind."""
        return self.uri.partition("://")[0]


def parse_args(argv: Sequence[str], environ: Mapping[str, str]) -> FetchConfig:
    """The configuration. Exits with code 2 and names the flag or variable if one is wrong."""
    parser = argparse.ArgumentParser(
        prog="quire-fetch",
        allow_abbrev=False,
        description="Bring a model's files into a folder, resumably and checked; does nothing if they are there.",
        epilog="Environment: HF_TOKEN; AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION; TOKEN; "
        "HTTPS_PROXY, HTTP_PROXY, NO_PROXY; POD_NAME, POD_UID.",
    )
    defaults = {field.name: field.default for field in dataclasses.fields(FetchConfig)}
    add = parser.add_argument
    add("--uri", required=True, help="hf://org/name, s3://bucket/prefix or https://host/path")
    add("--dest", required=True, type=Path, metavar="DIR", help="folder that holds the model afterwards")
    add("--revision", help="commit, tag or branch of an hf:// repository")
    add("--hf-endpoint", default=DEFAULT_HF_ENDPOINT, metavar="URL", help="where hf:// repositories are")
    add("--s3-endpoint", metavar="URL", help="where s3:// buckets are, for stores other than AWS")
    add("--ca-file", type=Path, metavar="FILE", help="authorities to trust beside the system's")
    add("--max-bytes", type=_positive, metavar="N", help="largest model")
    add(
        "--cache-bytes",
        type=_positive,
        metavar="N",
        help="all models of the cache: the least recently used that nobody reads are deleted for this one (default: no limit)",
    )
    add("--parallel", type=_positive, default=defaults["parallel"], metavar="N", help="files at once")
    add(
        "--retry-for",
        dest="retry_for_s",
        type=float,
        default=defaults["retry_for_s"],
        metavar="SECONDS",
        help="patience",
    )
    add("--progress-host", default=defaults["progress_host"], metavar="ADDRESS", help="where /progress is answered")
    add("--progress-port", type=int, default=defaults["progress_port"], metavar="N", help="its port")
    add(
        "--termination-log",
        type=Path,
        default=defaults["termination_log"],
        metavar="FILE",
        help="gets the reason of a failure",
    )
    add("--log-level", choices=("debug", "info", "warning", "error"), default="info", help="what is logged")
    values = vars(parser.parse_args(argv))
    scheme = values["uri"].partition("://")[0]
    if scheme not in _SCHEMES or "://" not in values["uri"]:
        parser.error(f"argument --uri: must begin with {', '.join(f'{known}://' for known in _SCHEMES)}")
    for flag in ("hf_endpoint", "s3_endpoint"):
        if values[flag] is not None and not values[flag].startswith(("http://", "https://")):
            parser.error(f"argument --{flag.replace('_', '-')}: must be an http:// or https:// address")
    key_id, secret_key = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
    if scheme == "s3" and bool(key_id) != bool(secret_key):
        parser.error("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY go together: one of them is missing in the Secret")
    credentials = None
    if key_id and secret_key:
        session = environ.get("AWS_SESSION_TOKEN") or None
        credentials = Credentials(
            access_key_id=key_id.strip(), secret_access_key=secret_key.strip(), session_token=session
        )
    token = environ.get("HF_TOKEN" if scheme == "hf" else "TOKEN", "").strip()
    return FetchConfig(
        **values,
        pod=environ.get(names.ENV_POD_NAME) or "local",
        pod_uid=environ.get("POD_UID") or None,
        token=token or None,
        s3_credentials=credentials,
        s3_region=environ.get("AWS_REGION") or None,
        proxies={name: text for name, text in environ.items() if name in PROXY_VARIABLES},
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    return value
