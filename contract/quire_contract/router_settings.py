"""What a release's routers do beside serving models: admission, mending, saving, filtering, accounting. Part of its configuration.

Every section has defaults with which a router works; what a platform team turns on is off by default. Unknown keys are errors.
"""

import re
from typing import Literal
from urllib.parse import urlsplit

import msgspec

MAX_FILTERS = 64
MAX_PATTERNS, MAX_PATTERN_CHARS = 64, 2000
MAX_WORDS, MAX_WORD_CHARS = 20_000, 100
MAX_MATCH_BYTES = 4096
MAX_REPLACEMENT_CHARS = 200
MAX_HOOK_TIMEOUT_S = 60.0
MIN_CHECK_CHARS, MAX_CHECK_CHARS = 100, 100_000
_FILTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_ENV_NAME = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)?")


class AdmissionSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Requests that wait in the router while the workers of their model are full, or while there is none."""

    max_queued_requests: int = 2000
    """For each model; more are refused with 429."""
    max_queued_mib: int = 256
    """Bodies of waiting requests, over all models, in MiB."""
    queue_timeout_s: float = 60.0
    """Longest wait for workers that are full."""
    no_endpoint_timeout_s: float = 300.0
    """Longest wait for a model's first ready worker."""
    waiting_per_worker: int = 4
    """A worker with more requests in its own queue is full."""
    kv_use_limit: float = 0.95
    """A worker with a greater part of its KV blocks in use by requests is full, unless it runs nothing."""
    in_flight_per_worker: int = 256
    """A worker that reports no load is full with so many of a router's requests; also used for a batch size that is not reported."""
    comment_s: float = 5.0
    """A stream that waits longer gets its status and a comment line, and another one as often, so that its client knows that it is
    alive; what is refused after that comes as an error event. 0: nothing is sent while it waits."""
    max_queued_service_percent: int = 50
    """Of max_queued_mib, for the requests of one service, where there are several services."""
    max_queued_tenant_percent: int = 50
    """Of max_queued_requests and max_queued_mib, for the requests of one tenant, where there are several tenants."""


class FaultSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is done about workers that fail."""

    resume_streams: bool = True
    """Streams of a worker that died go on at another one."""
    max_resumes: int = 3
    """For each stream."""
    lost_after_s: float = 5.0
    """A worker that reported load before and is silent for so long, and whose probe fails, has lost its streams."""
    consecutive_failures: int = 5
    """After so many in a row, a worker is out of the choice for a while; 0: never."""
    ejection_s: float = 10.0
    """The first time out; it doubles with each further one, up to sixteen times as much."""
    max_ejected_percent: int = 50
    """Of a model's workers."""
    hedge_after_s: float | None = None
    """A stream without its first event by then is also sent to a second worker, and the first to answer wins. None: never."""
    max_hedged_percent: int = 5
    """Of the requests."""
    resume_wait_s: float = 30.0
    """Longest pause of a stream that must go on elsewhere while no worker can take it."""


class SavingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Work that is not done twice."""

    response_cache: bool = False
    """Answers to deterministic requests are kept, for each tenant apart."""
    response_ttl_s: float = 300.0
    response_cache_mib: int = 256
    """In the router's memory, and at most as much in Redis where there is one."""
    max_response_kib: int = 1024
    """A longer answer is not kept."""
    coalesce: bool = False
    """Identical deterministic requests in flight, of one tenant, share one generation."""


class ModerationHook(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """An outside moderator, asked over HTTP."""

    url: str
    timeout_s: float = 2.0
    on_failure: Literal["open", "closed"] = "closed"
    """Whether a request passes when the moderator does not answer."""
    header_env: str = ""
    """Environment variable of the router with the value of the Authorization header; empty: none is sent."""
    check_chars: int = 2000
    """A streamed answer is held back until the moderator has allowed it, in portions of so many characters."""


class FilterEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One rule about content. Exactly one of patterns, words, pii, max_chars and hook says what it looks for."""

    name: str
    """In answers, logs and metrics; never with what was found."""
    stage: Literal["prompt", "output", "both"] = "both"
    action: Literal["block", "redact", "flag"] = "block"
    patterns: list[str] = []
    """Regular expressions of a linear-time engine."""
    words: list[str] = []
    """Whole words, in any case."""
    pii: list[Literal["email", "phone", "credit_card", "iban", "ip_address", "us_ssn", "api_key"]] = []
    max_chars: int | None = None
    """Of a prompt's whole text."""
    hook: ModerationHook | None = None
    models: list[str] = []
    """Names that clients ask for; empty: all."""
    tenants: list[str] = []
    """Ids of tenants; empty: all."""
    replacement: str = "[redacted]"
    max_match_bytes: int = 256
    """Longest match of `patterns`, in bytes of UTF-8. Text of an answer may be held back by as much, until it is clear that it is none."""
    on_unreadable: Literal["open", "closed"] = "closed"
    """Whether a prompt of token ids passes a filter that blocks or redacts, where no worker of the model has told its tokenizer."""


class UsageSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is written down of each request."""

    stream_max_records: int = 1_000_000
    """Kept in Redis' stream; about that many."""
    memory_max_records: int = 100_000
    """Kept in the router without Redis."""
    currency: str = "USD"


class LimitSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How limits hold over several routers."""

    lease_percent: int = 10
    """Part of a limit that a router may take from Redis in advance: what is left of it when the router dies is lost, and a limit may
    be exceeded by that much while Redis is away."""
    without_redis: Literal["local", "refuse"] = "local"
    """While Redis is away: each router counts by itself (a limit may then hold for each of them), or refuses tenants with limits."""
    default_output_tokens: int = 256
    """Reserved for the answer of a request that names no maximum."""


class ChoiceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How workers are chosen, beside a service's own policy."""

    slow_start_s: float = 10.0
    """A worker that has just become ready takes a share of the load that grows from a tenth to a whole one within this time, while others
    can begin with a request at once. Long enough for what an engine does at its first batches, shorter than the 15 s between two decisions
    of an autoscaler, which would take the load that is missing there for too few workers. 0: it takes its whole share at once."""


class RouterSettingsEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """All sections."""

    admission: AdmissionSettings = AdmissionSettings()
    faults: FaultSettings = FaultSettings()
    saving: SavingSettings = SavingSettings()
    filters: list[FilterEntry] = []
    usage: UsageSettings = UsageSettings()
    limits: LimitSettings = LimitSettings()
    choice: ChoiceSettings = ChoiceSettings()


def settings_problem(settings: RouterSettingsEntry) -> str | None:
    """The first thing that is wrong, beginning with the field's name."""
    for section in ("admission", "faults", "saving", "usage", "limits", "choice"):
        for field, value in msgspec.structs.asdict(getattr(settings, section)).items():
            if isinstance(value, int | float) and not isinstance(value, bool) and not 0 <= value < float("inf"):
                return f"{section}.{field}: is {value}; it must not be negative"
    return _range_problem(settings) or _filters_problem(settings.filters)


def _range_problem(settings: RouterSettingsEntry) -> str | None:
    for section, percent in (
        ("faults", "max_ejected_percent"),
        ("faults", "max_hedged_percent"),
        ("limits", "lease_percent"),
        ("admission", "max_queued_service_percent"),
        ("admission", "max_queued_tenant_percent"),
    ):
        if (value := getattr(getattr(settings, section), percent)) > 100:
            return f"{section}.{percent}: is {value}; it must be at most 100"
    if settings.faults.ejection_s == 0:
        return "faults.ejection_s: is 0; to leave no worker out, set faults.consecutive_failures to 0"
    if settings.admission.in_flight_per_worker < 1:
        return (
            "admission.in_flight_per_worker: is 0; give at least 1, or workers without load reports would get nothing"
        )
    return None


def _filters_problem(filters: list[FilterEntry]) -> str | None:
    if len(filters) > MAX_FILTERS:
        return f"filters: has {len(filters)} entries; at most {MAX_FILTERS} are allowed"
    seen: set[str] = set()
    for i, entry in enumerate(filters):
        problem = _filter_problem(entry)
        if problem is not None:
            return f"filters[{i}].{problem}"
        if entry.name in seen:
            return f"filters[{i}].name: {entry.name!r} is used twice"
        seen.add(entry.name)
    return None


def _filter_problem(entry: FilterEntry) -> str | None:
    if not _FILTER_NAME.fullmatch(entry.name):
        return (
            f"name: {entry.name[:80]!r} must be 1 to 64 letters, digits, '_', '.' and '-', the first a letter or digit"
        )
    kinds = [
        bool(entry.patterns),
        bool(entry.words),
        bool(entry.pii),
        entry.max_chars is not None,
        entry.hook is not None,
    ]
    if sum(kinds) != 1:
        return "patterns: give exactly one of patterns, words, pii, max_chars and hook"
    if entry.action == "redact" and (entry.max_chars is not None or entry.hook is not None):
        return "action: redact needs patterns, words or pii; use block or flag"
    if entry.max_chars is not None and (entry.max_chars < 1 or entry.stage == "output"):
        return "max_chars: must be at least 1, with stage prompt: it bounds what is sent to a model"
    if not 1 <= entry.max_match_bytes <= MAX_MATCH_BYTES:
        return f"max_match_bytes: is {entry.max_match_bytes}; use 1 to {MAX_MATCH_BYTES}"
    if len(entry.replacement) > MAX_REPLACEMENT_CHARS:
        return f"replacement: has {len(entry.replacement)} characters; at most {MAX_REPLACEMENT_CHARS} are allowed"
    return _list_problem(entry) or (None if entry.hook is None else _hook_problem(entry.hook))


def _list_problem(entry: FilterEntry) -> str | None:
    for field, values, most, most_chars in (
        ("patterns", entry.patterns, MAX_PATTERNS, MAX_PATTERN_CHARS),
        ("words", entry.words, MAX_WORDS, MAX_WORD_CHARS),
    ):
        if len(values) > most:
            return f"{field}: has {len(values)} entries; at most {most} are allowed"
        for j, value in enumerate(values):
            if not value.strip() or len(value) > most_chars:
                return f"{field}[{j}]: must have 1 to {most_chars} characters that are not all blank"
    return None


def _hook_problem(hook: ModerationHook) -> str | None:
    try:
        parts = urlsplit(hook.url)
        _ = parts.port
    except ValueError as error:
        return f"hook.url: is no address: {error}"
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        return "hook.url: must be http://host/path or https://host/path, without a user; a secret goes into header_env's variable"
    if not 0 < hook.timeout_s <= MAX_HOOK_TIMEOUT_S:
        return f"hook.timeout_s: is {hook.timeout_s}; use more than 0 and at most {MAX_HOOK_TIMEOUT_S:g} s"
    if not _ENV_NAME.fullmatch(hook.header_env):
        return f"hook.header_env: {hook.header_env[:80]!r} must be the name of an environment variable"
    if not MIN_CHECK_CHARS <= hook.check_chars <= MAX_CHECK_CHARS:
        return f"hook.check_chars: is {hook.check_chars}; use {MIN_CHECK_CHARS} to {MAX_CHECK_CHARS}"
    return None
