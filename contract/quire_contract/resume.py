"""Token replay: what lets a stream of one worker go on at another, with no token lost or repeated.

A worker asked with HEADER_REPLAY, by a router that it trusts, writes comment lines (the SSE standard has clients ignore them) before an
event's other lines, in the same event as the data that they tell of. Routers take them out again.

    : s <state>                     first event: what else the stream's beginning decided (seed, ids, times), opaque, base64url
    : t <choice> <id>,<id>,...      tokens of that choice since the last such line, also when their text is held back
    : f <choice>                    that choice is finished
    : u <prompt> <cached> <output>  numbers of tokens: with the first event (output 0), and with the last
    : migrate                       alone in the last event of a stream that a draining worker ends, without [DONE]: go on elsewhere

A token's line stands in the first event that it brings (with log-probabilities, in the first that holds them), `f` in the last one of the
choice's end, the last `u` in the last event: so a stream may be cut between any two events. An event that holds only such lines is no event
for clients, and does not count in `num_events`. A worker that loses its engine cuts its streams off without an error event.

To go on, the router posts a ResumeEnvelope to PATH_RESUME of another worker. What that worker answers is what the first one would have sent
after the events that the client has, comment lines included, headers as of any stream. Answers that are no stream carry HEADER_USAGE.
"""

import msgspec

HEADER_REPLAY = "x-quire-replay"
"""Request: "1" asks for the comment lines."""
HEADER_USAGE = "x-quire-usage"
"""Answer that is no stream: "prompt,cached,output" in tokens, if asked with HEADER_REPLAY."""
PATH_RESUME = "/internal/resume"
MIGRATE_EVENT = b": migrate\n\n"


class ResumedChoice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One choice as far as the client has it."""

    index: int
    token_ids: list[int]
    finished: bool = False


class ResumeEnvelope(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A stream that is to go on. JSON."""

    path: str
    """The API that was called."""
    body: str
    """The original body, as it was sent to the first worker."""
    state: str
    """Of the first event's `: s` line."""
    num_events: int
    """Events that carried data and were sent on, preamble included."""
    choices: list[ResumedChoice]
    """Those with a token or a finish; the others begin anew."""
    last_choice: int | None = None
    """Of the last `: t` line: where several choices stream, it says whose events a cut in the middle of a write has left out."""
