"""A cache with a bound: who goes, who stays, and what is left when a process is killed on the way. Real files, locks and processes."""

import asyncio
import fcntl
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from quire_contract.names import EXIT_MODEL_GONE
from quire_worker.fetch.cache import KEPT_S, ModelCache
from quire_worker.fetch.errors import FetchError, InterruptedFetchError, Reason
from quire_worker.fetch.store import FileRecord, Manifest
from quire_worker.models.cached_folder import MANIFEST_NAME, ModelGoneError, in_use
from tests.worker.fetch.conftest import Fault, Fetch, Hub, contents, exists, model, until

DEMO = Path(__file__).parents[3] / "examples" / "models" / "quire-demo"
LONG_S = 10 * KEPT_S
SAFETENSORS = "/blobs/model.safetensors"
Put = Callable[..., Path]


@pytest.fixture
def cache(dest: Path) -> Path:
    """The folder of all models."""
    dest.parent.mkdir()
    return dest.parent


@pytest.fixture
def put(cache: Path) -> Put:
    """Makes a model in the cache, last used so long ago."""

    def make(key: str, *, ago_s: float = LONG_S, files: dict[str, bytes] | None = None, size: int = 100_000) -> Path:
        folder, content = cache / key, files or {"x": bytes(size)}
        folder.mkdir()
        for name, data in content.items():
            (folder / name).write_bytes(data)
        records = {name: FileRecord(size=len(data), sha256="0") for name, data in content.items()}
        manifest = Manifest(uri=f"hf://acme/{key}", files=records)
        (folder / MANIFEST_NAME).write_bytes(msgspec.json.encode(manifest))
        age(folder / MANIFEST_NAME, ago_s)
        return folder

    return make


def age(path: Path, ago_s: float) -> None:
    """As if it had been written so long ago."""
    then_s = path.stat().st_mtime - ago_s
    os.utime(path, (then_s, then_s))


def models(cache: Path) -> list[str]:
    """Names of the folders that a worker could be given."""
    return sorted(path.name for path in cache.iterdir() if path.is_dir() and not path.name.startswith("."))


def evicted(cache: Path) -> list[Path]:
    """Folders that are being deleted, or that somebody left half deleted."""
    return list(cache.glob(".*.evicted-*"))


def is_locked(folder: Path) -> bool:
    """Whether somebody reads it."""
    with (folder / MANIFEST_NAME).open("rb+") as manifest:
        try:
            fcntl.flock(manifest, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def room(cache: Path, max_bytes: int) -> ModelCache:
    (cache / ".new.partial").mkdir(exist_ok=True)
    return ModelCache(cache, own="new", max_bytes=max_bytes)


@asynccontextmanager
async def process(module: str, *arguments: object) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process of ours; killed at the end if it still runs."""
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", module, *map(str, arguments),
        env={"PYTHONDONTWRITEBYTECODE": "1", "POD_UID": "uid-1"}, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.communicate()


def test_least_recently_used_models_go_and_no_more_of_them_than_must(cache: Path, put: Put) -> None:
    for key, ago_s in (("middle", 3 * LONG_S), ("oldest", 4 * LONG_S), ("newest", 2 * LONG_S)):
        put(key, ago_s=ago_s)

    room(cache, 300_000).make_room(100_000, 100_000)

    assert models(cache) == ["middle", "newest"]
    assert evicted(cache) == []


def test_what_fits_beside_the_others_deletes_nothing_and_no_bound_is_none(cache: Path, put: Put) -> None:
    put("a")

    room(cache, 200_000).make_room(100_000, 100_000)
    ModelCache(cache, own="new").make_room(2**60, 2**60)

    assert models(cache) == ["a"]


async def test_a_fetch_makes_room_for_itself_and_is_the_last_used_then(
    hub: Hub, fetch: Fetch, dest: Path, cache: Path, put: Put
) -> None:
    files = model(400_000)
    hub.publish(files)
    put("older", size=300_000, ago_s=2 * LONG_S)
    put("old", size=300_000)

    await fetch(uri="hf://acme/tiny", hf_endpoint=hub.url, cache_bytes=800_000)

    assert models(cache) == sorted([dest.name, "old"])
    assert contents(dest) == files


async def test_to_find_a_model_there_is_to_use_it(hub: Hub, fetch: Fetch, dest: Path) -> None:
    hub.publish(model())
    await fetch(uri="hf://acme/tiny", hf_endpoint=hub.url)
    age(dest / MANIFEST_NAME, LONG_S)
    then_s = (dest / MANIFEST_NAME).stat().st_mtime

    await fetch(uri="hf://acme/tiny", hf_endpoint=hub.url)

    assert (dest / MANIFEST_NAME).stat().st_mtime > then_s + LONG_S / 2


def test_a_model_that_was_used_a_moment_ago_stays_for_its_worker_may_not_have_begun(cache: Path, put: Put) -> None:
    put("young", ago_s=KEPT_S / 2)

    with pytest.raises(InterruptedFetchError, match=r"within 15 minutes, have .* raise models.cache.maxSize") as caught:
        room(cache, 150_000).make_room(100_000, 100_000)

    assert caught.value.reason is Reason.NO_SPACE
    assert models(cache) == ["young"]


def test_a_model_that_is_larger_than_the_cache_costs_no_other_its_place(cache: Path, put: Put) -> None:
    put("old")

    with pytest.raises(FetchError, match=r"the model cache may hold 0\.2 MiB; raise models\.cache\.maxSize") as caught:
        room(cache, 200_000).make_room(200_001, 200_001)

    assert not isinstance(caught.value, InterruptedFetchError)
    assert models(cache) == ["old"]


async def test_what_a_worker_process_reads_stays_until_the_process_is_dead(
    hub: Hub, dest: Path, cache: Path, put: Put
) -> None:
    hub.publish(model(400_000))
    used = put("used", files={path.name: path.read_bytes() for path in DEMO.iterdir() if path.is_file()})
    size = sum(map(len, contents(used).values()))
    fetching = ("--uri", "hf://acme/tiny", "--hf-endpoint", hub.url, "--dest", dest, "--progress-port", 0)
    fetching += ("--cache-bytes", size + 10_000)

    async with process("quire_worker", "--fake", "--model", used, "--port", 0) as worker:
        await until(lambda: is_locked(used))
        async with process("quire_worker.fetch", *fetching) as refused:
            _, told = await refused.communicate()
        kept = (refused.returncode, models(cache), contents(used).keys() >= {"config.json", "model.safetensors"})
        worker.send_signal(signal.SIGKILL)
        await worker.wait()
    await until(lambda: not is_locked(used))
    seen_s = (used / MANIFEST_NAME).stat().st_mtime
    age(used / MANIFEST_NAME, LONG_S)
    async with process("quire_worker.fetch", *fetching) as again:
        await again.communicate()

    assert kept == (1, ["used"], True)
    assert b"models that are used" in told
    assert seen_s > (dest / MANIFEST_NAME).stat().st_mtime - KEPT_S, "that it was read then is its last use"
    assert (again.returncode, models(cache)) == (0, [dest.name])


async def test_a_deleter_that_is_killed_leaves_a_model_whole_or_not_at_all_and_the_next_one_tidies_up(
    hub: Hub, dest: Path, cache: Path, put: Put
) -> None:
    hub.publish(model(400_000))
    files = {f"{number}.json": b"x" * 100 for number in range(3000)}
    old = put("old", files=files)
    fetching = ("--uri", "hf://acme/tiny", "--hf-endpoint", hub.url, "--dest", dest, "--progress-port", 0)
    fetching += ("--cache-bytes", 500_000)

    async with process("quire_worker.fetch", *fetching) as killed:
        await until(lambda: not exists(old))
        killed.send_signal(signal.SIGKILL)
        await killed.wait()
    left = models(cache)
    async with process("quire_worker.fetch", *fetching) as again:
        await again.communicate()

    assert "old" not in left
    assert (again.returncode, models(cache), evicted(cache)) == (0, [dest.name], [])


async def test_two_fetches_at_once_do_not_both_take_the_last_room(hub: Hub, fetch: Fetch, cache: Path) -> None:
    hub.publish(model(1_000_000))
    hold = asyncio.Event()
    hub.cdn.faults[SAFETENSORS] = [Fault(hold=hold)]
    settings = {"uri": "hf://acme/tiny", "hf_endpoint": hub.url, "cache_bytes": 1_500_000}
    first = asyncio.create_task(fetch(**settings, dest=cache / "first"))
    await until(lambda: bool(hub.cdn.seen))

    with pytest.raises(InterruptedFetchError, match="models that are used"):
        await fetch(**settings, dest=cache / "second")
    hold.set()
    await first

    assert models(cache) == ["first"]


def test_the_rest_of_a_fetch_that_nobody_goes_on_with_goes_and_one_under_way_stays(cache: Path) -> None:
    for key in ("left", "leased"):
        (cache / f".{key}.partial").mkdir()
        (cache / f".{key}.partial" / "x.part").write_bytes(bytes(100_000))
        age(cache / f".{key}.partial" / "x.part", LONG_S)
        age(cache / f".{key}.partial", LONG_S)
    (cache / ".leased.lease").write_bytes(b"")

    room(cache, 200_000).make_room(100_000, 100_000)

    assert sorted(path.name for path in cache.glob(".*.partial")) == [".leased.partial", ".new.partial"]


def test_a_folder_that_no_fetcher_made_is_neither_counted_nor_deleted(cache: Path, tmp_path: Path) -> None:
    (cache / "mine").mkdir()
    (cache / "mine" / "data").write_bytes(bytes(500_000))
    (cache / "link").symlink_to(tmp_path)

    room(cache, 100_000).make_room(100_000, 100_000)

    assert exists(cache / "mine" / "data")
    assert exists(cache / "link")


def test_who_opens_a_model_that_goes_at_that_moment_is_told(cache: Path, put: Put) -> None:
    folder = put("old")
    (cache / ".old.lease.lock").touch()
    room(cache, 100_000).make_room(100_000, 100_000)

    with pytest.raises(ModelGoneError, match="must be fetched anew"), in_use(folder):
        pass


def test_readers_share_a_model_and_a_folder_of_no_cache_is_not_locked(put: Put, tmp_path: Path) -> None:
    folder, plain = put("old"), tmp_path / "plain"
    plain.mkdir()

    with in_use(folder), in_use(folder), in_use(plain), in_use(tmp_path / "nothing"):
        assert is_locked(folder)
    assert not is_locked(folder)
    assert list(plain.iterdir()) == []


async def test_a_worker_whose_model_was_deleted_says_so_with_an_exit_code_of_its_own(cache: Path, put: Put) -> None:
    folder = put("gone")
    (cache / ".gone.lease.lock").touch()
    shutil.rmtree(folder)

    async with process("quire_worker", "--model", folder, "--port", 0) as worker:
        _, told = await worker.communicate()

    assert worker.returncode == EXIT_MODEL_GONE
    assert b"it must be fetched anew" in told
