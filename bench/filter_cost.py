"""What content filters cost: for each event of a streamed chat, and for a long prompt. `python bench/filter_cost.py`.

CPU time of this process on one thread; events are parsed, filtered and written as the router does it.
"""

import random
import string
import sys
import time

import msgspec

from quire_contract.router_settings import FilterEntry
from quire_router.call import Outcome
from quire_router.filtering.channels import Asked, Channels, events_of
from quire_router.filtering.chat_stream import ChatStream
from quire_router.filtering.prompts import filter_prompt
from quire_router.filtering.rules import FilterSet

NUM_EVENTS = 5000
PROMPT_BYTES = 4 * 1024 * 1024
WORDS = ["".join(random.Random(i).choices(string.ascii_lowercase, k=7)) for i in range(5000)]
FILTERS = {
    "one pattern": [FilterEntry(name="p", patterns=[r"(?i)project\s+zeus"])],
    "ten patterns": [FilterEntry(name="p", patterns=[rf"(?i)project{i}\s+zeus" for i in range(10)])],
    "5,000 words": [FilterEntry(name="w", words=WORDS)],
    "email, phone": [FilterEntry(name="e", action="redact", pii=["email", "phone"])],
    "all PII": [
        FilterEntry(
            name="a",
            action="redact",
            pii=["email", "phone", "credit_card", "iban", "ip_address", "us_ssn", "api_key"],
        )
    ],
}


def main() -> None:
    pieces = [" The", " quick", " brown", " fo", "x", " jump", "s", " over", " 13", " lazy", " dogs", "."]
    events = [
        b"data: "
        + msgspec.json.encode(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion.chunk",
                "choices": [{"index": 0, "delta": {"content": piece}}],
            }
        )
        + b"\n\n"
        for piece in pieces
    ]
    text = " ".join(random.Random(1).choices([*WORDS[:10], "word", "other", "13"], k=PROMPT_BYTES // 7))
    body = msgspec.json.encode({"model": "m", "prompt": text.replace(WORDS[0], "x")})
    for name, entries in FILTERS.items():
        applied = FilterSet(entries).applying("output", "m", None)
        stream = ChatStream(
            Channels(applied.rules, lambda rule: None, is_json=False),
            Asked(num_choices=1, include_usage=False, is_json=False),
            Outcome(),
        )
        started_s = time.process_time()
        for i in range(NUM_EVENTS):
            for event in events_of(events[i % len(events)]):
                stream.take(event)
        event_us = (time.process_time() - started_s) / NUM_EVENTS * 1e6
        started_s = time.process_time()
        filter_prompt(body, applied)
        sys.stdout.write(
            f"{name:14} {event_us:6.1f} us/event  {(time.process_time() - started_s) * 1e3:7.1f} ms for {len(body) >> 20} MiB\n"
        )


if __name__ == "__main__":
    main()
