"""Filters answers that come whole. What stands before a blocked match stays, as in a stream; a call that is cut is no call and goes."""

from collections.abc import Collection
from typing import Any

from quire_contract import names
from quire_router.filtering.channels import FINISH_FILTERED, Channels
from quire_router.filtering.messages_stream import STOP_FILTERED


def filter_answer(path: str, answer: dict[str, Any], channels: Channels) -> None:
    """Change `answer`, of one of the APIs that generate, in its place."""
    if path == names.PATH_RESPONSES:
        _responses(answer, channels)
    elif path == names.PATH_MESSAGES:
        _messages(answer, channels)
    else:
        for choice in answer.get("choices") or ():
            _choice(choice, channels)


def answer_texts(path: str, answer: dict[str, Any]) -> dict[int, list[str]]:
    """What a client reads in an answer, by choice."""
    if path == names.PATH_RESPONSES:
        return {0: _strings(answer.get("output"))}
    if path == names.PATH_MESSAGES:
        return {0: _strings(answer.get("content"))}
    return {
        choice["index"]: _strings(choice.get("message") or choice.get("text")) for choice in answer.get("choices") or ()
    }


def empty_answer(path: str, answer: dict[str, Any], choices: Collection[int]) -> None:
    """Take all that these choices say out of an answer."""
    if path == names.PATH_RESPONSES:
        answer["output"] = []
        _incomplete(answer)
    elif path == names.PATH_MESSAGES:
        answer["content"] = []
        answer["stop_reason"], answer["stop_sequence"] = STOP_FILTERED, None
    else:
        for choice in answer.get("choices") or ():
            if choice["index"] in choices:
                _empty_choice(choice)


def filter_item(item: dict[str, Any], channels: Channels) -> bool:
    """Filter an item of a response: whether it is blocked."""
    if isinstance(item.get("arguments"), str):
        item["arguments"], blocked = channels.whole(item["arguments"], is_json=True)
        return blocked
    is_json = None if item.get("type") == "message" else False
    for field in ("content", "summary"):
        parts = item[field] if isinstance(item.get(field), list) else []
        for i, part in enumerate(parts):
            for name in ("text", "refusal"):
                if isinstance(part.get(name), str):
                    part[name], blocked = channels.whole(part[name], is_json=is_json)
                    if channels.hides and "logprobs" in part:
                        part["logprobs"] = []
                    if blocked:
                        del parts[i + 1 :]
                        return True
    return False


def _choice(choice: dict[str, Any], channels: Channels) -> None:
    said = choice["message"] if isinstance(choice.get("message"), dict) else choice
    blocked = False
    for name in ("content", "refusal", "reasoning", "reasoning_content", "text"):
        if isinstance(said.get(name), str):
            is_json = None if name in ("content", "text") else False
            said[name], hit = channels.whole(said[name], is_json=is_json)
            blocked |= hit
    calls = said.get("tool_calls") or []
    for i, call in enumerate(calls):
        hit = _arguments(call.get("function"), channels)
        if hit:
            del calls[i:]
            blocked = True
            break
    blocked |= _arguments(said.get("function_call"), channels)
    if channels.hides:
        choice.pop("token_ids", None)
        if "logprobs" in choice:
            choice["logprobs"] = None
    if blocked:
        choice["finish_reason"] = FINISH_FILTERED
        if "tool_calls" in said and not calls:
            del said["tool_calls"]
        said.pop("function_call", None)


def _arguments(function: dict[str, Any] | None, channels: Channels) -> bool:
    if function is None or not isinstance(function.get("arguments"), str):
        return False
    function["arguments"], blocked = channels.whole(function["arguments"], is_json=True)
    return blocked


def _empty_choice(choice: dict[str, Any]) -> None:
    if "text" in choice:
        choice["text"] = ""
    else:
        choice["message"] = {"role": "assistant", "content": "", "refusal": None}
    choice.pop("token_ids", None)
    choice["logprobs"], choice["finish_reason"] = None, FINISH_FILTERED


def _incomplete(answer: dict[str, Any]) -> None:
    answer["status"], answer["incomplete_details"] = "incomplete", {"reason": FINISH_FILTERED}


def _responses(answer: dict[str, Any], channels: Channels) -> None:
    items = answer.get("output") or []
    for i, item in enumerate(items):
        if filter_item(item, channels):
            item["status"] = "incomplete"
            del items[i if "arguments" in item else i + 1 :]
            _incomplete(answer)
            return


def _messages(answer: dict[str, Any], channels: Channels) -> None:
    blocks = answer.get("content") or []
    for i, block in enumerate(blocks):
        kept, blocked = i + 1, False
        for name in ("text", "thinking"):
            if isinstance(block.get(name), str):
                block[name], blocked = channels.whole(block[name], is_json=None if name == "text" else False)
        if block.get("type") == "tool_use":
            block["input"], blocked = _filtered(block.get("input"), channels)
            kept = i
        if blocked:
            del blocks[kept:]
            answer["stop_reason"], answer["stop_sequence"] = STOP_FILTERED, None
            return


def _filtered(value: Any, channels: Channels) -> tuple[Any, bool]:
    """A tool's input with its texts filtered, keys and numbers included as far as they are texts."""
    if isinstance(value, str):
        return channels.whole(value, is_json=False)
    if isinstance(value, bool) or value is None:
        return value, False
    if isinstance(value, int | float):
        text, blocked = channels.whole(str(value), is_json=False)
        return (value if text == str(value) else text), blocked
    if isinstance(value, list):
        items = [_filtered(item, channels) for item in value]
        return [item for item, _ in items], any(hit for _, hit in items)
    pairs = [(channels.whole(key, is_json=False), _filtered(item, channels)) for key, item in value.items()]
    return {key: item for (key, _), (item, _) in pairs}, any(k or v for (_, k), (_, v) in pairs)


def _strings(value: Any) -> list[str]:
    """All strings below, those that only name things left out."""
    if isinstance(value, str):
        return [value] if value else []
    if isinstance(value, list):
        return [text for item in value for text in _strings(item)]
    if isinstance(value, dict):
        said = (
            item for key, item in value.items() if key not in ("id", "type", "role", "status", "call_id", "signature")
        )
        return [text for item in said for text in _strings(item)]
    return []
