"""The picker on simulated workers: conversations stay where their prefix is, and the load stays even."""

import random

import pytest

from quire_contract.load_report import LoadReport
from quire_contract.router_config import EndpointEntry, ModelEntry, RouterConfig
from quire_router.endpoint_pool import EndpointPool
from quire_router.kv_index import KvIndex, SentIndex
from quire_router.metrics import RouterMetrics
from quire_router.picker import Picker
from quire_router.prompts import PromptBlocks
from quire_router.revision_stats import RevisionStats
from quire_router.snapshots import ReadablePrompt

BLOCK = 16


class Clock:
    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s


class World:
    """Two workers whose events arrive when `settle` is called; a picker in front of them."""

    def __init__(self, seed=0, with_events=True, num_workers=2):
        self.clock = Clock()
        self.pool, self.index, self.sent = EndpointPool(RevisionStats("boot")), KvIndex(), SentIndex()
        ids = [f"w{i}" for i in range(num_workers)]
        entries = [EndpointEntry(id=i, url=f"http://{i}:1", models=["m"]) for i in ids]
        self.pool.apply(RouterConfig(models=[ModelEntry(name="m")], endpoints=entries))
        for endpoint in self.pool:
            endpoint.mark_ready()
            endpoint.digest = "d"
            endpoint.synced = with_events
        self.picker = Picker(
            pool=self.pool,
            index=self.index,
            sent=self.sent,
            reader=None,
            metrics=RouterMetrics(),
            rng=random.Random(seed),
            clock=self.clock,
            wall_clock=self.clock,
        )
        self.cached = {i: set() for i in ids}
        self.counts = dict.fromkeys(ids, 0)

    def pick(self, hashes, tried=frozenset()):
        """Send a prompt; the reservation is left open."""
        blocks = PromptBlocks(num_tokens=len(hashes) * BLOCK + 5, block_tokens=BLOCK, hashes=hashes)
        reservation, choice = self.picker.pick("r", "m", ReadablePrompt(by_digest={"d": blocks}, text=None), tried)
        reservation.__enter__()
        self.counts[choice.endpoint_id] += 1
        return reservation, choice

    def settle(self, reservation, hashes):
        """The worker has answered, its events have arrived."""
        reservation.__exit__(None, None, None)
        self.cached[reservation.endpoint.id] |= set(hashes)
        self.index.add(reservation.endpoint.id, hashes)

    def longest(self, hashes):
        """Leading blocks held by each worker."""
        return {
            i: next((n for n, h in enumerate(hashes) if h not in held), len(hashes)) for i, held in self.cached.items()
        }


def conversations(rng, num=40, num_prefixes=8, prefix_blocks=32, turns=4):
    """Turns of each conversation as block hashes; each turn extends the one before."""
    prefixes = [[rng.getrandbits(64) for _ in range(prefix_blocks)] for _ in range(num_prefixes)]
    talks = []
    for number in range(num):
        hashes, talk = list(prefixes[number % num_prefixes]), []
        for _ in range(turns):
            hashes = hashes + [rng.getrandbits(64) for _ in range(rng.randint(2, 6))]
            talk.append(hashes)
        talks.append(talk)
    return talks


@pytest.mark.parametrize("at_once", [1, 8, 40])
@pytest.mark.parametrize("seed", range(6))
def test_follow_ups_go_where_their_prefix_is_and_the_load_stays_even(at_once, seed):
    rng = random.Random(seed)
    world, talks = World(seed), conversations(rng)
    right = follow_ups = 0

    for turn in range(4):
        order = rng.sample(range(40), 40)
        for start in range(0, 40, at_once):
            open_now = []
            for number in order[start : start + at_once]:
                hashes = talks[number][turn]
                longest = world.longest(hashes)
                reservation, choice = world.pick(hashes)
                open_now.append((reservation, hashes))
                if turn:
                    follow_ups += 1
                    right += longest[choice.endpoint_id] == max(longest.values())
                world.clock.now_s += 0.01
            for reservation, hashes in open_now:
                world.settle(reservation, hashes)
            world.clock.now_s += 0.5

    assert right / follow_ups >= 0.9
    assert max(world.counts.values()) <= 1.5 * sum(world.counts.values()) / 2


def test_a_burst_with_one_prefix_stays_together_before_its_events_arrive():
    world, prefix = World(), list(range(1, 65))

    chosen = [world.pick([*prefix, 1000 + i])[1] for i in range(6)]

    assert len({choice.endpoint_id for choice in chosen}) == 1
    assert [choice.matched_tokens for choice in chosen[1:]] == [64 * BLOCK] * 5


def test_what_was_sent_is_no_longer_believed_when_its_event_does_not_come():
    world, prefix = World(), list(range(1, 65))
    world.pick(prefix)

    world.clock.now_s += 2.5
    _, choice = world.pick(prefix)

    assert (choice.level, choice.matched_tokens) == ("precise", 0)


def test_without_events_what_was_sent_before_decides_for_minutes():
    world, prefix = World(with_events=False), list(range(1, 65))
    first, _ = world.pick(prefix)
    first.__exit__(None, None, None)

    world.clock.now_s += 120
    _, choice = world.pick([*prefix, 99])

    assert (choice.endpoint_id, choice.level, choice.matched_tokens) == (first.endpoint.id, "approximate", 64 * BLOCK)


def test_a_prompt_that_is_cached_whole_still_has_one_token_to_compute():
    world, prefix = World(), list(range(1, 5))
    world.index.add("w0", prefix)
    blocks = PromptBlocks(num_tokens=4 * BLOCK, block_tokens=BLOCK, hashes=prefix)

    reservation, choice = world.picker.pick("r", "m", ReadablePrompt(by_digest={"d": blocks}, text=None), frozenset())

    assert (choice.endpoint_id, choice.matched_tokens, reservation.uncached) == ("w0", 63, 1)


def report(**fields):
    values = {"running": 0, "waiting": 0, "free_blocks": 100, "total_blocks": 100, "uncached_tokens": 0, **fields}
    return LoadReport(pod="w0", model="m", epoch="e", ts=0.0, kv_seq=0, **values)


def test_work_that_no_report_can_include_yet_is_added_to_the_reported():
    world = World(num_workers=1)
    endpoint = world.pool.get("w0")
    endpoint.take_report(report(running=2, uncached_tokens=300), world.clock.now_s)

    world.clock.now_s += 0.2
    world.pick(list(range(10)))
    before = endpoint.load()
    endpoint.take_report(report(running=3, uncached_tokens=465), world.clock.now_s + 0.1)
    after = endpoint.load()

    assert before == (3, 300 + 165)
    assert after == (3, 465)


def test_the_speed_of_an_idle_worker_is_learnt_from_its_streams_first_byte():
    world = World(num_workers=1)
    reservation, _ = world.pick(list(range(20)))

    reservation.first_byte(world.clock.now_s + 0.13, is_stream=True)
    reservation.__exit__(None, None, None)

    assert world.pool.get("w0").learnt_ms_per_token == pytest.approx(130 / 325)


def test_an_endpoint_whose_reports_stop_is_avoided_while_another_speaks():
    world, prefix = World(), list(range(1, 65))
    world.index.add("w0", prefix)
    for endpoint in world.pool:
        endpoint.take_report(report(), world.clock.now_s)

    world.clock.now_s += 4.0
    world.pool.get("w1").take_report(report(), world.clock.now_s)
    _, choice = world.pick(prefix)

    assert choice.endpoint_id == "w1"
    assert choice.scores[0].dropped == "silent"


def test_a_pick_of_two_endpoints_for_a_long_prompt_knows_thousands_of_blocks():
    world, prompt = World(), list(range(1, 8193))
    world.index.add("w1", prompt[:8000])
    world.sent.record("w1", prompt[8000:], world.clock.now_s)

    _, choice = world.pick(prompt)

    assert (choice.endpoint_id, choice.matched_tokens) == ("w1", 8192 * BLOCK)


def test_hashes_of_one_bundle_are_never_looked_for_at_an_endpoint_with_another():
    world = World()
    world.pool.get("w1").digest = "newer"
    world.index.add("w1", [1, 2, 3, 4])
    world.index.add("w0", [11, 12])
    old = PromptBlocks(num_tokens=70, block_tokens=BLOCK, hashes=[1, 2, 3, 4])
    new = PromptBlocks(num_tokens=70, block_tokens=BLOCK, hashes=[11, 12, 13, 14])

    prompt = ReadablePrompt(by_digest={"d": old, "newer": new}, text=None)
    _, choice = world.picker.pick("r", "m", prompt, frozenset())

    assert [score.matched_tokens for score in choice.scores] == [0, 0]
