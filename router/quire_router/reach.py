"""Which workers may answer a call now, and how much more they can take together. Reads the pool; decides nothing about who waits."""

from collections.abc import Callable, Iterable, Iterator, Mapping

from quire_contract.router_settings import AdmissionSettings
from quire_router.call import Call
from quire_router.endpoint_pool import EndpointPool
from quire_router.endpoints import Endpoint
from quire_router.line import Line, Waiter
from quire_router.room import Room, is_roomy, room_at


class Reach:
    """Answers from the pool as it is."""

    def __init__(self, pool: EndpointPool) -> None:
        self._pool = pool

    def usable(self, model: str) -> Iterator[Endpoint]:
        """Workers that new requests for it may go to."""
        return iter(_takers(self._pool.serving(model) or (), self._pool.weights(model)))

    def is_usable(self, model: str) -> bool:
        """Whether there is such a worker."""
        weights = self._pool.weights(model)
        return any(_is_usable(endpoint, weights) for endpoint in self._pool.serving(model) or ())

    def held_test(self) -> Callable[[Waiter], bool]:
        """Whether a request waits for a first worker: a test for this moment only, that looks at each model's workers once."""
        usable: dict[str, bool] = {}

        def is_held(waiter: Waiter) -> bool:
            for target in waiter.call.targets:
                found = usable.get(target)
                if found is None:
                    found = usable[target] = self.is_usable(target)
                if found:
                    return False
            return True

        return is_held

    def eligible(self, call: Call) -> tuple[str, ...]:
        """The targets that may answer, in order of preference: fallbacks only while no other target has a ready worker."""
        if len(call.targets) == 1:
            return call.targets
        route = self._pool.route(call.model)
        if route is None or not route.fallbacks:
            return call.targets
        first = tuple(target for target in call.targets if target not in route.fallbacks)
        return first if any(self.is_usable(target) for target in first) else call.targets

    def ids(self, models: Iterable[str]) -> frozenset[str]:
        """Of all workers of the models, ready or not."""
        return frozenset(e.id for model in models for e in self._pool.serving(model) or ())

    def has_room(self, line: Line, model: str, rules: AdmissionSettings, now_s: float) -> bool:
        """Whether a request of `line` for `model` may start at some worker. The one that had room last is asked first."""
        served = self._pool.served(model)
        endpoints, weights = served.endpoints, served.weights
        if weights is None and line.hint < len(endpoints):  # mostly it has room again
            last = endpoints[line.hint]
            if (
                last.ready
                and not last.draining
                and not last.health.is_ejected
                and last.entry.role != "prefill"
                and is_roomy(last, rules, now_s)
            ):
                return True
        has_sound: bool | None = None
        for turn in range(line.hint, line.hint + len(endpoints)):
            endpoint = endpoints[turn % len(endpoints)]
            if not _is_usable(endpoint, weights):
                continue
            if not is_roomy(endpoint, rules, now_s) and room_at(endpoint, rules, now_s).is_empty:
                continue
            if endpoint.health.is_ejected:
                if has_sound is None:
                    has_sound = any(_is_usable(e, weights) and not e.health.is_ejected for e in endpoints)
                if has_sound:
                    continue
            line.hint = turn % len(endpoints)
            return True
        return False

    def room_in(self, line: Line, rules: AdmissionSettings, now_s: float) -> dict[str, tuple[int, float]]:
        """Model that somebody in `line` waits for -> requests and tokens that may start.

        Only workers that changed are looked at: the others had no room when they were looked at last, and have none."""
        dirty, line.dirty = line.dirty, set()
        everywhere, line.looks_everywhere = line.looks_everywhere, False
        rooms: dict[str, Room] = {}
        left: dict[str, tuple[int, float]] = {}
        for model in line.models:
            requests, tokens = -line.granted, 0.0
            for endpoint in self.usable(model):
                if not everywhere and endpoint.id not in dirty:
                    continue
                room = rooms.get(endpoint.id)
                if room is None:
                    room = rooms[endpoint.id] = room_at(endpoint, rules, now_s)
                requests += room.requests
                tokens += room.tokens
            left[model] = (requests, tokens)
        return left


def _takers(endpoints: Iterable[Endpoint], weights: Mapping[str, int] | None) -> list[Endpoint]:
    """The usable ones; those that keep failing only where there are no others, as the choice has it."""
    usable = [endpoint for endpoint in endpoints if _is_usable(endpoint, weights)]
    return [endpoint for endpoint in usable if not endpoint.health.is_ejected] or usable


def _is_usable(endpoint: Endpoint, weights: Mapping[str, int] | None) -> bool:
    """Whether it takes new requests, runs a revision that has a share of them, and generates."""
    if not endpoint.is_usable or endpoint.entry.role == "prefill":
        return False
    return weights is None or weights.get(endpoint.entry.revision, 0) > 0
