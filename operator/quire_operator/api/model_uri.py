"""Where a model's files come from: the one text form `spec.model.uri`, parsed.

    hf://org/name            a Hugging Face repository (`revision` says which commit, tag or branch)
    pvc://claim/path         a folder on a PersistentVolumeClaim of the service's namespace
    s3://bucket/prefix       objects below a prefix
    https://host/folder/     a folder whose files are asked for by their known names
    https://host/x.tar.gz    an archive: .tar, .tar.gz or .tgz
    file:///srv/models/x     a folder that the container has already
    file://./models/x        the same, relative: to the manifest's folder under `quire up`, to the platform's model root in a pod
                             (file:models/x is the same thing, shorter)

This module must not read any file: whether the folder exists is for whoever runs the container.
"""

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, StringConstraints, WithJsonSchema
from pydantic_core import PydanticCustomError

MAX_URI_LENGTH = 1024
SCHEMES = ("hf", "pvc", "s3", "file", "http", "https")
FETCHED_SCHEMES = frozenset({"hf", "s3", "http", "https"})
"""Sources that are copied into a cache before a worker reads them."""
URI_PATTERN = r"^(hf://|pvc://|s3://|https?://|file:)[^\s]+$"
_EXAMPLES = "hf://org/name, pvc://claim/path, s3://bucket/prefix, https://host/path or file://./folder"
_PARTS = {
    "hf": (r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", "hf://org/name"),
    "pvc": (r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/.+)?", "pvc://claim/path"),
    "s3": (r"[a-z0-9][-a-z0-9.]{1,61}[a-z0-9](/.*)?", "s3://bucket/prefix"),
    "http": (r"[^/\s@]+/.*", "http://host/path"),
    "https": (r"[^/\s@]+/.*", "https://host/path (credentials belong into spec.model.secretRef)"),
}


@dataclass(frozen=True, kw_only=True)
class ModelUri:
    """A parsed model source."""

    scheme: str
    """One of SCHEMES."""
    authority: str
    """The claim of pvc://, the bucket of s3://, the host of http(s)://; empty otherwise."""
    path: str
    """The rest: the repository of hf://, a path without leading slash for pvc and s3, a path as written for file."""


class ModelUriError(ValueError):
    """The text is no model source; the message says what one looks like."""


def parse_model_uri(text: str) -> ModelUri:
    """Parses `spec.model.uri`. Raises ModelUriError with the fix."""
    scheme, colon, rest = text.partition(":")
    if not colon or scheme not in SCHEMES:
        raise ModelUriError(f"must be one of {_EXAMPLES}, not {text!r}")
    if ".." in rest.split("/"):
        raise ModelUriError("must not contain '..': write the folder's full path")
    if scheme == "file":
        return ModelUri(scheme="file", authority="", path=_file_path(rest))
    body = rest.removeprefix("//")
    pattern, example = _PARTS[scheme]
    if not rest.startswith("//") or not re.fullmatch(pattern, body):
        raise ModelUriError(f"must look like {example}, not {text!r}")
    if scheme == "hf":
        return ModelUri(scheme="hf", authority="", path=body)
    authority, _, path = body.partition("/")
    return ModelUri(scheme=scheme, authority=authority, path=path)


def _file_path(rest: str) -> str:
    """file:x, file://./x, file:///x; file://host/x names a machine, which we do not do."""
    path = rest
    if rest.startswith("//"):
        path = rest[2:]
        if not path.startswith(("/", "./")):
            raise ModelUriError(
                f"must look like file:///absolute/folder or file://./relative/folder, not 'file:{rest}'"
            )
    path = path.removeprefix("./").rstrip("/") or ("/" if path.startswith("/") else "")
    if path in {"", "/", "."}:
        raise ModelUriError("names no folder: write file:///absolute/folder or file://./relative/folder")
    return path


def _checked(text: str) -> str:
    try:
        parse_model_uri(text)
    except ModelUriError as error:
        raise PydanticCustomError("model_uri", "{reason}", {"reason": str(error)}) from None
    return text


ModelUriText = Annotated[
    str,
    StringConstraints(min_length=1, max_length=MAX_URI_LENGTH),
    AfterValidator(_checked),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": MAX_URI_LENGTH, "pattern": URI_PATTERN}),
]
"""A model source as text, checked."""
