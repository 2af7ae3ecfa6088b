"""The file that tells a router which workers exist and which names they serve. `quire up` writes it, the router polls it.

JSON, replaced as a whole (write beside, then rename), so that a reader sees the old file or the new one. Unknown keys are errors.
A name in `models` without an endpoint is known but not ready (503); any other name is unknown (404).
"""

import os
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

VERSION = 1


class RouterConfigError(ValueError):
    """The file cannot be used. The message names the file, the field and the fix."""


class ModelEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A served name."""

    name: str
    """As clients write it in `model`."""
    service: str = ""
    """The InferenceService behind it, "namespace/name"."""


class EndpointEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One worker."""

    id: str
    """The pod's name: topics are kv@<id>@<model>."""
    url: str
    """http://host:port, no path."""
    models: list[str]
    """Served names that it answers to; each is in RouterConfig.models."""
    events: str | None = None
    """ZMQ address of its event socket; None: it sends none."""
    replay: str | None = None
    """ZMQ address of its replay socket."""


class RouterConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that a router serves."""

    models: list[ModelEntry]
    endpoints: list[EndpointEntry]
    version: int = VERSION


def encode_config(config: RouterConfig) -> bytes:
    """The file's bytes."""
    return msgspec.json.format(msgspec.json.encode(config), indent=2) + b"\n"


def decode_config(data: bytes, source: str = "router configuration") -> RouterConfig:
    """The configuration in `data`; `source` names it in errors. RouterConfigError if it cannot be used."""
    try:
        config = msgspec.json.decode(data, type=RouterConfig)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RouterConfigError(f"{source}: {error}") from None
    problem = _first_problem(config)
    if problem is not None:
        raise RouterConfigError(f"{source}: {problem}")
    return config


def read_config(path: Path) -> RouterConfig:
    """The configuration in the file at `path`. RouterConfigError if it is missing, unreadable or wrong."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RouterConfigError(f"{path}: cannot be read: {error.strerror}") from None
    return decode_config(data, str(path))


def write_config(path: Path, config: RouterConfig) -> None:
    """Replace the file at `path` in one step."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    beside.write_bytes(encode_config(config))
    beside.replace(path)


def _first_problem(config: RouterConfig) -> str | None:
    if config.version != VERSION:
        return f"version is {config.version}, this router reads version {VERSION}"
    names = [model.name for model in config.models]
    if len(set(names)) < len(names):
        return f"models: {_first_repeated(names)!r} is listed twice"
    ids = [endpoint.id for endpoint in config.endpoints]
    if len(set(ids)) < len(ids):
        return f"endpoints: id {_first_repeated(ids)!r} is used twice"
    for index, endpoint in enumerate(config.endpoints):
        problem = _endpoint_problem(endpoint, set(names))
        if problem is not None:
            return f"endpoints[{index}].{problem}"
    return None


def _endpoint_problem(endpoint: EndpointEntry, names: set[str]) -> str | None:
    if not endpoint.id or "@" in endpoint.id:
        return f"id: {endpoint.id!r} must be a pod name (not empty, no '@')"
    parts = urlsplit(endpoint.url)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.path not in ("", "/"):
        return f"url: {endpoint.url!r} must be http://host:port without a path"
    unknown = sorted(set(endpoint.models) - names)
    if unknown:
        return f"models: {unknown[0]!r} is not in models; add it there"
    for field in ("events", "replay"):
        address = getattr(endpoint, field)
        if address is not None and "://" not in address:
            return f"{field}: {address!r} must be a ZMQ address such as tcp://127.0.0.1:5557"
    return None


def _first_repeated(values: list[str]) -> str:
    return next(value for index, value in enumerate(values) if value in values[:index])
