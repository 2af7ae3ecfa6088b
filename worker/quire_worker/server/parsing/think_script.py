"""How reasoning is read: text between two tags at the start of a message. A chat template may have written the first tag already."""

import dataclasses

from quire_worker.server.parsing.feed import Feed, Step
from quire_worker.server.parsing.parts_sink import PartsSink


@dataclasses.dataclass(frozen=True, slots=True)
class ThinkTags:
    """What reasoning stands between."""

    begin: str
    end: str


THINK = ThinkTags("<think>", "</think>")
"""DeepSeek R1, Qwen3, QwQ and nearly everybody."""
MISTRAL_THINK = ThinkTags("[THINK]", "[/THINK]")
"""Magistral."""


def is_open(text: str, tags: ThinkTags) -> bool:
    """Whether a message that begins with `text` is inside its reasoning where that ends."""
    begun = text.rfind(tags.begin)
    return begun >= 0 and text.find(tags.end, begun) < 0


def think(feed: Feed, sink: PartsSink, tags: ThinkTags, *, opened: bool) -> Step[None]:
    """Reasoning, if the message begins with it. Only the first pair of tags counts: a user may ask about tags."""
    if not opened:
        margin = yield from feed.spaces()
        if not (yield from feed.literal(tags.begin)):
            sink.content(margin)
            return
    sink.begin_reasoning()
    while text := (yield from feed.run(tags.end)):
        sink.reasoning(text)
    if (yield from feed.literal(tags.end)):
        sink.end_reasoning()
