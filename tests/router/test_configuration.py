"""The configuration file while the router runs, the flags, and small parts without a file of their own."""

import threading

import pytest

from quire_contract.router_config import EndpointEntry, ModelEntry, RouterConfig, write_config
from quire_router.config import parse_args
from quire_router.endpoint_pool import EndpointPool
from quire_router.keeper import EndpointKeeper, FileSource
from quire_router.kv_index import KvIndex, SentIndex
from quire_router.live_config import LiveConfig
from quire_router.prompts import PromptReader
from quire_router.retry_budget import RetryBudget
from quire_router.revision_stats import RevisionStats


async def test_a_new_file_changes_the_pool_and_keeps_what_is_known_of_the_rest(
    start_router, start_upstream, make_config, until
):
    a, b, c = [await start_upstream(name) for name in "abc"]
    router = await start_router(make_config(a, b))
    await router.until_ready(2)
    kept = router.app._pool.get("b")

    write_config(router.config_path, make_config(b, c))
    await until(lambda: {e.id for e in router.app._pool} == {"b", "c"})
    await router.until_ready(2)
    async with router.post({"model": "m", "prompt": "x"}) as answer:
        worker = answer.headers["x-quire-worker"]

    assert router.app._pool.get("b") is kept
    assert worker in ("b", "c")


async def test_a_bad_file_keeps_the_last_good_one_and_the_log_says_why(
    start_router, start_upstream, make_config, until, logged
):
    worker = await start_upstream("a")
    router = await start_router(make_config(worker))
    await router.until_ready(1)

    router.config_path.write_text('{"models": [], "endpoints": [], "modles": []}')
    await until(lambda: "configuration_refused" in logged())
    async with router.post({"model": "m", "prompt": "x"}) as answer:
        status = answer.status
    write_config(router.config_path, RouterConfig(models=[ModelEntry(name="n")], endpoints=[]))
    await until(lambda: router.app._pool.models == ("n",))

    assert status == 200
    assert "modles" in logged()
    assert str(router.config_path) in logged()


async def test_a_file_is_read_and_its_filters_compiled_in_a_thread_and_applied_in_the_event_loops(tmp_path):
    checked, applied = [], []
    live = LiveConfig(lambda config, source: checked.append(threading.current_thread()))
    live.follow(lambda config: applied.append(threading.current_thread()))
    keeper = EndpointKeeper(
        EndpointPool(RevisionStats("boot")), KvIndex(), SentIndex(), PromptReader(None), lambda endpoint: [], live
    )
    source = FileSource(tmp_path / "router.json", keeper)
    write_config(tmp_path / "router.json", RouterConfig(models=[], endpoints=[]))

    await source.load()
    write_config(tmp_path / "router.json", RouterConfig(models=[ModelEntry(name="m")], endpoints=[]))
    was_news = await source.poll()

    assert was_news
    assert applied == [threading.main_thread()] * 2
    assert threading.main_thread() not in checked
    assert len(checked) == 2


async def test_a_changed_address_is_another_endpoint(start_router, start_upstream, make_config, until):
    a, other = await start_upstream("a"), await start_upstream("other")
    router = await start_router(make_config(a))
    await router.until_ready(1)
    before = router.app._pool.get("a")

    other.id = "a"
    write_config(router.config_path, make_config(other))
    await until(lambda: router.app._pool.get("a") is not before)
    await router.until_ready(1)

    assert not before.ready
    assert router.app._pool.get("a").url == other.url


async def test_an_endpoint_that_serves_other_names_or_another_service_keeps_its_state(
    start_router, start_upstream, make_config, until
):
    a = await start_upstream("a")
    router = await start_router(make_config(a))
    await router.until_ready(1)
    before = router.app._pool.get("a")

    entry = EndpointEntry(id="a", url=a.url, models=["n"], service="ns/svc", revision="r2")
    write_config(router.config_path, RouterConfig(models=[ModelEntry(name="n")], endpoints=[entry]))
    await until(lambda: router.app._pool.models == ("n",))

    assert router.app._pool.get("a") is before
    assert (before.ready, before.entry) == (True, entry)


async def test_the_age_of_the_configuration_shows_that_its_file_is_gone(start_router, make_config, until):
    router = await start_router(make_config())

    def age_s():
        return router.app._metrics.config_age_s.collect()[0].samples[0].value

    await until(lambda: 0 <= age_s() < 1)
    router.config_path.unlink()
    await until(lambda: age_s() > 1)


def test_flags_become_settings():
    settings = parse_args(
        [
            "--config",
            "f.json",
            "--port",
            "0",
            "--idle-timeout",
            "2.5",
            "--redis-timeout",
            "3",
            "--disable-log-requests",
        ],
        ["env"],
    )

    assert (settings.port, settings.idle_timeout_s, settings.log_requests) == (0, 2.5, False)
    assert settings.redis_timeout_s == 3.0
    assert settings.api_keys == ("env",)
    assert "env" not in repr(settings)


def test_flags_for_a_cluster_become_settings():
    flags = ["--kubernetes", "--release", "r", "--watch-namespace", "a", "--watch-namespace", "b"]

    settings = parse_args([*flags, "--shutdown-delay", "5"])

    assert (settings.config, settings.kubernetes, settings.release) == (None, True, "r")
    assert (settings.watch_namespaces, settings.shutdown_delay_s) == (("a", "b"), 5.0)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ([], "--config"),
        (["--kubernetes"], "--release"),
        (["--kubernetes", "--config", "f"], "--config"),
        (["--kubernetes", "--release", "r", "--watch-namespace", ""], "--watch-namespace"),
        (["--config", "f", "--shutdown-delay", "-1"], "--shutdown-delay"),
    ],
)
def test_one_source_is_needed_and_it_must_be_told_which_release(flags, named, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_args(flags)

    assert caught.value.code == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags", [["--port", "99999"], ["--idle-timeout", "0"], ["--max-body-bytes", "-1"], ["--conf", "x"]]
)
def test_a_wrong_flag_is_named(flags, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_args(["--config", "f", *flags])

    assert caught.value.code == 2
    assert flags[0] in capsys.readouterr().err


def test_the_retry_budget_is_a_share_of_the_requests_and_a_reserve():
    budget = RetryBudget(ratio=0.5, reserve=2)

    first = [budget.take() for _ in range(3)]
    budget.note_request()
    budget.note_request()
    later = [budget.take() for _ in range(2)]

    assert first == [True, True, False]
    assert later == [True, False]
