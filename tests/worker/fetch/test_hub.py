"""hf:// sources: what is fetched, what is checked, what survives trouble, and what is said when it does not."""

import asyncio
import json
import socket
from pathlib import Path

import pytest

from quire_worker.fetch.errors import FetchError, InterruptedFetchError, Reason
from quire_worker.fetch.progress import Progress
from tests.worker.fetch.conftest import COMMIT, Fault, Fetch, Hub, contents, exists, model, sharded_model, until

SAFETENSORS = "/blobs/model.safetensors"


async def test_a_model_is_fetched_whole_and_described(hub: Hub, fetch: Fetch, dest: Path) -> None:
    files = model()
    hub.publish(files)

    progress = await fetch(uri="hf://acme/tiny", hf_endpoint=hub.url)

    assert contents(dest) == files
    manifest = json.loads((dest / ".quire-manifest.json").read_bytes())
    assert (manifest["uri"], manifest["version"], len(manifest["files"])) == ("hf://acme/tiny", COMMIT, 4)
    total = sum(map(len, files.values()))
    assert (progress.phase, progress.done_bytes, progress.total_bytes) == ("done", total, total)
    assert sorted(path.name for path in dest.parent.iterdir()) == [f".{dest.name}.lease.lock", dest.name]


async def test_only_what_a_worker_reads_is_fetched(hub: Hub, fetch: Fetch, dest: Path) -> None:
    files = sharded_model()
    unwanted = {
        "pytorch_model.bin": b"\x80pickle", "consolidated.safetensors": b"x", "onnx/model.onnx": b"x", "modeling_tiny.py": b"import os",
        ".gitattributes": b"x", "README.md": b"x", "original/params.json": b"{}", "training_args.bin": b"x",
    }  # fmt: skip
    templates = {"additional_chat_templates/tools.jinja": b"{{ tools }}"}
    hub.publish({**files, **templates, **unwanted})

    await fetch(uri="hf://acme/tiny", hf_endpoint=hub.url)

    assert contents(dest) == {**files, **templates}


async def test_a_revision_with_a_slash_is_asked_for_as_one_name(hub: Hub, fetch: Fetch, dest: Path) -> None:
    hub.publish(model(), revision="refs/pr/1")

    await fetch(uri="hf://acme/tiny", revision="refs/pr/1", hf_endpoint=hub.url)

    assert exists(dest)


async def test_a_second_fetch_asks_the_source_nothing(hub: Hub, fetch: Fetch) -> None:
    hub.publish(model())
    await fetch(uri="hf://acme/tiny", hf_endpoint=hub.url)
    hub.seen.clear()

    progress = await fetch(uri="hf://acme/tiny", hf_endpoint=hub.url)

    assert progress.phase == "done"
    assert hub.seen == []


async def test_a_token_goes_to_the_hub_and_to_nobody_it_redirects_to(hub: Hub, fetch: Fetch, dest: Path) -> None:
    hub.publish(model())
    hub.token = "hf_secret"

    await fetch(uri="hf://acme/tiny", hf_endpoint=hub.url, token="hf_secret")

    assert exists(dest)
    assert all(seen.headers["authorization"] == "Bearer hf_secret" for seen in hub.seen)
    assert hub.cdn.seen
    assert all("authorization" not in seen.headers for seen in hub.cdn.seen)


async def test_cut_connections_are_continued_where_they_were_cut(hub: Hub, fetch: Fetch, dest: Path) -> None:
    files = model(3_000_000)
    hub.publish(files)
    hub.cdn.faults[SAFETENSORS] = [Fault(cut_after=1_000_000), Fault(cut_after=500_000)]

    await fetch(uri="hf://acme/tiny", hf_endpoint=hub.url)

    assert contents(dest) == files
    starts = [int(seen.headers["range"][6:-1]) for seen in hub.cdn.requests(SAFETENSORS) if "range" in seen.headers]
    assert len(starts) == 2
    assert 0 < starts[0] <= 1_000_000
    assert starts[0] < starts[1] <= starts[0] + 500_000


async def test_a_server_without_ranges_is_read_from_the_beginning_again(hub: Hub, fetch: Fetch, dest: Path) -> None:
    files = model(1_000_000)
    hub.publish(files)
    hub.cdn.faults[SAFETENSORS] = [Fault(cut_after=600_000), Fault(ignore_range=True)]

    await fetch(uri="hf://acme/tiny", hf_endpoint=hub.url)

    assert contents(dest) == files


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_trouble_of_the_server_is_waited_out(hub: Hub, fetch: Fetch, dest: Path, status: int) -> None:
    files = model()
    hub.publish(files)
    listing = "/api/models/acme/tiny/revision/main"
    hub.faults[listing] = [Fault(status=status), Fault(status=status, headers={"Retry-After": "3"})]
    hub.cdn.faults[SAFETENSORS] = [Fault(status=status)] * 3

    await fetch(uri="hf://acme/tiny", hf_endpoint=hub.url)

    assert contents(dest) == files


async def test_trouble_that_lasts_ends_in_a_failure_that_may_be_tried_again(hub: Hub, fetch: Fetch, dest: Path) -> None:
    hub.publish(model())
    hub.faults["/api/models/acme/tiny/revision/main"] = [Fault(status=503)] * 1000
    progress = Progress()

    with pytest.raises(InterruptedFetchError) as caught:
        await fetch(progress, uri="hf://acme/tiny", hf_endpoint=hub.url, retry_for_s=60)

    assert caught.value.reason is Reason.UNREACHABLE
    assert "HTTP 503" in str(caught.value)
    assert "tried for" in str(caught.value)
    assert "HTTP 503" in progress.trouble
    assert not exists(dest)


async def test_nobody_at_the_address_is_unreachable(fetch: Fetch) -> None:
    with socket.socket() as held:  # nobody else gets the port, and nobody listens on it
        held.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(InterruptedFetchError, match="the network policy and the proxy") as caught:
            await fetch(uri="hf://acme/tiny", hf_endpoint=address, retry_for_s=60)

    assert caught.value.reason is Reason.UNREACHABLE


async def test_bytes_that_differ_are_fetched_once_more(hub: Hub, fetch: Fetch, dest: Path) -> None:
    files = model()
    hub.publish(files)
    hub.cdn.faults[SAFETENSORS] = [Fault(corrupt=True)]
    hub.faults[f"/acme/tiny/resolve/{COMMIT}/config.json"] = [Fault(corrupt=True)]

    await fetch(uri="hf://acme/tiny", hf_endpoint=hub.url)

    assert contents(dest) == files


@pytest.mark.parametrize("kind", ["sha256", "git-sha1"])
async def test_bytes_that_differ_twice_are_a_checksum_mismatch(hub: Hub, fetch: Fetch, dest: Path, kind: str) -> None:
    hub.publish(model())
    if kind == "sha256":
        hub.cdn.faults[SAFETENSORS] = [Fault(corrupt=True)] * 2
    else:
        hub.faults[f"/acme/tiny/resolve/{COMMIT}/tokenizer.json"] = [Fault(corrupt=True)] * 2

    with pytest.raises(FetchError, match=kind) as caught:
        await fetch(uri="hf://acme/tiny", hf_endpoint=hub.url)

    assert caught.value.reason is Reason.CHECKSUM_MISMATCH
    assert not isinstance(caught.value, InterruptedFetchError)
    assert not exists(dest)


async def test_what_had_come_before_the_end_is_kept_for_the_next_start(hub: Hub, fetch: Fetch, dest: Path) -> None:
    files = sharded_model(size=1_000_000)
    hub.publish(files)
    last = "/blobs/model-00003-of-00003.safetensors"
    hub.cdn.faults[last] = [Fault(hold=asyncio.Event())]
    held_back = (len(files["model-00003-of-00003.safetensors"]) + 1) // 2
    all_but_that = sum(map(len, files.values())) - held_back
    progress, partial = Progress(), dest.with_name(f".{dest.name}.partial")
    running = asyncio.create_task(fetch(progress, uri="hf://acme/tiny", hf_endpoint=hub.url, parallel=10))
    # A thread that still gives a whole file its name would do so in the middle of the next fetch.
    await until(lambda: progress.done_bytes == all_but_that and len(list(partial.glob("*.part"))) == 1)
    running.cancel()
    await asyncio.wait([running])
    hub.cdn.seen.clear()

    await fetch(uri="hf://acme/tiny", hf_endpoint=hub.url)

    assert contents(dest) == files
    (again,) = hub.cdn.seen
    assert again.path == last
    assert int(again.headers["range"][6:-1]) >= 400_000


async def test_a_folder_that_was_damaged_is_mended_not_fetched_anew(hub: Hub, fetch: Fetch, dest: Path) -> None:
    files = model()
    hub.publish(files)
    await fetch(uri="hf://acme/tiny", hf_endpoint=hub.url)
    (dest / "tokenizer.json").write_bytes(b"{")
    hub.seen.clear()
    hub.cdn.seen.clear()

    await fetch(uri="hf://acme/tiny", hf_endpoint=hub.url)

    assert contents(dest) == files
    assert hub.cdn.seen == []


@pytest.mark.parametrize(
    ("fault", "token", "reason", "message"),
    [
        (Fault(status=401, headers={"X-Error-Code": "RepoNotFound"}), None, Reason.UNAUTHORIZED, "key HF_TOKEN in spec.model.secretRef"),
        (Fault(status=401), "hf_x", Reason.UNAUTHORIZED, "the token in HF_TOKEN may not read acme/tiny"),
        (Fault(status=403, headers={"X-Error-Code": "GatedRepo"}), "hf_x", Reason.UNAUTHORIZED, "accept the model's terms"),
        (Fault(status=404, headers={"X-Error-Code": "RepoNotFound"}), "hf_x", Reason.NOT_FOUND, "knows no repository acme/tiny"),
        (Fault(status=404, headers={"X-Error-Code": "RevisionNotFound"}), None, Reason.NOT_FOUND, "no revision main; correct"),
        (Fault(status=404), None, Reason.NOT_FOUND, "correct spec.model.uri or revision"),
        (Fault(status=400), None, Reason.UNREACHABLE, "does not understand the request"),
    ],
)  # fmt: skip
async def test_refusals_are_told_at_once_with_the_fix(
    hub: Hub, fetch: Fetch, fault: Fault, token: str | None, reason: Reason, message: str
) -> None:
    hub.faults["/api/models/acme/tiny/revision/main"] = [fault]

    with pytest.raises(FetchError) as caught:
        await fetch(uri="hf://acme/tiny", hf_endpoint=hub.url, token=token)

    assert caught.value.reason is reason
    assert message in str(caught.value)
    assert not isinstance(caught.value, InterruptedFetchError)
    assert "hf_x" not in str(caught.value)
    assert len(hub.seen) == 1


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json": b"{}", "tokenizer.json": b"{}", "pytorch_model.bin": b""}, "weights only as pytorch_model.bin"),
        ({"config.json": b"{}", "tokenizer.json": b"{}", "tiny.gguf": b""}, "weights only as tiny.gguf"),
        ({"config.json": b"{}", "tokenizer.json": b"{}"}, "neither model.safetensors nor model.safetensors.index.json"),
        ({"tokenizer.json": b"{}", "model.safetensors": b"x"}, "has no config.json"),
        ({"config.json": b"{}", "model.safetensors": b"x"}, "has no tokenizer.json; save the model's tokenizer in the fast format"),
        ({**model(), "../../evil.json": b"{}"}, "leads out of the model's folder"),
        ({**model(), "/etc/evil.json": b"{}"}, "leads out of the model's folder"),
        ({**model(), "model.safetensors.index.json": b"{"}, "is corrupt"),
        ({**model(), "model.safetensors.index.json": b'{"weight_map": {"a": "../x.safetensors"}}'}, "leads out of the model's folder"),
        ({**model(), "model.safetensors.index.json": b'{"weight_map": {"a": "sub/x.safetensors"}}'}, "no plain safetensors file"),
        ({**model(), "model.safetensors.index.json": b'{"weight_map": {"a": "x.bin"}}'}, "no plain safetensors file"),
        ({**model(), "model.safetensors.index.json": b'{"weight_map": {"a": "x.safetensors"}}'}, "lacks 1 shards"),
        ({**model(), "model.safetensors": b"<html>not found</html>"}, "model.safetensors"),
    ],
)  # fmt: skip
async def test_what_is_no_loadable_model_is_refused(
    hub: Hub, fetch: Fetch, dest: Path, files: dict[str, bytes], message: str
) -> None:
    hub.publish(files)

    with pytest.raises(FetchError) as caught:
        await fetch(uri="hf://acme/tiny", hf_endpoint=hub.url)

    assert caught.value.reason is Reason.INVALID_MODEL
    assert message in str(caught.value)
    assert not exists(dest)
    assert not exists(dest.parent.parent / "evil.json")


async def test_a_model_larger_than_the_cache_is_refused_before_it_is_fetched(hub: Hub, fetch: Fetch) -> None:
    hub.publish(model(2_000_000))

    with pytest.raises(FetchError, match=r"the model has 1\.9 MiB, and a pod's model cache 1\.0 MiB") as caught:
        await fetch(uri="hf://acme/tiny", hf_endpoint=hub.url, max_bytes=1024 * 1024)

    assert caught.value.reason is Reason.NO_SPACE
    assert hub.cdn.seen == []


async def test_an_answer_that_is_no_hub_is_not_believed(hub: Hub, fetch: Fetch) -> None:
    hub.files["/api/models/acme/tiny/revision/main"] = b"<html>Please log in</html>"

    with pytest.raises(InterruptedFetchError, match="answers, but not as a model hub"):
        await fetch(uri="hf://acme/tiny", hf_endpoint=hub.url, retry_for_s=60)
