"""Who gets a share of the requests: revisions of a service, targets of a route. Pure functions; the random source is given.

A weight of 0, or none, means nothing at all, also when nobody else is ready: a canary that was rolled back must not get traffic because
the rest is down. Among those with a weight, the ones that cannot answer leave their part to the others.
"""

import hashlib
import math
import random
from collections.abc import Collection, Mapping

import msgspec

from quire_contract.openai.errors import CODE_INVALID_JSON, ApiError
from quire_contract.router_config import RouteEntry

_FIELDS_DECODER = msgspec.json.Decoder(dict[str, msgspec.Raw])


def choose_by_weight(weights: Mapping[str, int], usable: Collection[str], rng: random.Random) -> str | None:
    """One of the usable names, by weight. None: none of them has a weight."""
    left = {name: weight for name, weight in weights.items() if weight > 0 and name in usable}
    if not left:
        return None
    if len(left) == 1:
        return next(iter(left))
    return rng.choices(list(left), list(left.values()))[0]


def choose_by_hash(weights: Mapping[str, int], usable: Collection[str], key: bytes) -> str | None:
    """The same for requests that stay together, as `order_by_hash` has it: who cannot answer now leaves its keys to others for a while."""
    left = [name for name, weight in weights.items() if weight > 0 and name in usable]
    return min(left, key=lambda name: _distance(key, name) / weights[name], default=None)


def order_targets(route: RouteEntry, rng: random.Random) -> tuple[str, ...]:
    """The models that may answer for a route: the one whose turn it is, the other targets, then the fallbacks in their order."""
    weights = {target.model: target.weight for target in route.targets}
    order: list[str] = []
    while (chosen := choose_by_weight(weights, weights.keys() - set(order), rng)) is not None:
        order.append(chosen)
    return tuple(dict.fromkeys([*order, *route.fallbacks]))


def order_by_hash(route: RouteEntry, key: bytes) -> tuple[str, ...]:
    """The same for requests that stay together: one order for each `key`, whoever asks when.

    Weighted rendezvous hashing (Schindelhauer and Schomaker, 2005): over many keys each target is first as often as its weight says, and a
    changed weight moves only keys from or to the target whose weight it is."""
    weights = {target.model: target.weight for target in route.targets if target.weight > 0}
    order = sorted(weights, key=lambda model: _distance(key, model) / weights[model])
    return tuple(dict.fromkeys([*order, *route.fallbacks]))


def _distance(key: bytes, model: str) -> float:
    """Exponentially distributed, the same for the same two."""
    digest = hashlib.blake2b(key, digest_size=8, key=hashlib.blake2b(model.encode(), digest_size=32).digest()).digest()
    return -math.log((int.from_bytes(digest, "big") + 0.5) / 2.0**64)


def with_model(body: bytes, model: str) -> bytes:
    """A JSON object's bytes with another value of "model": every other value stays as the client wrote it.

    ApiError 400 if they are none, in a part that nobody has looked at before."""
    return with_field(body, "model", model)


def with_field(body: bytes, name: str, value: str | int) -> bytes:
    """The same for any field of the object itself."""
    try:
        fields = _FIELDS_DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"The body is not valid JSON: {error}", code=CODE_INVALID_JSON) from None
    fields[name] = msgspec.Raw(msgspec.json.encode(value))
    return msgspec.json.encode(fields)
