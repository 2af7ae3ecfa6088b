"""What waits for slow readers has a bound, and only they feel it."""

import tracemalloc

import msgspec
import pytest

from quire_worker.engine.messages import Outputs
from quire_worker.request import ChoiceOutput, TokenLogprobs
from quire_worker.server.mailbox import Mail, Mailbox, Mailroom, SlowReaderError, size_of


def item(num_tokens: int = 1, num_top: int | None = None) -> ChoiceOutput:
    tokens = list(range(1000, 1000 + num_tokens))
    entry = None if num_top is None else TokenLogprobs(-0.5, 2, tuple(range(num_top)), (-0.5,) * num_top)
    logprobs = None if entry is None else [entry] * num_tokens
    return ChoiceOutput(request_id="cmpl-1-0", choice=0, token_ids=tokens, logprobs=logprobs)


async def test_what_was_taken_waits_no_more() -> None:
    room = Mailroom(10_000)
    box = Mailbox(room)

    for _ in range(100):
        assert box.put(Mail(0.0, item())) is None
        assert len(await box.take()) == 1

    assert room.num_bytes == 0


async def test_a_mailbox_that_holds_more_than_its_share_is_to_be_cut_and_loses_what_it_holds() -> None:
    room = Mailroom(16 * 2000)
    slow, other = Mailbox(room), Mailbox(room)
    other.put(Mail(0.0, item()))

    found = [slow.put(Mail(float(step), item())) for step in range(4)]
    slow.cut()

    assert found == [None, None, None, slow]
    with pytest.raises(SlowReaderError):
        await slow.take()
    assert room.num_bytes == size_of(item())
    assert len(await other.take()) == 1


def test_where_all_together_hold_too_much_the_fullest_is_cut() -> None:
    room = Mailroom(16 * 2000)
    fullest, *others = (Mailbox(room) for _ in range(30))
    for step in range(3):
        fullest.put(Mail(float(step), item()))

    found = [box.put(Mail(float(step), item())) for step in range(2) for box in others]

    first = next(index for index, box in enumerate(found) if box is not None)
    assert found[first] is fullest
    assert (first + 1 + 3) * size_of(item()) > 16 * 2000 >= (first + 3) * size_of(item())


def test_what_comes_at_once_is_no_sign_of_a_slow_reader_however_much_it_is() -> None:
    room = Mailroom(1000)
    box = Mailbox(room)

    at_once = [box.put(Mail(1.0, item(1000))) for _ in range(10)]
    later = box.put(Mail(1.1, item()))

    assert at_once == [None] * 10
    assert later is box


def test_a_mailbox_that_nobody_reads_any_more_holds_nothing() -> None:
    room = Mailroom()
    box = Mailbox(room)
    box.put(Mail(0.0, item()))

    box.close()

    assert room.num_bytes == 0


@pytest.mark.parametrize(("num_tokens", "num_top"), [(1, None), (1, 0), (1, 5), (1, 20), (4, 3), (50, None)])
def test_sizes_are_about_those_of_what_arrives(num_tokens: int, num_top: int | None) -> None:
    frame = msgspec.msgpack.encode(Outputs(items=[item(num_tokens, num_top)] * 200))
    decoder = msgspec.msgpack.Decoder(Outputs)

    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    mails = [Mail(index * 1.5, one) for index, one in enumerate(decoder.decode(frame).items)]
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    measured = (after - before) / len(mails)
    assert measured * 0.9 < size_of(mails[0].item) < measured * 2.5
