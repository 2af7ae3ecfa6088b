"""A stream with the comment lines that let a router move it to another worker; their form is in `quire_contract.resume`.

Pure: wraps an answer's form, and is one. Works for a stream that begins here and for one that goes on here: what the client has is made
once more, event by event, and left out.

    pieces of another worker ──> catch_up ──> events that the client has, counted and dropped; those that it lacks
    pieces of this one       ──> events   ──> events with their lines

A token's line stands in the first event that the token brings, that of a choice's end in the last one that the end brings. So the lines
that arrived say how far each choice is, and the number of events says how much of the very last piece is missing.
"""

from collections.abc import Callable, Sequence

from quire_contract.openai.errors import ApiError, invalid
from quire_contract.openai.responses import Usage
from quire_contract.resume import ResumeEnvelope
from quire_worker.server.answers import Answer, Gathered, ShownUsage
from quire_worker.server.choice import Piece

_END = b"\n\n"
"""Of an event; JSON holds no newline."""
Told = tuple[int, Piece]


class ToldAnswer:
    """One stream."""

    def __init__(self, answer: Answer, make_state: Callable[[], bytes] | None, *, num_choices: int) -> None:
        """`make_state`: what another worker needs besides the tokens, asked for when the stream begins; None: the router has it."""
        self._answer = answer
        self._make_state = make_state
        self._num_choices = num_choices
        self._head = b""
        """Lines for the next event."""
        self._untold: dict[int, list[int]] = {}
        """Tokens by choice, whose log-probabilities have not gone out."""
        self._begun: set[int] = set()
        """Choices of which an event was made."""
        self._num_known = 0
        """Events to come that the client has."""
        self._missing = b""
        """Made by `catch_up`, and not with the client."""

    def catch_up(
        self, arrived: Sequence[Told], envelope: ResumeEnvelope, usage: Usage, shown_usage: ShownUsage
    ) -> list[Told]:
        """Bring the answer to where the client is. Returns the pieces that are for `events`: ends that the client has not got whole.

        ApiError 400 for a number of events that cannot be. Takes a while for many pieces."""
        finished = {choice.index for choice in envelope.choices if choice.finished}
        preamble = self._answer.begin(usage)
        num_made = preamble.count(_END)
        last: dict[int, bytes] = {}
        ends: list[Told] = []
        for index, piece in arrived:
            if piece.is_silent:
                continue
            if piece.finish_reason is not None and index not in finished:
                ends.append((index, piece))
                continue
            made = self._answer.events(((index, piece),), shown_usage)
            self._begun.add(index)
            num_made += made.count(_END)
            if index not in finished and made:
                last[index] = made
        num_missing = num_made - envelope.num_events
        self._num_known = max(0, -num_missing)
        if num_missing > 0:
            self._missing = _missing(preamble, last, num_missing, envelope)
        return ends

    def begin(self, usage: Usage) -> bytes:
        """What a stream starts with; one that goes on, with what the client lacks."""
        if self._make_state is None:
            return self._missing
        self._head = b": s %b\n" % self._make_state() + _usage_line(usage, 0)
        made = self._answer.begin(usage)
        return self._with_lines(made) if made else b""

    def events(self, arrived: Sequence[Told], usage: ShownUsage) -> bytes:
        """The pieces' events and lines."""
        written: list[bytes] = []
        for index, piece in arrived:
            made = b"" if piece.is_silent else self._answer.events(((index, piece),), usage)
            is_end = piece.finish_reason is not None
            # The event that opens a choice has no log-probabilities.
            is_opening = bool(made and piece.entries) and index not in self._begun
            if made:
                self._begun.add(index)
            if self._num_known and (is_end or is_opening or self._num_choices == 1):
                made = self._without_known(made)
            line = _token_line(index, self._told(index, [] if is_end else piece.token_ids))
            if is_opening:
                written.append(self._with_lines(made, b"", line))
            else:
                written.append(self._with_lines(made, line, self._end_lines(index, piece) if is_end else b""))
        return b"".join(written)

    def _end_lines(self, index: int, piece: Piece) -> bytes:
        """Tokens that came to nothing, inside a stop string, and that the choice is finished; not if its tokens are kept back."""
        return b"" if index in self._untold else _token_line(index, piece.token_ids) + b": f %d\n" % index

    def _told(self, index: int, token_ids: list[int]) -> list[int]:
        """Of the tokens so far those to be told now: the last ones wait until their log-probabilities have gone out."""
        num_held = self._answer.num_held(index)
        if not num_held and not self._untold:
            return token_ids
        waiting = self._untold.pop(index, []) + token_ids
        num_told = max(0, len(waiting) - num_held)
        if num_told < len(waiting):
            self._untold[index] = waiting[num_told:]
        return waiting[:num_told]

    def num_held(self, index: int) -> int:
        return self._answer.num_held(index)

    def end(self, usage: Usage, *, include_usage: bool) -> bytes:
        """The end, with all tokens counted in its last event."""
        made = self._without_known(self._answer.end(usage, include_usage=include_usage))
        return self._with_lines(made, b"", _usage_line(usage, usage.completion_tokens))

    def error(self, error: ApiError) -> bytes:
        return self._with_lines(self._answer.error(error))

    def whole(self, choices: Sequence[Gathered], usage: Usage) -> bytes:
        return self._answer.whole(choices, usage)

    def _without_known(self, made: bytes) -> bytes:
        num_left_out = min(self._num_known, made.count(_END))
        self._num_known -= num_left_out
        return _without_first(made, num_left_out)

    def _with_lines(self, made: bytes, first: bytes = b"", last: bytes = b"") -> bytes:
        """Events with these lines in the first and the last; lines alone, if there are no events."""
        if self._head:
            first, self._head = self._head + first, b""
        if not made:
            return b"%b%b\n" % (first, last) if first or last else b""
        if last:
            begin = made.rfind(_END, 0, -1) + 1
            begin += begin > 0
            made = made[:begin] + last + made[begin:]
        return first + made


def _token_line(index: int, token_ids: Sequence[int]) -> bytes:
    return b": t %d %b\n" % (index, ",".join(map(str, token_ids)).encode()) if token_ids else b""


def _usage_line(usage: Usage, num_output: int) -> bytes:
    return b": u %d %d %d\n" % (usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens, num_output)


def _without_first(made: bytes, num_events: int) -> bytes:
    """Behind so many events."""
    begin = 0
    for _ in range(num_events):
        begin = made.index(_END, begin) + len(_END)
    return made[begin:]


def _missing(preamble: bytes, last: dict[int, bytes], num_missing: int, envelope: ResumeEnvelope) -> bytes:
    """The events that the last piece made and that did not arrive. Of several choices it is one whose last piece made so many."""
    whole = preamble
    if last:
        fitting = [index for index, made in last.items() if made.count(_END) > num_missing]
        known = envelope.last_choice
        index = known if known in fitting else min(fitting, default=None)
        whole = b"" if index is None else last[index]
    num_had = whole.count(_END) - num_missing
    if num_had < 0:
        raise invalid("num_events", f"these tokens made {num_missing} events more than {envelope.num_events}")
    return _without_first(whole, num_had)
