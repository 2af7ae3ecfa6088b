"""Sources that mean no good, or are broken in ways nobody thinks of: bounded, and told in words."""

import gzip
import io
import json
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp import web

from quire_worker.fetch import archive
from quire_worker.fetch.errors import FetchError, InterruptedFetchError, Reason, TransientError
from quire_worker.fetch.patience import Patience
from quire_worker.fetch.progress import Progress
from quire_worker.fetch.s3 import _xml
from quire_worker.fetch.web_client import _followed
from tests.worker.fetch.conftest import Fault, Fetch, Site, exists, model, serving


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def header(kind: bytes, size: int, name: str = "x") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def extracted(path: Path, data: bytes, max_bytes: int | None = None) -> None:
    path.write_bytes(data)
    archive.extract(path, path.parent, lambda name, size: None, max_bytes)


@pytest.mark.parametrize(
    "kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME], ids=["pax", "global", "name"]
)
def test_a_header_that_would_fill_the_memory_is_refused(tmp_path: Path, kind: bytes) -> None:
    bomb = gzip.compress(header(kind, 4 * 2**30) + bytes(2**20))

    with pytest.raises(FetchError, match="at once") as caught:
        extracted(tmp_path / "x", bomb)

    assert caught.value.reason is Reason.INVALID_MODEL


def test_an_archive_larger_than_the_disk_is_refused_before_it_is_read_through(tmp_path: Path) -> None:
    beyond = shutil.disk_usage(tmp_path).total + 2**30
    bomb = gzip.compress(header(tarfile.REGTYPE, beyond) + bytes(2**20))

    with pytest.raises(FetchError, match="more than the disk"):
        extracted(tmp_path / "x", bomb)


@pytest.mark.parametrize("damage", ["cut", "flipped", "checksum"])
def test_a_damaged_compressed_archive_is_no_defect_of_the_cache(tmp_path: Path, damage: str) -> None:
    good = gzip.compress(tar_of(model()))
    middle = len(good) // 2
    damaged = {
        "cut": good[:middle],
        "flipped": good[:middle] + bytes(byte ^ 255 for byte in good[middle : middle + 64]) + good[middle + 64 :],
        "checksum": good[:-8] + bytes(8),
    }[damage]

    with pytest.raises(FetchError) as caught:
        extracted(tmp_path / "x", damaged)

    assert caught.value.reason is Reason.INVALID_MODEL


def test_an_archive_and_its_content_must_fit_the_pods_cache(tmp_path: Path) -> None:
    data = gzip.compress(tar_of({**model(), "model.safetensors": bytes(1_000_000)}))

    with pytest.raises(FetchError, match=r"take .* bytes") as caught:
        extracted(tmp_path / "x", data, max_bytes=500_000)

    assert caught.value.reason is Reason.NO_SPACE


class EndlessTokenizer(Site):
    """Sends a tokenizer that does not end, and does not say so beforehand."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if not request.path.endswith("tokenizer.json"):
            return await super().handle(request)
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        for _ in range(100):
            await response.write(bytes(2**20))
        return response


async def test_a_file_without_an_end_stops_at_the_pods_cache(fetch: Fetch, dest: Path) -> None:
    other = EndlessTokenizer()
    other.files |= {f"/m/{name}": data for name, data in model().items()}
    async with serving(other):
        with pytest.raises(FetchError, match="sends more than") as caught:
            await fetch(uri=f"{other.url}/m", max_bytes=4 * 2**20)

    left = sum(path.stat().st_size for path in dest.parent.rglob("*") if path.is_file())
    assert caught.value.reason is Reason.NO_SPACE
    assert left < 2**20
    assert not exists(dest)


async def test_a_source_that_asks_to_be_tried_at_once_is_not_stormed() -> None:
    waits: list[float] = []

    async def pass_by(seconds: float) -> None:
        waits.append(seconds)

    async def attempt(progressed: object) -> None:
        raise TransientError("HTTP 503", retry_after_s=0.0)

    patience = Patience(
        window_s=10, clock=lambda: sum(waits), sleep=pass_by, rng=random.Random(1), on_trouble=lambda text: None
    )

    with pytest.raises(InterruptedFetchError):
        await patience.keep_trying(attempt, "x")

    assert min(waits) >= 0.5


async def test_trouble_is_told_while_it_lasts_and_is_over_with_the_first_bytes() -> None:
    told: list[str] = []
    seen: list[str] = []

    async def pass_by(seconds: float) -> None:
        del seconds

    async def attempt(progressed: Callable[[], None]) -> str:
        if len(told) < 2:
            raise TransientError("HTTP 503")
        progressed()
        seen.extend(told)
        progressed()
        return "model"

    patience = Patience(window_s=10, clock=lambda: 0.0, sleep=pass_by, rng=random.Random(1), on_trouble=told.append)

    assert await patience.keep_trying(attempt, "listing") == "model"
    assert seen == ["listing: HTTP 503", "listing: HTTP 503", ""]
    assert told == seen


def test_progress_tells_the_trouble_until_it_is_over_or_another_phase_begins() -> None:
    progress = Progress()

    progress.on_trouble("listing: HTTP 503")
    assert json.loads(progress.as_json())["trouble"] == "listing: HTTP 503"
    progress.on_trouble("")
    assert progress.trouble == ""
    progress.on_trouble("listing: HTTP 503")
    progress.enter("downloading")
    assert progress.trouble == ""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le"])
def test_xml_with_entities_is_none_in_any_encoding(encoding: str) -> None:
    text = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "cccc">]><a>&b;</a>'

    assert _xml(text.encode(encoding)) is None


@pytest.mark.parametrize("location", ["http://[::1", "http://host:99999/", "http://host:x/"])
def test_a_redirect_to_no_address_is_refused_in_words(location: str) -> None:
    with pytest.raises(FetchError, match="no web address"):
        _followed("http://source/x", location)


async def test_a_size_of_thousands_of_digits_counts_as_none(site: Site, fetch: Fetch) -> None:
    site.files |= {f"/m/{name}": data for name, data in model().items()}
    site.faults["/m/config.json"] = [Fault(status=206, headers={"Content-Range": "bytes 0-0/" + "9" * 5000})]

    progress = await fetch(uri=f"{site.url}/m")

    assert progress.phase == "done"
