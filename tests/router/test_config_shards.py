"""Shards that cannot be used: what is kept, and what their loss costs."""

import asyncio
import contextlib
import hashlib
import stat

import msgspec
import pytest

from quire_contract.router_config import ModelEntry, RouterConfig, RouterConfigError, merge_shards
from quire_contract.router_settings import FilterEntry, RouterSettingsEntry
from quire_contract.router_tenants import TenantEntry
from quire_router.config_shards import Lost, Shards, desired_with_lost
from quire_router.live_config import LiveConfig, digest_of
from quire_router.saved_config import SavedConfig
from quire_router.tenants import TenantBook
from tests.router.tenant_help import tenant

EMPTY = RouterConfig(models=[], endpoints=[])
FILTERED = RouterSettingsEntry(filters=[FilterEntry(name="size", max_chars=9)])


def shard(text, number=0):
    return {"metadata": {"namespace": "home", "name": f"r-config-{number}"}, "data": {"router.json": text}}


def text_of(**fields):
    return msgspec.json.encode({"models": [], "endpoints": [], **fields}).decode()


def test_a_bad_shard_keeps_its_last_good_content_and_counts_each_new_mistake_once():
    shards = Shards()
    shards.replace([shard(text_of(models=[{"name": "m"}]))])

    for text in ("{", "{", text_of(modles=[])):
        shards.change("MODIFIED", shard(text))

    assert [model.name for model in shards.ordered[0].models] == ["m"]
    assert (shards.num_refused, shards.num_refusals, shards.lost) == (1, 2, Lost())


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        (text_of(settings={"faults": {"max_resumes": -1}}), Lost(settings=True)),
        (text_of(tenants=[{"id": ""}]), Lost(tenants=True)),
        (text_of(require_tenant="yes"), Lost(tenants=True)),
        (text_of(modles=[]), Lost()),
        ("no JSON", Lost(settings=True, tenants=True)),
    ],
)
def test_a_shard_that_never_was_good_is_lost_with_what_it_may_hold(text, lost):
    shards = Shards()

    shards.replace([shard(text), shard(text_of(models=[{"name": "m"}]), 1)])
    while_bad = shards.lost, len(shards.ordered)
    shards.change("MODIFIED", shard(text_of()))

    assert while_bad == (lost, 1)
    assert (shards.lost, shards.num_refused, len(shards.ordered)) == (Lost(), 0, 2)


def test_a_deleted_shard_is_not_missed():
    shards = Shards()
    shards.replace([shard("{"), shard("{", 1)])

    shards.change("DELETED", shard("{"))
    shards.replace([])

    assert (shards.lost, shards.num_refused, shards.ordered) == (Lost(), 0, [])


TENANTS = text_of(tenants=[{"id": "t"}])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "router.json: is missing or empty"),
        (TENANTS[: len(TENANTS) // 2], "truncated"),
        (TENANTS + TENANTS, "trailing"),
        ('{"a":' * 100_000, "unknown field `a`"),
        ("[" * 500_000, "Expected `object`"),
        (text_of(tenants=[{"id": "t"}, {"id": "t"}]), "'t' is used twice"),
        (text_of(version=99), "version is 99"),
        (text_of(settings={"limits": {"leese_percent": 1}}), "leese_percent"),
        (text_of(models=[{"name": "m" * 900_000, "nmae": 1}]), "nmae"),
    ],
    ids=["empty", "half", "twice", "deep", "deep lists", "double", "of another release", "a typing error", "huge"],
)
def test_whatever_a_shard_holds_its_name_is_told_and_the_others_are_used(text, why, logged):
    shards = Shards()

    shards.replace([shard(TENANTS, 0), shard(text, 1), shard(text_of(models=[{"name": "m"}]), 2)])

    assert [(len(one.tenants), len(one.models)) for one in shards.ordered] == [(1, 0), (0, 1)]
    assert shards.num_refused == 1
    assert "ConfigMap home/r-config-1, router.json: " in logged()
    assert why in logged()


def test_shards_out_of_order_and_told_twice_say_the_same():
    documents = [shard(text_of(models=[{"name": name}], settings=None), n) for n, name in enumerate("abcdefghijkl")]
    first, second = Shards(), Shards()

    first.replace(documents)
    for document in [*reversed(documents), *documents[::2]]:
        second.change("ADDED", document)

    assert first.ordered == second.ordered
    assert [config.models[0].name for config in first.ordered] == list("abcdefghijkl")


def test_a_shard_that_is_deleted_with_the_last_tenants_lets_nobody_in(logged):
    shards = Shards()
    shards.replace([shard(TENANTS), shard(text_of(), 1)])

    shards.change("DELETED", shard(TENANTS))
    deleted = shards.lost
    shards.change("ADDED", shard(text_of()))
    back = shards.lost

    assert (deleted, back) == (Lost(tenants=True), Lost())
    assert logged().count("ConfigMap home/r-config-0 was deleted with the last tenants") == 1


def test_a_surplus_shard_and_tenants_that_are_taken_away_properly_are_not_missed():
    shards = Shards()
    shards.replace([shard(TENANTS), shard(TENANTS, 1)])

    shards.replace([shard(TENANTS)])
    moved = shards.lost
    shards.change("MODIFIED", shard(text_of()))

    assert (moved, shards.lost) == (Lost(), Lost())


def test_of_one_key_in_two_shards_the_first_says_whose_it_is():
    shards, book = Shards(), TenantBook(None)
    texts = [text_of(tenants=[msgspec.to_builtins(tenant(one, "k"))]) for one in ("a", "b")]

    shards.replace([shard(texts[1], 1), shard(texts[0], 0)])
    book.swap(merge_shards(shards.ordered))

    assert book.find(hashlib.sha256(b"k").digest()).tenant.entry.id == "a"


def test_what_a_part_of_the_router_cannot_use_is_refused_like_what_cannot_be_read():
    def no_filters(config, source):
        if config.settings is not None and config.settings.filters:
            raise RouterConfigError(f"{source}: settings.filters[0].patterns[0]: is no regular expression")

    shards = Shards(LiveConfig(no_filters).check)

    shards.replace([shard(text_of(settings=msgspec.to_builtins(FILTERED))), shard(text_of(), 1)])

    assert (shards.lost, shards.num_refused, len(shards.ordered)) == (Lost(settings=True), 1, 1)


def test_without_known_settings_nothing_is_served_and_with_lost_tenants_nobody_is_let_in():
    last = RouterConfig(models=[], endpoints=[], settings=FILTERED)

    assert desired_with_lost(EMPTY, Lost(settings=True), None) is None
    assert desired_with_lost(EMPTY, Lost(settings=True), last).settings == FILTERED
    assert desired_with_lost(EMPTY, Lost(tenants=True), None).require_tenant
    assert desired_with_lost(EMPTY, Lost(), last) is EMPTY


async def test_what_is_saved_is_read_back_by_its_owner_only(tmp_path, until):
    config = RouterConfig(
        models=[ModelEntry(name="m")], endpoints=[], tenants=[TenantEntry(id="team/acme")], settings=FILTERED
    )
    saved = SavedConfig(tmp_path)
    before = saved.load()
    task = asyncio.create_task(saved.run())

    saved.keep(config)
    await until((tmp_path / "router-config.json").exists)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task

    again = SavedConfig(tmp_path).load()
    assert before is None
    assert again == config
    assert digest_of(again) == digest_of(config)
    assert [stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()] == [0o600]


async def test_a_folder_that_cannot_be_written_costs_a_log_line(tmp_path, until, logged):
    saved = SavedConfig(tmp_path / "missing")
    task = asyncio.create_task(saved.run())

    saved.keep(EMPTY)
    await until(lambda: "configuration_not_saved" in logged())
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task

    assert saved.load() is None


def test_a_saved_file_that_is_broken_is_as_good_as_none(tmp_path, logged):
    (tmp_path / "router-config.json").write_text("{")

    assert SavedConfig(tmp_path).load() is None
    assert "saved_configuration_unusable" in logged()
