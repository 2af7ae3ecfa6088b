"""What the API process and the engine process say to each other: msgpack frames over two ZMQ sockets on a private path.

    API process  -- PUSH -->  engine      Submit, Embed, Abort, SetDraining, SetAsleep, Shutdown
    API process  <-- PULL --  engine      Ready, Outputs, Rejected, Stats, SleepChanged, Fatal

One message a frame, a msgspec tagged union. Text never crosses: the API process tokenises, detokenises and looks for stop strings.
"""

import msgspec

from quire_worker.embedding import Embed
from quire_worker.plan import ModelInfo
from quire_worker.request import ChoiceOutput, Submit

__all__ = [
    "Abort",
    "ChoiceOutput",
    "Embed",
    "Fatal",
    "FromEngine",
    "Outputs",
    "Ready",
    "Rejected",
    "SetAsleep",
    "SetDraining",
    "Shutdown",
    "SleepChanged",
    "Stats",
    "Submit",
    "ToEngine",
]


class Abort(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="abort"):
    """Stop a request (choice None) or one choice of it. Unknown ids are ignored: the request may just have ended.

    Nothing is sent back for an aborted choice: the API process asked, so it knows."""

    request_id: str
    choice: int | None = None


class SetDraining(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="draining"):
    """Shown in load reports; running and waiting requests go on. The API process refuses new ones."""

    draining: bool


class SetAsleep(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="asleep"):
    """Sleep as soon as there is no work, or wake. Answered by SleepChanged once it is so; the API process refuses requests meanwhile."""

    asleep: bool


class Shutdown(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="shutdown"):
    """Exit with code 0 now."""


ToEngine = Submit | Embed | Abort | SetDraining | SetAsleep | Shutdown


class Ready(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="ready"):
    """Weights are loaded and a step has run. Sent once."""

    info: ModelInfo
    epoch: str
    """Names this life of the engine; KV events and load reports carry it."""
    events_endpoint: str = ""
    """Where the event socket really listens (a port 0 was chosen by the system), "" if there is none."""
    replay_endpoint: str = ""


class Outputs(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="outputs"):
    """All that one commit brought, in one frame."""

    items: list[ChoiceOutput]


class Rejected(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="rejected"):
    """A Submit that was not taken."""

    request_id: str
    reason: str
    """"queue_full" (HTTP 429 with Retry-After) | "too_long" (400) | "invalid" (400) | "grammar" (400, for the field it came from)"""
    message: str
    retry_after_s: int = 1
    """With "queue_full": when there is likely room for it."""


class Stats(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="stats"):
    """The engine's state, on change, at most every 100 ms, at least every second (it is the heartbeat). Counters never reset."""

    num_steps: int
    num_running: int
    num_waiting: int
    num_free_blocks: int
    num_blocks: int
    """Physical blocks, the null block included: an idle engine has num_blocks - 1 free ones."""
    num_preemptions: int
    num_prompt_tokens: int
    """Prompt tokens of admitted requests, cached ones included."""
    num_cached_tokens: int
    num_generated_tokens: int
    prefix_queries: int
    """Tokens looked up in the prefix cache."""
    prefix_hits: int
    """Tokens found there."""
    queue_time_s: list[float] = []
    """Of each request first admitted since the last Stats."""
    step_tokens: list[int] = []
    """Tokens computed in each step since the last Stats (bounded; oldest dropped)."""
    step_time_s: list[float] = []
    """Parallel to step_tokens."""
    num_deferred: int = 0
    """Of num_waiting, those that wait for something else than a row and blocks."""
    num_preempted_tokens: int = 0
    """Computed tokens that preempted choices gave up."""
    retry_after_s: int = 1
    """When those that wait now will likely have begun, whole seconds."""
    num_grammar_hits: int = 0
    """Requests whose grammar was compiled already."""
    num_grammar_rejections: int = 0
    """Requests refused for their grammar."""
    grammar_compile_time_s: list[float] = []
    """Of each grammar compiled since the last Stats, refused ones included."""
    num_at_desk: int = 0
    """Choices that wait for their grammar to be compiled. Not among num_waiting: no step can bring them on."""


class SleepChanged(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="sleep_changed"):
    """What became of a SetAsleep."""

    asleep: bool
    """The state now."""
    size_bytes: int
    """Memory given back, or filled again."""
    time_s: float
    problem: str = ""
    """Why it still sleeps, for a person: the cause and the fix."""


class Fatal(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="fatal"):
    """The engine cannot start or go on; it exits non-zero right after."""

    message: str
    """For a person: names the cause and the fix, one line."""


FromEngine = Ready | Outputs | Rejected | Stats | SleepChanged | Fatal
