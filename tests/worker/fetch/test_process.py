"""quire-fetch as the process that runs in a pod: exit codes, termination message, progress, a kill in the middle."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import aiohttp
import pytest
from cluster.processes import free_ports

from quire_worker.fetch.config import parse_args
from tests.worker.fetch.conftest import Fault, Hub, contents, exists, model, until

SAFETENSORS = "/blobs/model.safetensors"


@pytest.fixture
def termination_log(tmp_path: Path) -> Path:
    """As the kubelet makes it."""
    path = tmp_path / "termination-log"
    path.touch()
    return path


async def start(*args: str | Path, env: Mapping[str, str] | None = None) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "quire_worker.fetch", *map(str, args),
        env={"PYTHONDONTWRITEBYTECODE": "1", "POD_UID": "uid-1", **(env or {})},
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


def read(path: Path) -> str:
    return path.read_text()


async def test_a_fetch_that_was_killed_goes_on_where_it_was(hub: Hub, dest: Path, termination_log: Path) -> None:
    files = model(4_000_000)
    hub.publish(files)
    hub.cdn.faults[SAFETENSORS] = [Fault(hold=asyncio.Event())]
    (port,) = free_ports(1)
    args = ("--uri", "hf://acme/tiny", "--hf-endpoint", hub.url, "--dest", dest, "--progress-port", str(port))
    args += ("--termination-log", termination_log)
    killed = await start(*args)
    part = dest.with_name(f".{dest.name}.partial") / "model.safetensors.part"
    await until(lambda: part.is_file() and part.stat().st_size > 1_900_000)
    async with aiohttp.ClientSession() as http:
        progress = {"done_bytes": 0}
        while progress["done_bytes"] <= 1_900_000:  # told a moment after it is written
            async with http.get(f"http://127.0.0.1:{port}/progress") as answer:
                progress = await answer.json()
    killed.kill()
    assert await killed.wait() == -signal.SIGKILL

    again = await start(*args)

    assert (await again.communicate(), again.returncode)[1] == 0
    assert contents(dest) == files
    assert progress["phase"] == "downloading"
    assert 1_900_000 < progress["done_bytes"] < progress["total_bytes"] == sum(map(len, files.values()))
    assert int(hub.cdn.requests(SAFETENSORS)[1].headers["range"][6:-1]) > 1_900_000
    assert json.loads(read(termination_log)).keys() == {"downloaded_bytes"}


async def test_a_refused_source_ends_with_2_and_says_why_where_kubernetes_looks(
    hub: Hub, dest: Path, termination_log: Path
) -> None:
    hub.token = "right"

    process = await start(
        "--uri", "hf://acme/tiny", "--hf-endpoint", hub.url, "--dest", dest, "--termination-log", termination_log,
        "--progress-port", "0", env={"HF_TOKEN": "hf_wrong"},
    )  # fmt: skip
    _, logged = await process.communicate()

    assert process.returncode == 2
    message = json.loads(read(termination_log))
    assert message["reason"] == "ModelSourceUnauthorized"
    assert "accept the model's terms on the hub, or use another token" in message["message"]
    assert b"hf_wrong" not in logged


async def test_an_ordered_end_leaves_no_lease(hub: Hub, dest: Path) -> None:
    hub.publish(model(1_000_000))
    hub.cdn.faults[SAFETENSORS] = [Fault(hold=asyncio.Event())]
    process = await start("--uri", "hf://acme/tiny", "--hf-endpoint", hub.url, "--dest", dest, "--progress-port", "0")
    await until(lambda: len(hub.cdn.seen) == 1)

    process.terminate()
    await process.communicate()

    assert process.returncode == 1
    assert not exists(dest.with_name(f".{dest.name}.lease"))


def test_torch_is_not_imported() -> None:
    code = "import sys, quire_worker.fetch.__main__; sys.exit('torch' in sys.modules or 'zmq' in sys.modules)"

    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("argv", "environ", "message"),
    [
        (["--uri", "ftp://x/y", "--dest", "/d"], {}, "argument --uri: must begin with hf://, s3://"),
        (["--uri", "hf:x", "--dest", "/d"], {}, "argument --uri: must begin with"),
        (["--uri", "s3://b/p", "--dest", "/d"], {"AWS_ACCESS_KEY_ID": "a"}, "go together"),
        (["--uri", "hf://a/b", "--dest", "/d", "--hf-endpoint", "hub"], {}, "argument --hf-endpoint: must be an http://"),
        (["--uri", "hf://a/b", "--dest", "/d", "--parallel", "0"], {}, "--parallel: 0 must be at least 1"),
    ],
)  # fmt: skip
def test_a_wrong_flag_is_named(
    argv: list[str], environ: dict[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_args(argv, environ)

    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_configuration_shows_no_credentials() -> None:
    environ = {
        "HF_TOKEN": "hf_secret",
        "AWS_ACCESS_KEY_ID": "AKIA",
        "AWS_SECRET_ACCESS_KEY": "s3cret",
        "HTTPS_PROXY": "http://u:pw@p",
    }

    shown = repr(parse_args(["--uri", "hf://a/b", "--dest", "/d"], environ))

    assert not [secret for secret in ("hf_secret", "AKIA", "s3cret", "pw") if secret in shown]
