"""Filters the stream of /v1/messages. A blocked message ends with stop_reason "refusal", as Anthropic's own filters end one."""

from typing import Any

from quire_router.call import Outcome
from quire_router.filtering.channels import Channels, Event, Piece, typed_event

STOP_FILTERED = "refusal"
_TEXTS = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}


class MessagesStream:
    """One stream."""

    def __init__(self, channels: Channels, outcome: Outcome) -> None:
        self._channels = channels
        self._outcome = outcome
        self._usage: dict[str, Any] = {}
        self._open: int | None = None
        self._delta_type = ""
        self.is_over = False
        """Whether a filter has ended it: nothing more of the worker's is wanted."""

    def take(self, event: Event) -> list[Piece]:
        """What the client gets of an event."""
        data = event.data
        if self.is_over or data is None:
            return [] if self.is_over else [Piece(event.raw, None)]
        match data.get("type"):
            case "message_start":
                self._usage = data["message"].get("usage") or {}
                return [Piece(event.raw, None)]
            case "content_block_start":
                self._open = data["index"]
                return [Piece(event.raw, 0)]
            case "content_block_delta":
                return self._delta(event, data)
            case "content_block_stop":
                pieces = self._held()
                if not self.is_over:
                    self._open = None
                    pieces.append(Piece(event.raw, 0))
                return pieces
            case "message_delta":
                return [Piece(event.raw, 0, is_end=True)]
        return [Piece(event.raw, 0)]

    def block(self, index: int) -> list[Piece]:
        """End the message."""
        del index
        if self.is_over:
            return []
        self.is_over = True
        ending: list[dict[str, Any]] = []
        if self._open is not None:
            self._channels.end(self._open)
            ending.append({"type": "content_block_stop", "index": self._open})
        usage = self._outcome.usage
        counts = self._usage if usage is None else {**self._usage, "output_tokens": usage.output}
        delta = {"stop_reason": STOP_FILTERED, "stop_sequence": None}
        ending.append({"type": "message_delta", "delta": delta, "usage": counts})
        ending.append({"type": "message_stop"})
        return [Piece(typed_event(data), 0, is_end=True) for data in ending]

    def withhold(self, index: int) -> list[Piece]:
        """The same when some of what it said is not sent."""
        return self.block(index)

    def end(self) -> list[Piece]:
        """Nothing: message_stop was the end."""
        return []

    def _delta(self, event: Event, data: dict[str, Any]) -> list[Piece]:
        delta = data["delta"]
        name = _TEXTS.get(delta.get("type"))
        if name is None:  # a signature: what was held of the thinking goes before it
            return [*self._held(), *([] if self.is_over else [Piece(event.raw, 0)])]
        self._delta_type = delta["type"]
        is_json = {"partial_json": True, "thinking": False}.get(name)
        delta[name], blocked = self._channels.feed(data["index"], delta[name], is_json=is_json)
        pieces = [Piece(typed_event(data), 0, delta[name])] if delta[name] else []
        return pieces + (self.block(0) if blocked else [])

    def _held(self) -> list[Piece]:
        left, blocked = self._channels.end(self._open)
        pieces = []
        if left:
            delta = {"type": self._delta_type, _TEXTS[self._delta_type]: left}
            data = {"type": "content_block_delta", "index": self._open, "delta": delta}
            pieces.append(Piece(typed_event(data), 0, left))
        return pieces + (self.block(0) if blocked else [])
