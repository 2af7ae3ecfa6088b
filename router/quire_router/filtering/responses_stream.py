"""Filters the stream of /v1/responses. A blocked response ends with response.incomplete, its reason content_filter."""

from typing import Any

from quire_router.call import Outcome
from quire_router.filtering.channels import FINISH_FILTERED, Channels, Event, Piece, typed_event
from quire_router.filtering.whole import filter_item

_TEXTS = {
    "response.output_text": "text",
    "response.reasoning_text": "text",
    "response.reasoning_summary_text": "text",
    "response.refusal": "refusal",
    "response.function_call_arguments": "arguments",
}
_LAST = frozenset({"response.completed", "response.incomplete", "response.failed"})


class ResponsesStream:
    """One stream. Events are numbered anew, as some are left out and some added."""

    def __init__(self, channels: Channels, outcome: Outcome) -> None:
        self._channels = channels
        self._outcome = outcome
        self._number = 0
        self._response: dict[str, Any] = {}
        self._done: list[dict[str, Any]] = []
        self._item: dict[str, Any] | None = None
        self._output_index = 0
        self._part: dict[str, Any] | None = None
        self._said: list[str] = []
        self.is_over = False
        """Whether a filter has ended it: nothing more of the worker's is wanted."""

    def take(self, event: Event) -> list[Piece]:
        """What the client gets of an event."""
        data = event.data
        if self.is_over or data is None:
            return [] if self.is_over else [Piece(event.raw, None)]
        kind = str(data.get("type"))
        base, _, stage = kind.rpartition(".")
        if base in _TEXTS:
            return self._delta(data, base) if stage == "delta" else self._text_done(data, base)
        if kind in ("response.created", "response.in_progress"):
            self._response = data["response"]
            return [self._piece(data, choice=None)]
        if kind == "response.output_item.added":
            self._item, self._output_index, self._said = data["item"], data["output_index"], []
        elif kind == "response.content_part.added":
            self._part, self._said = data, []
        elif kind == "response.content_part.done":
            data["part"] = self._with_said(data["part"])
            self._part = None
        elif kind == "response.output_item.done":
            return self._item_done(data)
        elif kind in _LAST:
            data["response"]["output"] = self._done
            return [self._piece(data, is_end=True)]
        return [self._piece(data)]

    def block(self, index: int) -> list[Piece]:
        """End the response."""
        del index
        if self.is_over:
            return []
        self.is_over = True
        pieces: list[Piece] = []
        item = self._item
        if item is not None:
            place = {"item_id": item.get("id"), "output_index": self._output_index}
            if self._part is not None:
                place["content_index"] = self._part["content_index"]
                part = self._with_said(self._part["part"])
                name = "reasoning_text" if part.get("type") == "reasoning_text" else "output_text"
                done = {"type": f"response.{name}.done", **place, "text": part["text"]}
                pieces.append(self._piece({**done, "logprobs": []} if name == "output_text" else done))
                pieces.append(self._piece({"type": "response.content_part.done", **place, "part": part}))
                item = {**item, "content": [part]}
            elif "arguments" in item:
                item = {**item, "arguments": "".join(self._said)}
            item = {**item, "status": "incomplete"}
            self._done.append(item)
            ended = {"type": "response.output_item.done", "output_index": self._output_index, "item": item}
            pieces.append(self._piece(ended))
        pieces.append(self._piece({"type": "response.incomplete", "response": self._ended()}, is_end=True))
        return pieces

    def withhold(self, index: int) -> list[Piece]:
        """The same when some of what it said is not sent: the end does not repeat any of it."""
        del index
        if self.is_over:
            return []
        self.is_over, self._done = True, []
        return [self._piece({"type": "response.incomplete", "response": self._ended()}, is_end=True)]

    def end(self) -> list[Piece]:
        """Nothing: response.incomplete was the end."""
        return []

    def _ended(self) -> dict[str, Any]:
        usage = self._outcome.usage
        told = None
        if usage is not None:
            told = {
                "input_tokens": usage.prompt,
                "output_tokens": usage.output,
                "total_tokens": usage.prompt + usage.output,
                "input_tokens_details": {"cached_tokens": usage.cached},
                "output_tokens_details": {"reasoning_tokens": 0},
            }
        details = {"reason": FINISH_FILTERED}
        return {
            **self._response,
            "status": "incomplete",
            "incomplete_details": details,
            "output": self._done,
            "usage": told,
        }

    def _piece(self, data: dict[str, Any], *, choice: int | None = 0, text: str = "", is_end: bool = False) -> Piece:
        data["sequence_number"] = self._number
        self._number += 1
        return Piece(typed_event(data), choice, text, is_end, repeats=str(data["type"]).endswith(".done"))

    def _delta(self, data: dict[str, Any], base: str) -> list[Piece]:
        is_json = {"response.function_call_arguments": True, "response.output_text": None}.get(base, False)
        text, blocked = self._channels.feed(_key(data, base), data["delta"], is_json=is_json)
        return self._said_more(data, text) + (self.block(0) if blocked else [])

    def _said_more(self, data: dict[str, Any], text: str) -> list[Piece]:
        if not text:
            return []
        self._said.append(text)
        data["delta"] = text
        if "logprobs" in data and self._channels.hides:
            data["logprobs"] = []
        return [self._piece(data, text=text)]

    def _text_done(self, data: dict[str, Any], base: str) -> list[Piece]:
        left, blocked = self._channels.end(_key(data, base))
        name = _TEXTS[base]
        more = {key: value for key, value in data.items() if key not in (name, "name")}
        pieces = self._said_more({**more, "type": f"{base}.delta"}, left)
        if blocked:
            return pieces + self.block(0)
        data[name] = "".join(self._said)
        if "logprobs" in data and self._channels.hides:
            data["logprobs"] = []
        return [*pieces, self._piece(data)]

    def _with_said(self, part: dict[str, Any]) -> dict[str, Any]:
        name = "refusal" if "refusal" in part else "text"
        hidden: dict[str, Any] = {"logprobs": []} if self._channels.hides and "logprobs" in part else {}
        return {**part, name: "".join(self._said), **hidden}

    def _item_done(self, data: dict[str, Any]) -> list[Piece]:
        """The item says again what its events said: the filter comes to the same."""
        if filter_item(data["item"], self._channels):
            return self.block(0)
        self._done.append(data["item"])
        self._item = None
        return [self._piece(data)]


def _key(data: dict[str, Any], base: str) -> tuple[Any, ...]:
    return (data.get("output_index"), data.get("content_index", data.get("summary_index")), base)
