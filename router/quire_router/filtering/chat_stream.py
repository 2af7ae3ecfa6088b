"""Filters the streams of /v1/chat/completions and /v1/completions. Each choice has texts of its own; one that is blocked ends alone."""

from typing import Any

from quire_contract.openai.responses import SSE_DONE
from quire_router.call import Outcome
from quire_router.filtering.channels import FINISH_FILTERED, Asked, Channels, Event, Piece, plain_event

_TEXTS = ("content", "refusal", "reasoning", "reasoning_content")
_STAYS_OPEN = frozenset({"content", "text"})
"""Clients put these together from all of a choice's events, whatever comes between."""


class ChatStream:
    """One stream."""

    def __init__(self, channels: Channels, asked: Asked, outcome: Outcome) -> None:
        self._channels = channels
        self._asked = asked
        self._outcome = outcome
        self._blocked: set[int] = set()
        self._done: set[int] = set()
        self._head: dict[str, Any] = {}

    @property
    def is_over(self) -> bool:
        """Whether all choices have ended, at least one of them by a filter: nothing more of the worker's is wanted."""
        return bool(self._blocked) and len(self._done) >= self._asked.num_choices

    def take(self, event: Event) -> list[Piece]:
        """What the client gets of an event, one choice in each."""
        chunk = event.data
        if chunk is None or not chunk.get("choices"):
            return [Piece(event.raw, None)]
        self._head = {key: value for key, value in chunk.items() if key not in ("choices", "usage")}
        return [
            piece
            for choice in chunk["choices"]
            if choice["index"] not in self._blocked and (piece := self._filtered(chunk, choice)) is not None
        ]

    def block(self, index: int) -> list[Piece]:
        """End a choice of which nothing more may be said."""
        if index in self._blocked:
            return []
        self._drop(index)
        empty: dict[str, Any] = {"delta": {}} if "chat" in str(self._head.get("object")) else {"text": ""}
        choice = {"index": index, **empty, "logprobs": None, "finish_reason": FINISH_FILTERED}
        return [Piece(plain_event({**self._head, "choices": [choice]}), index, is_end=True)]

    def withhold(self, index: int) -> list[Piece]:
        """The same when some of what it said is not sent."""
        return self.block(index)

    def end(self) -> list[Piece]:
        """The end of a stream that is over. Tokens are told if they are known."""
        pieces = [Piece(SSE_DONE, None)]
        usage = self._outcome.usage
        if self._asked.include_usage and usage is not None:
            total = usage.prompt + usage.output
            told = {
                "prompt_tokens": usage.prompt,
                "completion_tokens": usage.output,
                "total_tokens": total,
                "prompt_tokens_details": {"cached_tokens": usage.cached},
            }
            pieces.insert(0, Piece(plain_event({**self._head, "choices": [], "usage": told}), None))
        return pieces

    def _drop(self, index: int) -> None:
        self._blocked.add(index)
        self._done.add(index)
        for key in self._keys(index):
            self._channels.end(key)

    def _keys(self, index: int) -> list[Any]:
        return [key for key in self._channels.open_keys if isinstance(key, tuple) and key[0] == index]

    def _filtered(self, chunk: dict[str, Any], choice: dict[str, Any]) -> Piece | None:
        index, finish = choice["index"], choice.get("finish_reason")
        delta = choice.get("delta", choice)
        blocked, fed = self._feed(index, delta)
        for key in self._keys(index):
            ends = finish is not None or blocked or (fed and key not in fed and key[1] not in _STAYS_OPEN)
            if ends:
                left, hit = self._channels.end(key)
                blocked |= hit
                _put(delta, key, left)
        if self._channels.hides:
            choice.pop("token_ids", None)
            if "logprobs" in choice:
                choice["logprobs"] = None
        if blocked:
            choice["finish_reason"] = FINISH_FILTERED
            self._drop(index)
        elif finish is not None:
            self._done.add(index)
        text = _text_of(delta)
        if not (text or choice.get("finish_reason") or _says_more(delta) or chunk.get("usage")):
            return None
        is_end = choice.get("finish_reason") is not None
        return Piece(plain_event({**chunk, "choices": [choice]}), index, text, is_end)

    def _feed(self, index: int, delta: dict[str, Any]) -> tuple[bool, set[Any]]:
        """Put filtered texts into `delta`: whether one is blocked, and which had any."""
        blocked = False
        fed: set[Any] = set()
        for name in (*_TEXTS, "text"):
            if isinstance(delta.get(name), str) and delta[name]:
                fed.add((index, name))
                # reasoning is no JSON, whatever was asked for
                delta[name], hit = self._channels.feed(
                    (index, name), delta[name], is_json=None if name in _STAYS_OPEN else False
                )
                blocked |= hit
        calls = [("tool", call.get("index", 0), call.get("function")) for call in delta.get("tool_calls") or ()]
        calls.append(("function_call", 0, delta.get("function_call")))
        for name, place, function in calls:
            if isinstance(function, dict) and isinstance(function.get("arguments"), str) and function["arguments"]:
                key = (index, name, place)
                fed.add(key)
                function["arguments"], hit = self._channels.feed(key, function["arguments"], is_json=True)
                blocked |= hit
        return blocked, fed


def _put(delta: dict[str, Any], key: Any, text: str) -> None:
    """Add what was held of a text."""
    if not text:
        return
    if key[1] == "tool":
        calls = delta.setdefault("tool_calls", [])
        own = next(
            (call for call in calls if call.get("index", 0) == key[2] and "arguments" in call.get("function", {})), None
        )
        if own is None:
            calls.append({"index": key[2], "function": {"arguments": text}})
        else:
            own["function"]["arguments"] += text
    elif key[1] == "function_call":
        function = delta.setdefault("function_call", {})
        function["arguments"] = (function.get("arguments") or "") + text
    else:
        delta[key[1]] = (delta.get(key[1]) or "") + text


def _text_of(delta: dict[str, Any]) -> str:
    texts = [delta.get(name) or "" for name in ("content", "refusal", "reasoning", "text")]
    if not texts[2]:
        texts.append(delta.get("reasoning_content") or "")
    functions = [call.get("function") or {} for call in delta.get("tool_calls") or ()]
    functions.append(delta.get("function_call") or {})
    return "".join([*texts, *(function.get("arguments") or "" for function in functions)])


def _says_more(delta: dict[str, Any]) -> bool:
    named = any(call.get("id") or (call.get("function") or {}).get("name") for call in delta.get("tool_calls") or ())
    return bool(delta.get("role")) or named or bool((delta.get("function_call") or {}).get("name"))
