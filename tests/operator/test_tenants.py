"""What routers are told of tenants, and what tenants are told."""

from datetime import UTC, datetime
from typing import Any

from quire_contract.router_config import MAX_SHARD_BYTES, decode_config, merge_shards
from quire_contract.router_tenants import TenantEntry, TenantKeyEntry, TenantLimitsEntry
from quire_operator.acceptance import tenant_status
from quire_operator.router_shards import ShardEntry, shard_texts
from quire_operator.tenants import TenantBook, decide_tenant

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOME = "quire"


def tenant(name: str, namespace: str = "team", created: str = "2026-01-01T00:00:00Z", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "quire.dev/v1alpha1",
        "kind": "Tenant",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": f"uid-{namespace}-{name}",
            "generation": 1,
            "creationTimestamp": created,
        },
        "spec": spec,
    }


def key(letter: str, **more: str) -> dict[str, str]:
    return {"id": letter, "sha256": letter * 64, **more}


def book_of(*documents: dict[str, Any]) -> TenantBook:
    book = TenantBook(HOME)
    for document in documents:
        book.put(document)
    return book


def test_everything_that_a_tenant_says_is_told() -> None:
    document = tenant(
        "acme",
        keys=[key("a"), key("b", expiresAt="2027-01-31T00:00:00Z")],
        models=["llama", "chat"],
        limits={
            "requestsPerMinute": 1,
            "tokensPerMinute": 2,
            "tokensPerDay": 3,
            "tokensPerMonth": 4,
            "maxConcurrentRequests": 5,
        },
        billing={"mode": "Prepaid", "credit": "12.50"},
        priority=-5,
        weight=7,
        cacheSharing="Shared",
        responseCache="Disabled",
        suspended=True,
    )

    decision = decide_tenant(document, HOME)

    assert (decision.problems, decision.reason) == ((), "Accepted")
    assert decision.entry == TenantEntry(
        id="team/acme",
        keys=[
            TenantKeyEntry(id="a", sha256="a" * 64),
            TenantKeyEntry(id="b", sha256="b" * 64, expires_ts=1801353600.0),
        ],
        namespace="team",
        models=["llama", "chat"],
        limits=TenantLimitsEntry(
            requests_per_minute=1, tokens_per_minute=2, tokens_per_day=3, tokens_per_month=4, max_concurrent_requests=5
        ),
        billing="prepaid",
        credit="12.50",
        priority=-5,
        weight=7,
        shares_cache=True,
        response_cache=False,
        suspended=True,
    )


def test_only_tenants_of_the_releases_own_namespace_may_use_every_one() -> None:
    entries = [decide_tenant(tenant("acme", namespace), HOME).entry for namespace in (HOME, "team")]

    assert [entry.namespace for entry in entries] == [None, "team"]


def test_a_key_belongs_to_the_oldest_tenant_that_has_it() -> None:
    younger = tenant("younger", created="2026-02-02T00:00:00Z", keys=[key("a"), key("b")])
    older = tenant("older", keys=[key("a")])

    book = book_of(younger, older)

    first, second = book.decision(("team", "older")), book.decision(("team", "younger"))
    assert (first.problems, [k.id for k in first.entry.keys]) == ((), ["a"])
    assert (second.reason, [k.id for k in second.entry.keys]) == ("KeyConflict", ["b"])
    assert second.problems[0].path == "spec.keys[0].sha256"
    assert "team/older" in second.problems[0].message
    assert dict(book.decisions()) == {("team", "older"): first, ("team", "younger"): second}


def test_a_key_that_is_freed_goes_to_the_next() -> None:
    younger = tenant("younger", created="2026-02-02T00:00:00Z", keys=[key("a")])
    book = book_of(tenant("other", keys=[key("b")]), tenant("older", keys=[key("a")]), younger)

    concerned = book.drop(("team", "older"))

    assert concerned == {("team", "younger")}
    assert book.decision(("team", "younger")).problems == ()
    assert book.decision(("team", "older")) is None
    assert book.drop(("team", "older")) is None


def test_only_a_new_generation_or_another_object_counts_as_a_change() -> None:
    document = tenant("acme", keys=[key("a")])
    book = book_of(document)
    revoked = tenant("acme", keys=[])
    revoked["metadata"]["generation"] = 2

    unchanged, changed = book.put({**document, "status": {"observedGeneration": 1}}), book.put(revoked)

    assert (unchanged, changed) == (None, frozenset())
    assert book.decision(("team", "acme")).entry.keys == []


def test_the_condition_says_what_is_enforced_and_warns_of_models_that_nobody_serves() -> None:
    document = tenant("acme", keys=[key("a")], models=["llama", "later"], limits={"tokensPerDay": 9})

    status = tenant_status(document, decide_tenant(document, HOME), {"llama"}, NOW)

    (condition,) = status["conditions"]
    assert (condition["status"], condition["reason"]) == ("True", "Accepted")
    assert condition["message"] == (
        "Routers enforce it: 1 key; 2 models; 9 tokens/day."
        " Warning: spec.models: nothing that it may use is called 'later' now."
    )


def test_a_tenant_without_keys_is_told_how_to_get_one() -> None:
    document = tenant("acme")

    status = tenant_status(document, decide_tenant(document, HOME), (), NOW)

    assert "quire tenant rotate" in status["conditions"][0]["message"]


def test_a_tenant_that_makes_no_sense_has_no_keys_that_work_and_opens_nothing() -> None:
    document = tenant("acme", keys=[key("a"), {"id": "b", "sha256": "short"}])

    decision = decide_tenant(document, HOME)
    status = tenant_status(document, decision, (), NOW)

    assert decision.reason == "InvalidSpec"
    assert decision.entry == TenantEntry(id="team/acme", namespace="team", suspended=True)
    assert status["conditions"][0]["status"] == "False"
    assert "spec.keys[1].sha256" in status["conditions"][0]["message"]


def test_five_hundred_tenants_fit_and_a_revoked_key_changes_one_shard() -> None:
    def entries(num_keys_of_first: int) -> list[ShardEntry]:
        decided = [
            decide_tenant(
                tenant(
                    f"tenant-{i}",
                    keys=[
                        {"id": f"key-{k}", "sha256": f"{i * 4 + k:064x}", "expiresAt": "2027-01-31T00:00:00Z"}
                        for k in range(4 if i else num_keys_of_first)
                    ],
                    models=["llama", "chat"],
                    limits={"requestsPerMinute": 600, "tokensPerMonth": 10**9},
                ),
                HOME,
            ).entry
            for i in range(500)
        ]
        return [ShardEntry(key=f"tenant:{entry.id}", tenant=entry) for entry in decided]

    before, after = shard_texts(entries(4)), shard_texts(entries(3))

    assert sum(old != new for old, new in zip(before, after, strict=True)) == 1
    assert max(len(text) for text in before) <= MAX_SHARD_BYTES // 4
    merged = merge_shards([decode_config(text.encode()) for text in after])
    assert len(merged.tenants) == 500
    assert sum(len(one.keys) for one in merged.tenants) == 1999
