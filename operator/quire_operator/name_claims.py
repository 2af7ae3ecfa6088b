"""Which service serves which name: the oldest has it. Pure but for a memory of the last answer.

Names are read from the document leniently, for a service whose new spec is wrong goes on serving. This module must not know routers.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from quire_operator.api.validation import Problem

ServiceKey = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What one service asks for."""

    key: ServiceKey
    """(namespace, name)."""
    created: tuple[str, str]
    """Creation time, then uid: orders services by age."""
    names: tuple[str, ...]
    """The served name, then its aliases."""


@dataclass(frozen=True, kw_only=True)
class Claims:
    """Every name's owner, and what is wrong with the services that have none."""

    owners: Mapping[str, ServiceKey]
    """By served name."""
    conflicts: Mapping[ServiceKey, tuple[Problem, ...]]
    """Only services that lose a name; they get none of theirs."""


def claim_of(document: Mapping[str, Any]) -> Claim:
    """The claim of an InferenceService, whatever else is wrong with its spec."""
    meta = document["metadata"]
    model = _mapping(_mapping(document.get("spec")).get("model"))
    own = model.get("name")
    aliases = model.get("aliases")
    names = [own if isinstance(own, str) and own else meta["name"]]
    names += [alias for alias in aliases if isinstance(alias, str)] if isinstance(aliases, list) else []
    return Claim(
        key=(meta["namespace"], meta["name"]),
        created=(meta.get("creationTimestamp") or "", meta.get("uid") or ""),
        names=tuple(dict.fromkeys(names)),
    )


def decide_claims(claims: Iterable[Claim]) -> Claims:
    """Oldest first; a service that loses one of its names claims none, so that it takes none from the next."""
    owners: dict[str, ServiceKey] = {}
    conflicts: dict[ServiceKey, tuple[Problem, ...]] = {}
    for claim in sorted(claims, key=lambda claim: claim.created):
        problems = tuple(_problem(claim, name, owners[name]) for name in claim.names if name in owners)
        if problems:
            conflicts[claim.key] = problems
        else:
            owners.update(dict.fromkeys(claim.names, claim.key))
    return Claims(owners=owners, conflicts=conflicts)


class NameClaims:
    """The claims of all services, decided anew when one of them changes."""

    def __init__(self) -> None:
        self._claims: dict[ServiceKey, Claim] = {}
        self._decided: Claims | None = None

    def put(self, document: Mapping[str, Any]) -> bool:
        """Whether the document's claim is a new one."""
        claim = claim_of(document)
        if self._claims.get(claim.key) == claim:
            return False
        self._claims[claim.key] = claim
        self._decided = None
        return True

    def drop(self, key: ServiceKey) -> bool:
        """Whether there was a claim."""
        if self._claims.pop(key, None) is None:
            return False
        self._decided = None
        return True

    def decided(self) -> Claims:
        """Who has what."""
        if self._decided is None:
            self._decided = decide_claims(self._claims.values())
        return self._decided


def _problem(claim: Claim, name: str, owner: ServiceKey) -> Problem:
    is_served_name = name == claim.names[0]
    path = "spec.model.name" if is_served_name else "spec.model.aliases"
    fix = "give this one another spec.model.name" if is_served_name else "remove the alias"
    return Problem(path=path, message=f"{name!r} is served by InferenceService {'/'.join(owner)} already; {fix}")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
