"""A stream with a quota, in parts that come as they may: what is given and paid ends at the same event, on both ways to the client."""

import asyncio
import random

import pytest

from quire_router.answer import BrokenStreamError
from quire_router.call import Outcome, Usage
from quire_router.limits.meter import Meter, RefusedError
from quire_router.seen import Seen, seeing, watching

END = b"data: no more\n\n"
METER = Meter("tokens_day", "t", 0, 0)


class Purse:
    """An allowance of so many tokens, that takes them in portions."""

    def __init__(self, tokens, portion):
        self.left, self.taken, self.portion = tokens - portion, portion, portion
        self.look_at = portion // 2

    def is_short(self, num_output):
        return num_output >= self.look_at

    async def extend(self, num_output):
        await asyncio.sleep(0)
        if num_output > self.taken and not self.left:
            raise RefusedError(METER, 1, 0.0)
        more = min(self.left, self.portion)
        self.left, self.taken = self.left - more, self.taken + more
        self.look_at = self.taken - more // 2 if more else self.taken + 1


class Stream:
    """Events in parts of one to thirty, as its client and the random numbers will. `outcome`: is told what they use, as a part is made."""

    def __init__(self, rng, number, outcome):
        self.events = [b"data: %d" % i + rng.choice([b"\n\n", b"\r\n\r\n"]) for i in range(number)]
        self.made, self.rng, self.outcome = 0, rng, outcome
        self.sink = None

    def part(self):
        made = self.events[self.made :][: self.rng.choice([1, 1, 2, 5, 30])]
        self.made += len(made)
        if self.outcome.usage is not None:
            self.outcome.usage.output += len(made)
        return b"".join(made)

    async def parts(self):
        while self.made < len(self.events):
            if self.sink is None or self.rng.random() < 0.3:
                yield self.part()
                continue
            while self.made < len(self.events) and self.sink(self.part()):
                pass
            yield b""

    def attach(self, sink):
        self.sink = sink


@pytest.mark.parametrize("is_told", [True, False], ids=["usage as it goes", "events counted"])
@pytest.mark.parametrize("is_attached", [True, False], ids=["short way", "generator"])
async def test_what_is_given_and_paid_ends_at_the_first_event_beyond_the_quota(is_attached, is_told):
    for seed in range(2000):
        rng = random.Random(seed)
        number, quota = rng.randint(0, 150), rng.randint(20, 150)
        outcome, given = Outcome(usage=Usage() if is_told else None), []
        stream = Stream(rng, number, outcome)
        seen = Seen(outcome, Purse(quota, rng.randint(1, 20)))

        def short(part, given=given, rng=rng):
            given.append(part)
            return rng.random() < 0.8

        async for part in watching(stream.parts(), seen, lambda _: END):
            given.append(part)
            if is_attached and stream.sink is None:
                seeing(stream.attach, seen)(short)

        last = min(number, quota + 1)
        assert b"".join(given) == b"".join(stream.events[:last]) + (END if number > last else b""), seed
        assert seen.num_output == last, seed
        assert outcome.usage is None or outcome.usage.output == last, seed


async def test_what_came_before_a_stream_broke_is_given():
    seen, sinks, given = Seen(Outcome(), Purse(100, 10)), [], []

    async def parts():
        yield b"data: 0\n\n"
        assert sinks[0](b"data: 1\n\n" * 8) is False
        raise BrokenStreamError("died")

    seeing(sinks.append, seen)(lambda part: True)
    with pytest.raises(BrokenStreamError):
        async for part in watching(parts(), seen, lambda _: END):
            given.append(part)

    assert b"".join(given) == b"data: 0\n\n" + b"data: 1\n\n" * 8
