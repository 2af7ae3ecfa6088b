"""The cache between pods: one fetches while the others wait, a dead one is taken over from, and a disk that refuses is told."""

import asyncio
import errno
import json
from pathlib import Path
from typing import Any

import pytest

from quire_worker.fetch.errors import FetchError, InterruptedFetchError, Reason
from quire_worker.fetch.fetcher import one_of
from quire_worker.fetch.lease import BEAT_S, STALE_S, Lease
from quire_worker.fetch.part_file import disk_error
from quire_worker.fetch.progress import Progress
from quire_worker.fetch.store import FileRecord, ModelStore
from tests.worker.fetch.conftest import Fault, Fetch, Hub, contents, model, until

SAFETENSORS = "/blobs/model.safetensors"


class Time:
    """A clock that moves when somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def clock(self) -> float:
        return self.now_s

    async def pass_by(self, seconds: float) -> None:
        self.now_s += seconds
        await asyncio.sleep(0)


class SteppedTime:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.sleepers: list[tuple[float, asyncio.Event]] = []

    def clock(self) -> float:
        return self.now_s

    async def pass_by(self, seconds: float) -> None:
        event = asyncio.Event()
        self.sleepers.append((self.now_s + seconds, event))
        await event.wait()

    def advance(self, seconds: float) -> None:
        self.now_s += seconds
        for at_s, event in self.sleepers:
            if at_s <= self.now_s:
                event.set()
        self.sleepers = [(at_s, event) for at_s, event in self.sleepers if at_s > self.now_s]


def lease(path: Path, time: Time | SteppedTime, holder: str) -> Lease:
    return Lease(path, holder=holder, pod=f"pod-{holder}", clock=time.clock, sleep=time.pass_by)


def ignore(text: str) -> None:
    del text


async def test_two_pods_on_one_cache_fetch_once(hub: Hub, fetch: Fetch, dest: Path) -> None:
    files = model(1_000_000)
    hub.publish(files)
    hold = asyncio.Event()
    hub.cdn.faults[SAFETENSORS] = [Fault(hold=hold)]
    settings: dict[str, Any] = {"uri": "hf://acme/tiny", "hf_endpoint": hub.url, "speed": 1}
    first = asyncio.create_task(fetch(**settings, pod="first"))
    await until(lambda: len(hub.cdn.seen) == 1)
    waiting = Progress()
    second = asyncio.create_task(fetch(waiting, **settings, pod="second"))
    await until(lambda: waiting.message == "pod first fetches the same model")

    hold.set()
    await asyncio.gather(first, second)

    assert contents(dest) == files
    assert len(hub.cdn.seen) == 1
    assert waiting.phase == "done"


async def test_a_living_holder_is_waited_for_however_long_it_takes(tmp_path: Path) -> None:
    time, path = SteppedTime(), tmp_path / "l"
    holder, waiter = lease(path, time, "a"), lease(path, time, "b")
    assert await holder.acquire(lambda: False, ignore)
    done = False
    async with holder.kept():
        waiting = asyncio.create_task(waiter.acquire(lambda: done, ignore))
        for _ in range(10 * int(STALE_S / BEAT_S)):
            before = path.read_bytes()
            await until(lambda: len(time.sleepers) == 2)
            time.advance(BEAT_S)
            await until(lambda before=before: path.read_bytes() != before)  # type: ignore[misc]
        done = True
        await until(lambda: len(time.sleepers) == 2)
        time.advance(BEAT_S)
        mine = await waiting

    assert not mine
    assert time.now_s > 10 * STALE_S


async def test_a_dead_holder_is_taken_over_from_after_a_while(tmp_path: Path) -> None:
    time = Time()
    assert await lease(tmp_path / "l", time, "dead").acquire(lambda: False, ignore)

    mine = await lease(tmp_path / "l", time, "b").acquire(lambda: False, ignore)

    assert mine
    assert STALE_S <= time.now_s < STALE_S + 5


async def test_a_restarted_container_goes_on_at_once(tmp_path: Path) -> None:
    time = Time()
    assert await lease(tmp_path / "l", time, "uid-1").acquire(lambda: False, ignore)

    mine = await lease(tmp_path / "l", time, "uid-1").acquire(lambda: False, ignore)

    assert mine
    assert time.now_s == 0


async def test_a_holder_that_was_taken_over_from_stops(tmp_path: Path) -> None:
    time = Time()
    slow = lease(tmp_path / "l", time, "slow")
    assert await slow.acquire(lambda: False, ignore)
    (tmp_path / "l").write_bytes(b'["another","pod-another",1]')

    with pytest.raises(ExceptionGroup) as caught:
        async with slow.kept():
            await asyncio.Event().wait()

    assert caught.group_contains(InterruptedFetchError)
    assert (tmp_path / "l").read_bytes() == b'["another","pod-another",1]'


async def test_an_unreadable_lease_is_a_dead_one(tmp_path: Path) -> None:
    (tmp_path / "l").write_bytes(b"\xff\x00")
    time = Time()

    assert await lease(tmp_path / "l", time, "b").acquire(lambda: False, ignore)
    assert time.now_s >= STALE_S


async def test_a_cache_that_cannot_be_written_is_told(hub: Hub, fetch: Fetch, dest: Path) -> None:
    hub.publish(model())
    dest.parent.parent.mkdir(exist_ok=True)
    dest.parent.write_text("a file where the cache should be")

    with pytest.raises(FetchError, match="look at the model cache's volume") as caught:
        await fetch(uri="hf://acme/tiny", hf_endpoint=hub.url)

    assert caught.value.reason is Reason.CACHE_UNUSABLE


@pytest.mark.parametrize(
    ("number", "reason", "message"),
    [
        (errno.ENOSPC, Reason.NO_SPACE, "enlarge it, or remove models"),
        (errno.EDQUOT, Reason.NO_SPACE, "enlarge it, or remove models"),
        (errno.EACCES, Reason.CACHE_UNUSABLE, "must be writable for user"),
        (errno.EROFS, Reason.CACHE_UNUSABLE, "must be writable for user"),
        (errno.EIO, Reason.CACHE_UNUSABLE, "look at the model cache's volume"),
    ],
)
def test_a_disk_that_refuses_is_told_with_the_fix(number: int, reason: Reason, message: str) -> None:
    error = disk_error(OSError(number, "as the system says"), Path("/cache"))

    assert error.reason is reason
    assert message in str(error)


@pytest.mark.parametrize(
    ("errors", "reason"),
    [
        ([InterruptedFetchError(Reason.UNREACHABLE, "x"), FetchError(Reason.UNAUTHORIZED, "x")], Reason.UNAUTHORIZED),
        ([InterruptedFetchError(Reason.UNREACHABLE, "x"), OSError(errno.ENOSPC, "x")], Reason.NO_SPACE),
        ([ExceptionGroup("", [OSError(errno.ENOSPC, "x")]), FetchError(Reason.NOT_FOUND, "x")], Reason.NOT_FOUND),
        ([InterruptedFetchError(Reason.UNREACHABLE, "x")], Reason.UNREACHABLE),
    ],
)
def test_of_several_errors_at_once_the_one_is_told_that_a_person_must_mend(
    errors: list[Exception], reason: Reason
) -> None:
    told = one_of(ExceptionGroup("", errors), Path("/cache"))

    assert isinstance(told, FetchError)
    assert told.reason is reason


def test_a_folder_of_another_source_is_not_taken_for_this_one(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "k", uri="hf://a/b", revision="v1")
    store.begin()
    (store.partial / "x").write_bytes(b"abc")
    store.add("x", FileRecord(size=3, sha256="0", identity="etag:1"))
    store.finish(["x"], None)

    assert store.is_complete()
    assert not ModelStore(tmp_path / "k", uri="hf://a/b", revision="v2").is_complete()


def test_what_is_left_of_an_earlier_version_goes_when_the_folder_is_finished(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "k", uri="hf://a/b", revision=None)
    store.begin()
    for name in ("x", "old.safetensors", "old.safetensors.part", "y.etag"):
        (store.partial / name).write_bytes(b"abc")
    (store.partial / "sub").mkdir()
    (store.partial / "sub" / "z").write_bytes(b"")
    store.add("x", FileRecord(size=3, sha256="0", identity="etag:1"))

    store.finish(["x"], "c0ffee")

    assert sorted(path.name for path in (tmp_path / "k").iterdir()) == [".quire-manifest.json", "x"]
    assert json.loads((tmp_path / "k" / ".quire-manifest.json").read_text())["version"] == "c0ffee"


def test_a_disk_with_too_little_space_is_told_before_anything_is_written(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "k", uri="hf://a/b", revision=None)
    store.begin()

    with pytest.raises(FetchError, match="GiB free; enlarge it, or remove models") as caught:
        store.check_space(2**60, 2**60, None)

    assert caught.value.reason is Reason.NO_SPACE
