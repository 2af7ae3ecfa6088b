"""How many pods each revision gets: invariants over simulated rollouts, and the cases that people ask about."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire_operator.rollout import (
    RevisionPods,
    RolloutInput,
    Strategy,
    canary_replicas,
    plan_canary,
    plan_rollout,
)

SURGE: Strategy = "Surge"
RECREATE: Strategy = "Recreate"


def serving(name: str, count: int) -> RevisionPods:
    """A revision all of whose pods serve."""
    return RevisionPods(name=name, desired=count, alive=count, ready=count)


def plan(
    wanted: int, target: RevisionPods, others: Iterable[RevisionPods], strategy: Strategy = SURGE, stalled: bool = False
) -> dict[str, int]:
    """One look."""
    rollout = RolloutInput(wanted=wanted, strategy=strategy, target=target, others=tuple(others), is_stalled=stalled)
    return plan_rollout(rollout)


@dataclass
class Cluster:
    """A stand-in for Deployments: as many pods as asked for, those that do not serve removed first."""

    pods: dict[str, RevisionPods] = field(default_factory=dict)

    def of(self, name: str) -> RevisionPods:
        return self.pods.get(name, RevisionPods(name=name))

    def apply(self, wanted: dict[str, int]) -> None:
        """Pods appear and go at once; those that go are ending until `finish`."""
        for name, count in wanted.items():
            old = self.of(name)
            idle = old.alive - old.ready
            gone = max(0, old.alive - count)
            ready = old.ready - max(0, gone - idle)
            broken = min(old.broken, max(0, count - ready))
            self.pods[name] = replace(
                old, desired=count, alive=count, ready=ready, broken=broken, terminating=old.terminating + gone
            )

    def become_ready(self, name: str) -> None:
        old = self.of(name)
        if old.alive > old.ready + old.broken:
            self.pods[name] = replace(old, ready=old.ready + 1)

    def lose_readiness(self, name: str) -> None:
        old = self.of(name)
        self.pods[name] = replace(old, ready=max(0, old.ready - 1))

    def break_one(self, name: str) -> None:
        old = self.of(name)
        if old.alive > old.ready + old.broken:
            self.pods[name] = replace(old, broken=old.broken + 1)

    def heal(self, name: str) -> None:
        self.pods[name] = replace(self.of(name), broken=0)

    def finish(self, name: str) -> None:
        self.pods[name] = replace(self.of(name), terminating=0)

    @property
    def ready(self) -> int:
        return sum(pods.ready for pods in self.pods.values())

    @property
    def alive(self) -> int:
        return sum(pods.alive for pods in self.pods.values())

    @property
    def held(self) -> int:
        return sum(pods.alive + pods.terminating for pods in self.pods.values())

    def look(self, wanted: int, target: str, strategy: Strategy, *, stalled: bool = False) -> None:
        others = [pods for name, pods in sorted(self.pods.items()) if name != target]
        self.apply(plan(wanted, self.of(target), others, strategy, stalled))


REVISIONS = ("a", "b", "c")
HAPPENINGS = st.lists(
    st.tuples(
        st.sampled_from(["ready", "ready", "lose", "break", "heal", "finish", "target", "wanted"]),
        st.sampled_from(REVISIONS),
        st.integers(0, 9),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(
    start=st.integers(0, 9), happenings=HAPPENINGS, strategy=st.sampled_from([SURGE, RECREATE]), stalls=st.booleans()
)
def test_a_rollout_never_takes_ready_pods_below_the_floor_nor_pods_above_the_capacity_and_converges(
    start: int, happenings: list[tuple[str, str, int]], strategy: Strategy, stalls: bool
) -> None:
    cluster, wanted, target = Cluster({"a": serving("a", start)}), start, "b"

    for what, name, number in happenings:
        if what == "target":
            target = name
        elif what == "wanted":
            wanted = number
        else:
            happen(cluster, what, name)
        ready, alive, held = cluster.ready, cluster.alive, cluster.held
        cluster.look(wanted, target, strategy, stalled=stalls and cluster.of(target).broken > 0)
        floor = wanted if strategy == SURGE else wanted - 1
        assert cluster.ready >= min(floor, ready)
        if strategy == SURGE:
            assert cluster.alive <= max(alive, wanted + -(-wanted // 4))
        else:
            assert cluster.alive <= max(alive, wanted)
            # Without another revision nothing is rolled out, and a service that grows need not wait for its own ending pods.
            assert cluster.held <= max(held, wanted) or cluster.pods.keys() == {target}

    rest(cluster, wanted, target, strategy, stalls)
    settle(cluster, wanted, target, strategy)
    assert cluster.of(target).ready == cluster.of(target).alive == wanted
    assert cluster.alive == wanted


def happen(cluster: Cluster, what: str, name: str) -> None:
    """One thing that Kubernetes or a worker does."""
    {
        "ready": cluster.become_ready,
        "lose": cluster.lose_readiness,
        "break": cluster.break_one,
        "heal": cluster.heal,
        "finish": cluster.finish,
    }[what](name)


def rest(cluster: Cluster, wanted: int, target: str, strategy: Strategy, stalls: bool) -> None:
    """Nothing happens any more but that pods end and, once, those that can become ready: the plans come to rest."""
    plans = []
    for _ in range(60):
        cluster.look(wanted, target, strategy, stalled=stalls and cluster.of(target).broken > 0)
        for name in REVISIONS:
            cluster.become_ready(name)
            cluster.finish(name)
        plans.append({name: pods.desired for name, pods in cluster.pods.items()})
    assert plans[-1] == plans[-2] == plans[-3]


def settle(cluster: Cluster, wanted: int, target: str, strategy: Strategy) -> None:
    """Everything goes well from now on."""
    for name in REVISIONS:
        cluster.heal(name)
    for _ in range(60):
        cluster.look(wanted, target, strategy)
        for name in REVISIONS:
            cluster.become_ready(name)
            cluster.finish(name)


@settings(max_examples=80, deadline=None)
@given(
    wanted=st.integers(1, 9),
    weights=st.lists(st.integers(1, 99), min_size=1, max_size=4),
    strategy=st.sampled_from([SURGE, RECREATE]),
    readies=st.lists(st.sampled_from(REVISIONS), max_size=30),
)
def test_a_canary_takes_no_ready_pod_that_the_floor_needs_and_gets_its_share(
    wanted: int, weights: list[int], strategy: Strategy, readies: list[str]
) -> None:
    if strategy == RECREATE and wanted < 2:
        return
    cluster = Cluster({"a": serving("a", wanted)})

    def look(weight: int) -> int:
        share = canary_replicas(wanted, weight)
        rollout = RolloutInput(wanted=wanted, strategy=strategy, target=cluster.of("b"), others=(cluster.of("a"),))
        cluster.apply(plan_canary(rollout, "a", share))
        return share

    for weight in sorted(weights):
        for name in readies:
            before = cluster.ready
            look(weight)
            assert cluster.ready >= min(before, wanted - (strategy == RECREATE))
            if strategy == RECREATE:
                assert cluster.held <= wanted
            cluster.become_ready(name)
            cluster.finish("a")
    for _ in range(40):
        share = look(max(weights))
        for name in REVISIONS:
            cluster.become_ready(name)
            cluster.finish(name)

    expected = (wanted, share) if strategy == SURGE else (wanted - min(share, wanted - 1), min(share, wanted - 1))
    assert (cluster.of("a").ready, cluster.of("b").ready) == expected


NOTHING = RevisionPods(name="new")
CASES = [
    ("the first revision gets all pods at once", 4, NOTHING, [], SURGE, {"new": 4}),
    ("surge begins with a quarter more", 4, NOTHING, [serving("old", 4)], SURGE, {"old": 4, "new": 1}),
    ("one replica is replaced by way of two", 1, NOTHING, [serving("old", 1)], SURGE, {"old": 1, "new": 1}),
    ("a ready new pod lets an old one go", 4, serving("new", 1), [serving("old", 4)], SURGE, {"old": 3, "new": 1}),
    ("the room of pods that are gone is used", 4, serving("new", 1), [serving("old", 3)], SURGE, {"old": 3, "new": 2}),
    ("recreate gives up one first", 4, NOTHING, [serving("old", 4)], RECREATE, {"old": 3, "new": 0}),
    (
        "recreate waits until the devices are free",
        2,
        NOTHING,
        [RevisionPods(name="old", desired=1, alive=1, terminating=1, ready=1)],
        RECREATE,
        {"old": 1, "new": 0},
    ),
    ("then the new one comes", 2, NOTHING, [serving("old", 1)], RECREATE, {"old": 1, "new": 1}),
    ("a single replica is given up", 1, NOTHING, [serving("old", 1)], RECREATE, {"old": 0, "new": 0}),
    ("zero replicas", 0, serving("new", 1), [serving("old", 2)], SURGE, {"old": 0, "new": 0}),
    ("fewer replicas in the middle", 2, serving("new", 2), [serving("old", 3)], SURGE, {"old": 0, "new": 2}),
    (
        "old pods that cannot work make room at once",
        2,
        NOTHING,
        [RevisionPods(name="old", desired=2, alive=2, broken=2)],
        SURGE,
        {"old": 0, "new": 1},
    ),
    (
        "old pods that all miss a probe stay",
        2,
        RevisionPods(name="new", desired=1, alive=1),
        [RevisionPods(name="old", desired=2, alive=2)],
        SURGE,
        {"old": 2, "new": 1},
    ),
    (
        "a second change in the middle removes what had not come up yet, not what serves",
        4,
        NOTHING,
        [serving("old", 4), RevisionPods(name="middle", desired=1, alive=1)],
        SURGE,
        {"old": 4, "middle": 0, "new": 0},
    ),
]


@pytest.mark.parametrize(
    ("wanted", "target", "others", "strategy", "expected"),
    [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)
def test_one_look_takes_this_step(
    wanted: int, target: RevisionPods, others: list[RevisionPods], strategy: Strategy, expected: dict[str, int]
) -> None:
    assert plan(wanted, target, others, strategy) == expected


def test_a_new_revision_that_never_becomes_ready_leaves_the_old_pods_serving() -> None:
    cluster = Cluster({"a": serving("a", 4)})

    for _ in range(10):
        cluster.look(4, "b", SURGE)

    assert (cluster.of("a").ready, cluster.of("b").alive) == (4, 1)


def test_going_back_in_the_middle_restarts_no_old_pod() -> None:
    cluster = Cluster({"a": serving("a", 4)})
    cluster.look(4, "b", SURGE)
    cluster.become_ready("b")
    cluster.look(4, "b", SURGE)
    kept = cluster.of("a").ready

    for _ in range(6):
        cluster.look(4, "a", SURGE)
        assert cluster.of("a").ready >= kept
        cluster.become_ready("a")

    assert (cluster.of("a").ready, cluster.of("b").alive) == (4, 0)


def test_a_service_that_grows_while_its_new_revision_is_stuck_grows_with_the_old_one() -> None:
    stuck = RevisionPods(name="new", desired=1, alive=1, broken=1)

    wanted = plan(8, stuck, [serving("old", 4)], stalled=True)

    assert wanted == {"old": 8, "new": 2}


@pytest.mark.parametrize(("wanted", "weight", "pods"), [(1, 5, 1), (4, 5, 1), (4, 26, 2), (10, 25, 3), (10, 50, 5)])
def test_a_canary_gets_its_share_of_the_pods_rounded_up(wanted: int, weight: int, pods: int) -> None:
    assert canary_replicas(wanted, weight) == pods
