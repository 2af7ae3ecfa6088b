"""What the routes for machines answer, as types: /openapi.json shows them."""

from typing import Literal

import msgspec


class HealthAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """GET /health: the process lives."""

    status: Literal["ok"]
    phase: Literal["loading", "ready", "asleep", "draining", "failed"]


class ReadyAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """GET /ready: requests are taken."""

    status: Literal["ready"]


class VersionAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """GET /version."""

    version: str


class LoadAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """GET /load: requests inside this process."""

    server_load: int


class BundleAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """GET /internal/prompt-bundle: what to fetch under its digest."""

    digest: str
    size_bytes: int
    served_model_names: list[str]
    block_size: int
    max_model_len: int
    epoch: str


class EventSourcesAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """GET /kv_event_sources: where KV events and load reports are published; empty endpoints: nowhere."""

    events: str | None
    replay: str | None
    topic: str
    load_topic: str
    pod: str
    model: str
    epoch: str
    block_size: int


class DrainAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """POST and DELETE /internal/drain."""

    draining: bool
    num_requests: int
