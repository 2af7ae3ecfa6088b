"""When the engine sleeps and wakes, and what it says of it."""

from collections.abc import Iterator

from quire_worker.engine.messages import SleepChanged
from quire_worker.engine.slumber import Slumber
from quire_worker.errors import WakeError
from quire_worker.kv.block_manager import BlockManager
from quire_worker.kv.block_pool import BlockPool
from quire_worker.kv.events import BlockEvicted
from quire_worker.plan import KVGroup
from quire_worker.request import SamplingParams, Submit
from quire_worker.scheduling.limits import SchedulerLimits
from quire_worker.scheduling.scheduler import Scheduler


class Bed:
    """Gives memory back in two pieces, and finds none again while somebody else has it."""

    def __init__(self) -> None:
        self.is_taken = False

    def fall_asleep(self) -> Iterator[int]:
        yield 3
        yield 4

    def wake(self) -> Iterator[int]:
        if self.is_taken:
            raise WakeError("the device has no room")
        yield 7


def make_scheduler() -> Scheduler:
    limits = SchedulerLimits(
        max_num_seqs=2,
        max_num_batched_tokens=64,
        max_model_len=64,
        max_num_queued_reqs=4,
        max_num_queued_tokens=1000,
        vocab_size=100,
    )
    return Scheduler(BlockManager(BlockPool(9, 1), 16, [KVGroup(num_layers=1)]), limits, lambda: 0.0)


def changed(told: SleepChanged | None) -> tuple[bool, int, str]:
    assert told is not None
    return told.asleep, told.size_bytes, told.problem


def test_it_waits_for_the_work_to_be_done_and_shows_life_with_each_piece() -> None:
    scheduler, lives = make_scheduler(), list[str]()
    slumber = Slumber(scheduler, Bed(), lambda: 0.0)
    scheduler.add(Submit(request_id="a", prompt_token_ids=[1], sampling=SamplingParams(max_tokens=1)))
    slumber.ask(asleep=True)

    busy = slumber.turn(lambda: lives.append("busy"))
    scheduler.abort("a")
    slept = slumber.turn(lambda: lives.append("sleep"))
    slumber.ask(asleep=False)
    woken = slumber.turn(lambda: lives.append("wake"))

    assert busy is None
    assert changed(slept) == (True, 7, "")
    assert changed(woken) == (False, 7, "")
    assert lives == ["sleep", "sleep", "wake"]
    assert slumber.turn(list) is None


def test_what_is_so_already_is_answered_and_moves_nothing() -> None:
    slumber = Slumber(make_scheduler(), Bed(), lambda: 0.0)

    slumber.ask(asleep=False)

    assert changed(slumber.turn(list)) == (False, 0, "")


def test_a_device_without_room_keeps_it_asleep_until_there_is() -> None:
    bed = Bed()
    slumber = Slumber(make_scheduler(), bed, lambda: 0.0)
    slumber.ask(asleep=True)
    slumber.turn(list)
    bed.is_taken = True
    slumber.ask(asleep=False)

    failed = slumber.turn(list)
    bed.is_taken = False
    slumber.ask(asleep=False)
    woken = slumber.turn(list)

    assert changed(failed) == (True, 0, "the device has no room")
    assert changed(woken) == (False, 7, "")


def test_an_engine_with_nothing_to_give_back_sleeps_too() -> None:
    slumber = Slumber(make_scheduler(), None, lambda: 0.0)

    slumber.ask(asleep=True)

    assert changed(slumber.turn(list)) == (True, 0, "")


def test_the_cache_is_dropped_with_an_event_for_each_block_and_the_pool_stays_whole() -> None:
    pool = BlockPool(9, 1)
    blocks = pool.allocate(3)
    assert blocks is not None
    for block in blocks:
        pool.keep(0, block, bytes([block]) * 32)
    pool.release(blocks[:2])

    pool.drop_idle()

    assert pool.take_events() == [BlockEvicted(0, bytes([block]) * 32) for block in blocks[:2]]
    assert pool.num_free == 7
    assert pool.num_cached == 1
    pool.check([blocks[2:]])
