"""The choice in C++ against the one in Python: two routers' pickers that live through the same, one with each."""

import gc
import random
import sys
from types import SimpleNamespace

import pytest

from quire_contract.load_report import LoadReport
from quire_contract.router_config import EndpointEntry, ModelEntry, RouterConfig
from quire_contract.router_settings import ChoiceSettings, FaultSettings, RouterSettingsEntry
from quire_router import kv_index
from quire_router.endpoint_pool import EndpointPool
from quire_router.endpoints import Endpoint, Reservation
from quire_router.kv_index import new_indexes
from quire_router.metrics import RouterMetrics
from quire_router.native.library import native
from quire_router.picker import Picker
from quire_router.prompts import PromptBlocks
from quire_router.revision_stats import RevisionStats
from quire_router.snapshots import ReadablePrompt, Snapshots
from quire_router.usual_pick import CLASSES, PLACING_CLASSES, RULES, usual_pick

ROLES = ["both"] * 6 + ["prefill", "decode"]
"""Of the first worker."""
STATE = [name for name in Reservation.__slots__ if name != "endpoint"]


class World:
    """A pool that a random life happens to. Two with the same seed live the same, as long as their choices are the same."""

    def __init__(self, parts, seed, number):
        self.rng, self.now_s, self.number = random.Random(seed), 1000.0, number
        self.pool = EndpointPool(RevisionStats("boot"))
        self.index, self.sent = new_indexes(parts, max_blocks=20_000)
        self.metrics = RouterMetrics()
        self.picker = Picker(
            pool=self.pool, index=self.index, sent=self.sent, reader=None, metrics=self.metrics, rng=random.Random(seed),
            clock=lambda: self.now_s, wall_clock=lambda: self.now_s,
        )  # fmt: skip
        self.usual = usual_pick(
            self.pool, self.index, self.sent, Snapshots(self.pool, self.index, self.sent), random.Random(seed)
        )
        self.open, self.seen = [], []
        self.chains = [[self.rng.getrandbits(64) for _ in range(40)] for _ in range(12)]
        self.configure()
        for endpoint in self.pool:
            endpoint.mark_ready(0.0)
            endpoint.digest, endpoint.synced = "d" * 3, True

    def configure(self):
        rng = self.rng
        ids = [f"w{number}" for number in range(self.number) if rng.random() < 0.95] or ["w0"]
        roles = {ids[0]: rng.choice(ROLES)}
        entries = [EndpointEntry(id=i, url=f"http://{i}:1", models=["m"], role=roles.get(i, "both")) for i in ids]
        choice = ChoiceSettings(slow_start_s=rng.choice([0.0, 2.0]))
        settings = RouterSettingsEntry(choice=choice, faults=FaultSettings(consecutive_failures=2, ejection_s=1.0))
        changes = self.pool.apply(RouterConfig(models=[ModelEntry(name="m")], endpoints=entries, settings=settings))
        for endpoint in (*changes.removed, *changes.added):
            self.index.clear(endpoint.id)
            self.sent.clear(endpoint.id)
        for endpoint in changes.added:
            endpoint.mark_ready(self.now_s)
            endpoint.digest, endpoint.synced = "".join(["d", "dd"]), True

    def report(self, **fields):
        rng = self.rng
        values = {
            "running": rng.choice([0, 0, 1, 4]), "waiting": rng.choice([0] * 9 + [2]),
            "free_blocks": rng.choice([0, 3, 40, 2000]), "total_blocks": 2000, "uncached_tokens": rng.choice([0, 0, 700]),
            "prefill_tokens_per_s": rng.choice([0.0, 0.0, 9000.0, 11_000.0, 500.0]),
        }  # fmt: skip
        return LoadReport(pod="p", model="m", epoch=rng.choice(["e", "f"]), ts=0.0, kv_seq=0, **{**values, **fields})

    def noted(self, reservation):
        """All that a pick leaves behind."""
        decision, metrics = self.picker.decisions[-1], self.metrics
        place = None if reservation is None else [getattr(reservation, name) for name in STATE]
        tallies = (metrics.choices, metrics.prefix_tokens, metrics.prefix_hit_tokens)
        samples = [[(s.labels, s.value) for m in tally.collect() for s in m.samples[::2]] for tally in tallies]
        ends = [(e.id, e.last_turn, e.num_in_flight, self.sent.num_blocks(e.id)) for e in self.pool]
        bars = metrics.choice_s.counts, metrics.choice_s.total
        named = (decision.request_id, decision.model, decision.ts, decision.attempt, decision.split, decision.policy)
        return named, told((None, decision.choice)), place, samples, ends, repr(bars), len(self.picker.decisions)

    def disturb(self):
        """Something happens to one of them."""
        rng, pool = self.rng, list(self.pool)
        one, chain = rng.choice(pool), rng.choice(self.chains)
        rare = [
            lambda: one.mark_not_ready("x"), lambda: one.mark_ready(self.now_s), one.mark_draining, one.restarted,
            one.forget_report, one.warmup.begin, self.configure, lambda: self.index.clear(one.id),
            lambda: self.sent.clear(one.id), lambda: one.note_failure(self.now_s - 0.01, self.now_s, pool_faults),
            lambda: one.note_failure(self.now_s - 0.01, self.now_s, pool_faults), lambda: setattr(one, "synced", False),
            lambda: setattr(one, "digest", None), lambda: one.take_report(self.report(running=2**40, waiting=2**40), self.now_s),
            lambda: one.take_report(self.report(running=30), self.now_s),
            lambda: one.take_report(self.report(free_blocks=2**40, block_size=2**20), self.now_s),
        ]  # fmt: skip
        pool_faults = self.pool.faults
        usual = [
            lambda: one.take_report(self.report(), self.now_s),
            lambda: self.index.add(one.id, chain[: rng.randrange(41)]),
            lambda: self.index.remove(one.id, rng.sample(chain, rng.randrange(20))),
        ]
        rng.choice(rare if rng.random() < 0.06 else usual)()
        if rng.random() < 0.2:  # all is well again
            for endpoint in self.pool:
                endpoint.mark_ready(self.now_s)
                endpoint.digest, endpoint.synced = "ddd", True
                endpoint.note_success(self.now_s)
                endpoint.take_report(self.report(running=1), self.now_s)

    def step(self):
        rng = self.rng
        self.now_s += rng.choice([0.0, 0.001, 0.01, 0.3])
        if rng.random() < 0.5:
            self.disturb()
        while self.open and (len(self.open) > 3 * self.number or rng.random() < 0.45):
            one = self.open.pop(rng.randrange(len(self.open)))
            one.first_byte(self.now_s, is_stream=rng.random() < 0.5)
            one.give_back()
        size = rng.randrange(41)
        chain = rng.choice(self.chains)[:size] + [rng.getrandbits(64) for _ in range(rng.choice([0, 0, 3]))]
        blocks = PromptBlocks(num_tokens=16 * len(chain) + rng.randrange(16), block_tokens=16, hashes=chain)
        prompt = ReadablePrompt(by_digest={"ddd": blocks}, text=None, read_s=0.1 * (size % 3))
        self.seen.append(told(self.usual.pick("m", self.pool.served("m").endpoints, prompt, self.now_s)))
        self.seen[-1] = self.usual.digest(self.pool.served("m").endpoints), self.seen[-1]
        reservation, choice = self.picker.pick("r", "m", prompt, frozenset())
        self.seen.append(told((None if reservation is None else reservation.endpoint, choice)))
        self.seen.append(self.noted(reservation))
        if reservation is not None:
            reservation.take()
            self.open.append(reservation)


def told(picked):
    """All that can be seen of a choice."""
    if picked is None:
        return None
    endpoint, choice = picked
    fields = (choice.level, choice.matched_tokens, choice.num_tokens, choice.reason, choice.scores)
    return endpoint and endpoint.id, choice.endpoint_id, *fields


@pytest.mark.parametrize("number", [1, 2, 5, 70])
@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_to_the_workers_both_choose_the_same(seed, number):
    in_python, in_cpp = World(None, seed, number), World(native(), seed, number)
    steps = 600 if number < 10 else 120

    for _ in range(steps):
        in_python.step()
        in_cpp.step()

    assert in_cpp.seen == in_python.seen
    num_usual = sum(picked is not None for _, picked in in_cpp.seen[::3])
    assert 0.1 * steps < num_usual < steps


def test_with_indexes_of_the_extension_the_choice_is_made_there():
    world = World(native(), 0, 2)

    assert type(world.usual).__name__ == "_InCpp"
    assert type(World(None, 0, 2).usual).__name__ == "_InPython"


def cpp_choice(**changes):
    """The choice in C++ on two idle workers, of which one holds all of a prompt; `changes` are to fields of the first worker."""
    world = World(native(), 1, 2)
    for endpoint in world.pool:
        endpoint.take_report(world.report(running=0), world.now_s)
        endpoint.warmup.since_s = -1e9
        for name, value in changes.items():
            setattr(endpoint, name, value)
    blocks = PromptBlocks(num_tokens=70, block_tokens=16, hashes=world.chains[0][:4])
    prompt = ReadablePrompt(by_digest={"ddd": blocks}, text=None)
    return world.usual.pick("m", world.pool.served("m").endpoints, prompt, world.now_s)


@pytest.mark.parametrize(
    "changes",
    [
        {"ready": 1},
        {"digest": b"ddd"},
        {"report": SimpleNamespace(running=1)},
        {"report_s": 1000},
        {"health": None},
        {"warmup": None},
        {"_unreported": [1]},
        {"learnt_ms_per_token": "fast"},
        {"_unreported_tokens": 2**70},
    ],
)
def test_a_field_of_another_kind_makes_the_case_an_unusual_one(changes):
    assert cpp_choice() is not None
    assert cpp_choice(**changes) is None


class Impostor:
    """No class with slots."""

    ready = True


def test_classes_without_the_fields_that_are_read_are_refused():
    parts = native()
    index, sent = new_indexes(parts, max_blocks=10)

    with pytest.raises((TypeError, AttributeError)):
        parts.UsualChoice(index, sent, random.random, (Impostor,) * 5, {})
    with pytest.raises(TypeError, match="not a KvIndex"):
        parts.UsualChoice(kv_index.KvIndex(), sent, random.random, (Impostor,) * 5, {})


def test_a_random_source_that_fails_fails_the_choice():
    world = World(native(), 2, 3)

    def fails():
        raise RuntimeError("no numbers left")

    chooser = native().UsualChoice(world.index, world.sent, fails, CLASSES, RULES)
    for endpoint in world.pool:
        endpoint.warmup.since_s = -1e9
        endpoint.entry = EndpointEntry(id=endpoint.id, url=endpoint.url, models=["m"])
    endpoints = world.pool.served("m").endpoints

    with pytest.raises(RuntimeError, match="no numbers left"):
        chooser.pick(endpoints, "ddd", [], 30, 16, world.now_s, 0.0)


def placed_in_cpp(world, **changes):
    """What `Placing` gives for a prompt, with fields of what it reads and writes changed; whether anything was noted."""
    for endpoint in world.pool:
        endpoint.warmup.since_s = -1e9
        endpoint.entry = EndpointEntry(id=endpoint.id, url=endpoint.url, models=["m"])
    blocks = PromptBlocks(num_tokens=70, block_tokens=16, hashes=changes.pop("hashes", world.chains[0][:4]))
    prompt = ReadablePrompt(by_digest=changes.pop("by_digest", {"ddd": blocks}), text=None)
    counts = world.metrics.of_model("m")
    for name, value in changes.items():
        setattr({"counts": world.metrics.choice_s, "value": counts.prefix_tokens}.get(name, counts), name, value)
    placed = world.picker._place("r", "m", world.pool.served("m").endpoints, 0.0, prompt, counts)
    return placed is not None, len(world.picker.decisions) > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"hashes": (1, 2)},
        {"hashes": None},
        {"by_digest": {}},
        {"by_digest": {"ddd": None}},
        {"by_digest": {b"ddd": None}},
        {"by_digest": SimpleNamespace()},
        {"counts": [0]},
        {"counts": None},
        {"prefix_tokens": None},
        {"prefix_hit_tokens": 0},
        {"_by_level": None},
        {"_by_level": {"precise": 7}},
    ],
)
def test_what_cannot_be_noted_in_cpp_is_left_to_python(changes):
    assert placed_in_cpp(World(native(), 1, 2)) == (True, True)
    assert placed_in_cpp(World(native(), 1, 2), **changes) == (False, False)


def test_a_number_that_cannot_be_added_to_fails_the_choice():
    with pytest.raises(TypeError):
        placed_in_cpp(World(native(), 1, 2), value="many")


def test_placing_refuses_what_it_could_not_write():
    world = World(native(), 1, 2)
    chooser, called = native().UsualChoice(world.index, world.sent, random.random, CLASSES, RULES), (tuple,) * 6
    bars = world.metrics.choice_s

    for arguments in (
        (None, (Endpoint, Reservation, *PLACING_CLASSES), bars, bars.bounds, called),
        (chooser, (Impostor,) * 7, bars, bars.bounds, (*called[:3], iter([]), *called[4:])),
        (chooser, (Endpoint, Reservation, *PLACING_CLASSES), bars, bars.bounds, called),
        (chooser, (Endpoint, Reservation, *PLACING_CLASSES), bars, ["x"], (*called[:3], iter([]), *called[4:])),
        (chooser, PLACING_CLASSES, world, bars.bounds, (*called[:3], iter([]), *called[4:])),
    ):
        with pytest.raises((TypeError, AttributeError)):
            native().Placing(*arguments)


def test_a_choice_in_cpp_can_be_explained_and_leaves_no_references_behind():
    world = World(native(), 1, 2)
    placed_in_cpp(world)
    counts, prompts = world.metrics.of_model("m"), [world.chains[0][:4]]
    blocks = PromptBlocks(num_tokens=70, block_tokens=16, hashes=prompts[0])
    prompt, endpoints = ReadablePrompt(by_digest={"ddd": blocks}, text=None), world.pool.served("m").endpoints
    watched = (
        prompt,
        blocks,
        prompts[0],
        endpoints,
        counts,
        *endpoints,
        "ddd",
        world.picker._place,
        world.metrics.choice_s,
    )
    before = [sys.getrefcount(one) for one in watched]

    for _ in range(1000):
        reservation, choice = world.picker._place("r", "m", endpoints, 0.0, prompt, counts)
        assert choice.scores[0].endpoint_id == endpoints[0].id
        with pytest.raises(TypeError, match="without arguments"):
            choice.explain(1)
    del reservation, choice
    world.picker._decisions.clear()
    gc.collect()

    assert [now - then < 5 for now, then in zip(map(sys.getrefcount, watched), before, strict=True)] == [True] * len(
        watched
    )
