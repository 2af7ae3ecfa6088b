"""Which models answer a call by a route's name, in which order, and why. Knows no sockets.

    header x-quire-model -> the request's complexity -> sticky by hash, or drawn by weight; then the fallbacks

A tenant's list of models is about the name that was asked for: who may use a route may use its models through it.
"""

import random
from collections import OrderedDict
from typing import Any, Literal

import msgspec
from multidict import MultiMapping

from quire_contract import names
from quire_contract.openai.errors import ApiError, invalid
from quire_contract.openai.requests import RoutingFields
from quire_contract.router_config import RouteEntry
from quire_contract.trust import presented_key
from quire_router.complexity import Complexity, complexity_of
from quire_router.endpoint_pool import EndpointPool
from quire_router.splitting import order_by_hash, order_targets

MAX_PLANS = 512
"""That are remembered for /debug/route."""
MAX_USER_CHARS = 1024
"""What is beyond does not tell users apart."""

Sticky = Literal["none", "tenant", "user"]
ChosenBy = Literal["header", "complexity", "sticky", "weight", "name"]


class RoutePlan(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Who may answer a call."""

    targets: tuple[str, ...]
    """In the order in which they are tried: those with a ready worker first."""
    timeout_s: float | None
    """For a stream's first event; None: the usual one."""
    entry: RouteEntry | None = None
    """None: the name is a model's own."""
    chosen_by: ChosenBy = "name"
    complexity: Complexity | None = None
    meant: str = ""
    """The target that would come first if all had a ready worker."""

    def shown(self) -> dict[str, Any]:
        """For /debug/route."""
        shown: dict[str, Any] = {"chosen_by": self.chosen_by, "targets": list(self.targets)}
        if self.entry is not None:
            shown["name"] = self.entry.model
        if self.complexity is not None:
            steps = [{"model": step.model, "below": step.below} for step in self.entry.complexity] if self.entry else []
            shown["complexity"] = {
                "score": self.complexity.score,
                "points": self.complexity.points,
                "steps": steps,
            }
        return shown


class Asker(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a plan is made from, beside the name."""

    request_id: str
    headers: MultiMapping[str]
    body: bytes
    fields: RoutingFields | None
    tenant_id: str | None


class _Who(msgspec.Struct, frozen=True):
    user: Any = None
    safety_identifier: Any = None
    metadata: Any = None


class _Form(msgspec.Struct, frozen=True):
    response_format: Any = None
    structured_outputs: Any = None
    text: Any = None
    output_config: Any = None


_WHO = msgspec.json.Decoder(_Who)
_FORM = msgspec.json.Decoder(_Form)


class RoutePlanner:
    """One for the process."""

    def __init__(self, pool: EndpointPool, rng: random.Random) -> None:
        self._pool = pool
        self._rng = rng
        self.plans: OrderedDict[str, RoutePlan] = OrderedDict()
        """The last ones of routes, by request id."""

    def is_plain(self, model: str, headers: MultiMapping[str]) -> bool:
        """Whether the model itself answers for its name, and there is nothing to plan."""
        return self._pool.route(model) is None and names.HEADER_MODEL not in headers

    def plan(self, model: str, asker: Asker) -> RoutePlan:
        """Who answers for `model`. ApiError 400 for an x-quire-model that is none of the route's."""
        route = self._pool.route(model)
        wanted = asker.headers.get(names.HEADER_MODEL)
        if route is None:
            if wanted is not None and wanted != model:
                raise invalid(names.HEADER_MODEL, f"`{model}` is no route; ask for the model itself in `model`")
            return RoutePlan(targets=(model,), timeout_s=None)
        ordered, chosen_by, complexity = self._order(route, wanted, asker)
        plan = RoutePlan(
            targets=tuple(sorted(ordered, key=lambda target: not self._pool.has_usable(target))),
            timeout_s=route.timeout_s,
            entry=route,
            chosen_by=chosen_by,
            complexity=complexity,
            meant=ordered[0],
        )
        self.plans[asker.request_id] = plan
        if len(self.plans) > MAX_PLANS:
            self.plans.popitem(last=False)
        return plan

    def _order(
        self, route: RouteEntry, wanted: str | None, asker: Asker
    ) -> tuple[tuple[str, ...], ChosenBy, Complexity | None]:
        if wanted is not None:
            return _first(_of_route(route, wanted), route), "header", None
        if route.complexity:
            complexity = complexity_of(asker.fields, is_structured=is_structured(asker.body))
            step = next(s for s in route.complexity if s.below is None or complexity.score < s.below)
            return _first(step.model, route), "complexity", complexity
        key = sticky_key(route.sticky, asker)
        if key is None:
            return order_targets(route, self._rng), "weight", None
        return order_by_hash(route, key), "sticky", None


def sticky_key(sticky: Sticky, asker: Asker) -> bytes | None:
    """Whose requests stay together. None: nobody's, or it is not known whose this one is."""
    if sticky == "none":
        return None
    key = presented_key(asker.headers)
    whose = asker.tenant_id if asker.tenant_id is not None else key
    if sticky == "tenant":
        return None if whose is None else _joined(whose)
    user = _user_of(asker.body)
    return None if user is None else _joined(whose or "", user)


def is_structured(body: bytes) -> bool:
    """Whether the answer must match something: in the words of any of the APIs."""
    try:
        form = _FORM.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    if form.structured_outputs is not None:
        return True
    formats = [form.response_format]
    formats += [place.get("format") for place in (form.text, form.output_config) if isinstance(place, dict)]
    return any(isinstance(found, dict) and found.get("type") not in (None, "text") for found in formats)


def _user_of(body: bytes) -> str | None:
    try:
        who = _WHO.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    metadata = who.metadata if isinstance(who.metadata, dict) else {}
    named = (who.user, who.safety_identifier, metadata.get("user_id"))
    return next((name[:MAX_USER_CHARS] for name in named if isinstance(name, str) and name), None)


def _joined(*parts: str) -> bytes:
    encoded = [part.encode("utf-8", "surrogatepass") for part in parts]
    return b"".join(len(part).to_bytes(8, "little") + part for part in encoded)


def _of_route(route: RouteEntry, wanted: str) -> str:
    models = dict.fromkeys(
        [*(t.model for t in route.targets), *(step.model for step in route.complexity), *route.fallbacks]
    )
    if wanted not in models:
        raise _not_of_route(route.model, wanted, list(models))
    return wanted


def _not_of_route(route: str, wanted: str, models: list[str]) -> ApiError:
    return invalid(names.HEADER_MODEL, f"`{wanted[:200]}` is no model of `{route}`; use one of {', '.join(models)}")


def _first(model: str, route: RouteEntry) -> tuple[str, ...]:
    return tuple(dict.fromkeys([model, *route.fallbacks]))
