"""http(s):// sources: folders by known names, and archives."""

import io
import tarfile
from pathlib import Path

import pytest

from quire_worker.fetch.errors import FetchError, Reason
from tests.worker.fetch.conftest import Fault, Fetch, Site, contents, exists, model, sharded_model


def put(site: Site, files: dict[str, bytes], folder: str = "/m") -> None:
    site.files |= {f"{folder}/{name}": data for name, data in files.items()}


def tar_of(files: dict[str, bytes], mode: str = "w:gz", extra: tuple[tarfile.TarInfo, ...] = ()) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for info in extra:
            tar.addfile(info)
    return buffer.getvalue()


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("files", [model(), sharded_model()], ids=["one file", "shards"])
async def test_a_folder_is_fetched_by_known_names(
    site: Site, fetch: Fetch, dest: Path, files: dict[str, bytes]
) -> None:
    put(site, files)

    await fetch(uri=f"{site.url}/m/")

    assert contents(dest) == files


async def test_a_token_is_sent(site: Site, fetch: Fetch, dest: Path) -> None:
    put(site, model())
    site.token = "t0ken"

    await fetch(uri=f"{site.url}/m", token="t0ken")

    assert exists(dest)


async def test_a_refused_token_names_the_secret(site: Site, fetch: Fetch) -> None:
    site.token = "t0ken"

    with pytest.raises(FetchError, match=r"key TOKEN in spec\.model\.secretRef") as caught:
        await fetch(uri=f"{site.url}/m")

    assert caught.value.reason is Reason.UNAUTHORIZED


async def test_an_empty_place_is_not_found(site: Site, fetch: Fetch) -> None:
    with pytest.raises(FetchError, match=r"has no config\.json; name a model's folder, or an archive") as caught:
        await fetch(uri=f"{site.url}/m")

    assert caught.value.reason is Reason.NOT_FOUND


async def test_a_file_that_changed_between_two_parts_is_begun_anew(site: Site, fetch: Fetch, dest: Path) -> None:
    old, new = model(1_000_000), model(1_000_001)
    put(site, new)
    dest.parent.mkdir()
    partial = dest.with_name(f".{dest.name}.partial")
    partial.mkdir()
    (partial / "model.safetensors.part").write_bytes(old["model.safetensors"][:500_000])
    (partial / "model.safetensors.etag").write_text('"of another version"')

    await fetch(uri=f"{site.url}/m")

    assert contents(dest) == new


async def test_what_cannot_be_told_apart_is_not_continued(site: Site, fetch: Fetch, dest: Path) -> None:
    files = model(1_000_000)
    put(site, files)
    site.etags["/m/model.safetensors"] = None
    site.faults["/m/model.safetensors"] = [Fault(), Fault(cut_after=500_000)]

    await fetch(uri=f"{site.url}/m")

    assert contents(dest) == files
    assert [seen.headers.get("range") for seen in site.requests("/m/model.safetensors")] == ["bytes=0-0", None, None]


@pytest.mark.parametrize(("suffix", "mode"), [("tar", "w"), ("tar.gz", "w:gz"), ("tgz", "w:gz")])
@pytest.mark.parametrize("folder", ["", "tiny/", "./a/b/"])
async def test_an_archive_is_unpacked(
    site: Site, fetch: Fetch, dest: Path, suffix: str, mode: str, folder: str
) -> None:
    files = model()
    site.files[f"/x.{suffix}"] = tar_of({f"{folder}{name}": data for name, data in files.items()}, mode)

    await fetch(uri=f"{site.url}/x.{suffix}?signature=abc")

    assert contents(dest) == files


async def test_an_archive_that_was_cut_is_continued(site: Site, fetch: Fetch, dest: Path) -> None:
    files = model(500_000)
    site.files["/x.tar"] = tar_of(files, "w")
    site.faults["/x.tar"] = [Fault(), Fault(cut_after=300_000)]

    await fetch(uri=f"{site.url}/x.tar")

    assert contents(dest) == files
    assert "range" in site.seen[-1].headers


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (tar_of({**model(), "../evil.json": b"{}"}), "leads out of the model's folder"),
        (tar_of({**model(), "a/../../evil.json": b"{}"}), "leads out of the model's folder"),
        (tar_of({**model(), "/evil.json": b"{}"}), "leads out of the model's folder"),
        (tar_of(model(), extra=(link("evil.json", "/etc/passwd", tarfile.SYMTYPE),)), "a link or a device"),
        (tar_of(model(), extra=(link("evil.json", "config.json", tarfile.LNKTYPE),)), "a link or a device"),
        (tar_of(model(), extra=(link("evil", "", tarfile.CHRTYPE),)), "a link or a device"),
        (tar_of({"a.txt": b"x"}), "has no config.json"),
        (b"this is no archive", "the archive cannot be read"),
        (tar_of(model(), "w")[:200_000], "archive"),
    ],
)
async def test_a_hostile_or_broken_archive_is_refused(
    site: Site, fetch: Fetch, dest: Path, archive: bytes, message: str
) -> None:
    site.files["/x.tar.gz"] = archive

    with pytest.raises(FetchError, match=message) as caught:
        await fetch(uri=f"{site.url}/x.tar.gz")

    assert caught.value.reason is Reason.INVALID_MODEL
    assert not exists(dest)
    assert not list(dest.parent.parent.rglob("evil*"))


async def test_a_folder_with_a_query_is_refused(site: Site, fetch: Fetch) -> None:
    with pytest.raises(FetchError, match="a folder's address has no query") as caught:
        await fetch(uri=f"{site.url}/m?token=secret")

    assert "secret" not in str(caught.value)
