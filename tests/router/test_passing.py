"""Passing at once in C++ against Python: two waiting rooms that live through the same, one with each."""

import gc
import random
import sys
from types import SimpleNamespace

import pytest

from quire_contract import names
from quire_contract.load_report import LoadReport
from quire_contract.router_config import EndpointEntry, ModelEntry, RouterConfig, ServiceEntry
from quire_contract.router_settings import AdmissionSettings, FaultSettings, RouterSettingsEntry
from quire_router.admission_metrics import AdmissionMetrics
from quire_router.call import Call
from quire_router.endpoint_pool import EndpointPool
from quire_router.endpoints import Reservation
from quire_router.line import LIGHT_PATHS
from quire_router.meters import WINDOW_S, Arrivals
from quire_router.metrics import RouterMetrics
from quire_router.native.library import native
from quire_router.passing import CLASSES
from quire_router.revision_stats import RevisionStats
from quire_router.waiting_room import WaitingRoom

MODELS = ("m", "n", "split")
LINE_STATE = ("granted", "hint", "models", "diverted")


def call(*targets, path=names.PATH_CHAT):
    return Call(
        request_id="r", model=targets[0], targets=targets, path=path, body=b"{}", is_stream=False, first_byte_timeout_s=None,
        prompt=None, keep_key=False, headers={},
    )  # fmt: skip


class World:
    """A pool and a waiting room that a random life happens to. Two with the same seed live the same, as long as they decide the same."""

    def __init__(self, parts, seed):
        self.rng, self.now_s = random.Random(seed), 1000.0
        self.pool = EndpointPool(RevisionStats("boot"))
        self.room = WaitingRoom(
            pool=self.pool, metrics=AdmissionMetrics(RouterMetrics().registry), uncached=lambda _: 1, clock=lambda: self.now_s,
            parts=parts,
        )  # fmt: skip
        self.open, self.seen = [], []
        self.configure()
        for endpoint in self.pool:
            endpoint.mark_ready(0.0)

    def configure(self):
        rng = self.rng
        ids = [f"w{number}" for number in range(4) if rng.random() < 0.9] or ["w0"]
        entries = [
            EndpointEntry(
                id=i, url=f"http://{i}:1", models=["m", "n"] if i != "w3" else ["split", "n"],
                service="s" if i != "w3" else "t", role=rng.choice(["both"] * 9 + ["prefill"]),
            )
            for i in ids
        ]  # fmt: skip
        services = [ServiceEntry(id="s"), ServiceEntry(id="t", weights={"": 1})]
        rules = AdmissionSettings(in_flight_per_worker=rng.choice([2, 256]), kv_use_limit=rng.choice([0.5, 0.95]))
        settings = RouterSettingsEntry(
            admission=rules, faults=FaultSettings(consecutive_failures=2, ejection_s=1.0, max_ejected_percent=100)
        )
        models = [ModelEntry(name=name, service={"m": "s", "split": "t"}.get(name, "")) for name in MODELS]
        config = RouterConfig(models=models, endpoints=entries, services=services, settings=settings)
        for endpoint in self.pool.apply(config).added:
            endpoint.mark_ready(self.now_s)
        self.room.apply(config)

    def report(self):
        rng = self.rng
        total = rng.choice([0, 1, 2000, 2000])
        return LoadReport(
            pod="p", model="m", epoch="e", ts=0.0, kv_seq=0, uncached_tokens=0, running=rng.choice([0, 0, 1, 4]),
            waiting=rng.choice([0] * 9 + [2]), free_blocks=min(total, rng.choice([0, 40, 2000])), total_blocks=total,
            max_num_seqs=rng.choice([0, 5, 5]), block_size=rng.choice([1, 16]),
        )  # fmt: skip

    def disturb(self):
        rng, faults = self.rng, self.pool.faults
        one = rng.choice(list(self.pool))
        line = rng.choice(list(self.room.lines))
        rare = [
            lambda: one.mark_not_ready("x"), lambda: one.mark_ready(self.now_s), one.mark_draining, one.forget_report,
            self.configure, lambda: one.note_failure(self.now_s - 0.01, self.now_s, faults),
            lambda: line.models.update(m=1), lambda: setattr(line, "granted", 1), lambda: setattr(line, "hint", 7),
        ]  # fmt: skip
        rng.choice(rare if rng.random() < 0.2 else [lambda: one.take_report(self.report(), self.now_s)])()
        if rng.random() < 0.2:
            for endpoint in self.pool:
                endpoint.mark_ready(self.now_s)
                endpoint.note_success(self.now_s)
                endpoint.take_report(self.report(), self.now_s)
            for line in self.room.lines:
                line.models.clear()
                line.granted = 0

    def step(self):
        rng = self.rng
        self.now_s += rng.choice([0.0, 0.001, 0.01, 0.4, 0.4, 12.0 if rng.random() < 0.1 else 0.1])
        if rng.random() < 0.5:
            self.disturb()
        while self.open and rng.random() < 0.45:
            self.open.pop(rng.randrange(len(self.open))).give_back()
        targets = rng.choice([("m",)] * 6 + [("n",), ("split",), ("m", "n"), ("nobody",)])
        path = rng.choice([names.PATH_CHAT] * 9 + [names.PATH_TOKENIZE])
        target = self.room.pass_at_once(call(*targets, path=path))
        self.seen.append((target, self.state()))
        if target is not None:
            reservation = Reservation(rng.choice(self.pool.serving(target)), rng.choice([0, 1, 30_000]), self.now_s)
            reservation.take()
            self.open.append(reservation)

    def state(self):
        """Of all lines, in any order."""
        return sorted(
            (
                line.key, *(repr(getattr(line, name)) for name in LINE_STATE), line.arrivals.total, line.arrivals._counts[:],
                line.waits._counts[:2], list(line.waits._past), line.waits._ends_s,
            )
            for line in self.room.lines
        )  # fmt: skip


@pytest.mark.parametrize("seed", range(8))
def test_whatever_happens_to_the_workers_both_let_the_same_calls_pass(seed):
    in_python, in_cpp = World(None, seed), World(native(), seed)

    for _ in range(600):
        in_python.step()
        in_cpp.step()

    assert in_cpp.seen == in_python.seen
    assert 50 < sum(target is not None for target, _ in in_cpp.seen) < 590


class Quiet(World):
    """One in which nothing is the matter, and of which C++ knows all it wants to."""

    def __init__(self):
        super().__init__(native(), 3)
        for endpoint in self.pool:
            endpoint.entry = EndpointEntry(id=endpoint.id, url=endpoint.url, models=["m"])
            endpoint.take_report(
                LoadReport(pod="p", model="m", epoch="e", ts=0.0, kv_seq=0, uncached_tokens=0, running=0, waiting=0,
                           free_blocks=9, total_blocks=9), self.now_s,
            )  # fmt: skip
        self.fell_back = []
        usual = native().Passing(lambda: self.now_s, self.fell_back.append, LIGHT_PATHS, CLASSES, WINDOW_S, 3.0)
        self.line = next(line for line in self.room.lines if line.key == "service s")
        self.line.hint = 0
        self.line.arrivals.note(self.now_s)
        self.line.waits.note(0.0, self.now_s)
        self.usual, self.endpoint = usual, self.pool.served("m").endpoints[0]
        usual.apply({"m": (self.line, self.pool.served("m").endpoints)}, 256, 0.95)


def test_the_usual_call_needs_no_python():
    world = Quiet()

    assert [world.usual.target_of(call("m")) for _ in range(3)] == ["m"] * 3

    assert world.fell_back == []
    assert (world.line.arrivals.total, world.line.waits._counts[0]) == (4, 4)


@pytest.mark.parametrize(
    ("of", "changes"),
    [
        ("line", {"arrivals": None}), ("line", {"waits": None}), ("line", {"models": ["m"]}), ("line", {"models": {"m": 1}}),
        ("line", {"granted": "x"}), ("line", {"granted": 1}), ("line", {"hint": 99}), ("line", {"hint": -1}), ("line", {"hint": 2**80}),
        ("arrivals", {"total": None}), ("arrivals", {"_counts": [0]}), ("arrivals", {"_counts": ["x"] * 30}),
        ("arrivals", {"_first": None}), ("arrivals", {"_at": 7}),
        ("waits", {"_counts": []}), ("waits", {"_counts": None}), ("waits", {"_ends_s": 0.0}), ("waits", {"_ends_s": None}),
        ("endpoint", {"ready": 1}), ("endpoint", {"draining": True}), ("endpoint", {"health": None}), ("endpoint", {"entry": None}),
        ("endpoint", {"report": None}), ("endpoint", {"report": SimpleNamespace(waiting=0)}), ("endpoint", {"report_s": 0.0}),
        ("endpoint", {"num_in_flight": 2**70}), ("endpoint", {"num_in_flight": 256}), ("endpoint", {"pending_tokens": 144}),
    ],
)  # fmt: skip
def test_what_is_not_as_reckoned_with_is_left_to_python_before_anything_is_noted(of, changes):
    world = Quiet()
    line = world.line
    of = {"line": line, "arrivals": line.arrivals, "waits": line.waits, "endpoint": world.endpoint}[of]
    for name, value in changes.items():
        setattr(of, name, value)
    before = [getattr(line.arrivals, name, None) for name in Arrivals.__slots__] if line.arrivals else []
    asked = call("m")

    assert world.usual.target_of(asked) is None

    assert world.fell_back == [asked]
    assert before == ([getattr(line.arrivals, name, None) for name in Arrivals.__slots__] if line.arrivals else [])


@pytest.mark.parametrize("asked", [None, 7, "m", SimpleNamespace(targets=("m",), path="/")])
def test_what_is_no_call_is_left_to_python(asked):
    world = Quiet()

    assert world.usual.target_of(asked) is None
    assert world.fell_back == [asked]


@pytest.mark.parametrize(
    "arguments",
    [
        (None,),
        (lambda: 1.0, print, LIGHT_PATHS, (int,) * 8, 30, 3.0),
        (lambda: 1.0, print, LIGHT_PATHS, CLASSES, 0, 3.0),
        (lambda: 1.0, print, {"a"}, CLASSES, 30, 3.0),
        (lambda: 1.0, print, LIGHT_PATHS, CLASSES[::-1], 30, 3.0),
    ],
)
def test_what_it_could_not_read_is_refused_at_once(arguments):
    with pytest.raises((TypeError, AttributeError)):
        native().Passing(*arguments)


@pytest.mark.parametrize("parts", [native(), None], ids=["native", "python"])
def test_a_limit_beyond_all_numbers_of_c_is_no_limit(parts):
    world = World(parts, 3)
    settings = RouterSettingsEntry(admission=AdmissionSettings(in_flight_per_worker=10**20))
    config = RouterConfig(
        models=[ModelEntry(name="m")],
        endpoints=[EndpointEntry(id="w", url="http://w", models=["m"])],
        settings=settings,
    )

    world.pool.apply(config)
    world.room.apply(config)
    for endpoint in world.pool:
        endpoint.mark_ready(0.0)

    assert [world.room.pass_at_once(call("m")) for _ in range(3)] == ["m"] * 3


def test_a_clock_that_fails_fails_the_call():
    def fails():
        raise RuntimeError("no time")

    usual = native().Passing(fails, print, LIGHT_PATHS, CLASSES, WINDOW_S, 3.0)
    usual.apply({}, 256, 0.95)

    with pytest.raises(RuntimeError, match="no time"):
        usual.target_of(call("m"))


def test_no_references_are_left_behind():
    world = Quiet()
    asked = call("m")
    watched = (
        asked,
        world.line,
        world.line.arrivals,
        world.line.waits,
        world.endpoint,
        world.endpoint.report,
        world.usual,
    )
    before = [sys.getrefcount(one) for one in watched]

    for _ in range(1000):
        world.usual.target_of(asked)
    gc.collect()

    assert [sys.getrefcount(one) for one in watched] == before
