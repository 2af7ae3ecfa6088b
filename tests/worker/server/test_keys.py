"""Key files: hashed or plain, read again when they change, and never worse than before when they are broken."""

import asyncio
import hashlib
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from quire_worker.errors import ConfigError
from quire_worker.server.keys import KeyFile, Keys, key_line

BODY = {"model": "tiny", "prompt": "the quick brown fox jumps over the lazy dog " * 3, "max_tokens": 2}


def file_with(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "keys"
    path.write_text(text)
    return path


def test_hashed_and_plain_keys_open_and_comments_do_not(tmp_path: Path) -> None:
    path = file_with(tmp_path, f"# of the teams\n\n{key_line('team-a', 'alpha')}\n  plain-key  \n")

    keys = Keys(["from-flag"], KeyFile(path))

    found = {
        key: keys.find(key) is not None for key in ("alpha", "plain-key", "from-flag", "beta", "", "# of the teams")
    }
    assert found == {
        "alpha": True,
        "plain-key": True,
        "from-flag": True,
        "beta": False,
        "": False,
        "# of the teams": False,
    }
    assert keys.find(None) is None
    assert "alpha" not in repr(vars(keys))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no key"),
        ("# nothing\n", "holds no key"),
        ("good\nteam:abc123\n", "line 2: is neither NAME:SHA256HEX"),
        ("a key with spaces\n", "line 1"),
        ("schlüssel\n", "not ASCII"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_by_line_and_never_quoted(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        KeyFile(file_with(tmp_path, text))

    assert "abc123" not in str(refused.value)
    assert "spaces\n" not in str(refused.value)


def test_a_missing_file_ends_the_worker_with_the_flag(launch: Callable[..., Any], tmp_path: Path) -> None:
    worker = launch("--api-key-file", str(tmp_path / "none"))

    assert worker.wait() == 2
    assert f"--api-key-file: cannot read {tmp_path / 'none'}: No such file" in worker.log


async def status(http: aiohttp.ClientSession, worker: Any, **headers: str) -> int:
    async with http.get(f"{worker.base}/v1/models", headers={k.replace("_", "-"): v for k, v in headers.items()}) as r:
        return r.status


async def test_a_changed_file_counts_without_a_restart_and_a_broken_one_does_not(
    http: aiohttp.ClientSession, launch: Callable[..., Any], tmp_path: Path, eventually: Any
) -> None:
    path = file_with(tmp_path, "old-key\n")
    worker = launch("--api-key-file", str(path)).wait_until_ready()
    before = [await status(http, worker, Authorization=f"Bearer {key}") for key in ("old-key", "new-key")]

    path.write_text(key_line("fresh", "new-key"))
    await eventually(lambda: status(http, worker, Authorization="Bearer new-key"), 200)
    revoked = await status(http, worker, Authorization="Bearer old-key")
    path.write_text("no: key")
    worker.process.send_signal(signal.SIGHUP)
    await asyncio.to_thread(worker.wait_for_log, "API keys stay as they were")
    kept = await status(http, worker, Authorization="Bearer new-key")

    assert before == [200, 401]
    assert revoked == 401
    assert kept == 200
    assert "new-key" not in worker.log


async def test_keys_come_as_bearer_or_as_x_api_key(http: aiohttp.ClientSession, launch: Callable[..., Any]) -> None:
    worker = launch("--api-key", "one-key").wait_until_ready()

    seen = [
        await status(http, worker, x_api_key="one-key"),
        await status(http, worker, Authorization="Bearer one-key"),
        await status(http, worker, Authorization="Bearer other", x_api_key="one-key"),
        await status(http, worker, x_api_key="other"),
        await status(http, worker),
    ]

    assert seen == [200, 200, 200, 401, 401]


async def cached(http: aiohttp.ClientSession, worker: Any, key: str, **fields: Any) -> int:
    headers = {"Authorization": f"Bearer {key}"}
    async with http.post(f"{worker.base}/v1/completions", json={**BODY, **fields}, headers=headers) as response:
        usage = (await response.json())["usage"]
    return int(usage["prompt_tokens_details"]["cached_tokens"])


async def test_two_keys_never_share_cached_prefixes_unless_asked_to(
    http: aiohttp.ClientSession, launch: Callable[..., Any]
) -> None:
    keys = ("--served-model-name", "tiny", "--api-key", "first", "second")
    apart = launch(*keys).wait_until_ready()
    shared = launch(*keys, "--share-prefix-cache").wait_until_ready()

    of_apart = [await cached(http, apart, key) for key in ("first", "second", "first", "second")]
    salted = [await cached(http, apart, "first", cache_salt=salt) for salt in ("a", "b", "a")]
    of_shared = [await cached(http, shared, key) for key in ("first", "second")]

    assert of_apart[:2] == [0, 0]
    assert min(of_apart[2:]) > 0
    assert salted[:2] == [0, 0]
    assert salted[2] > 0
    assert of_shared[0] == 0
    assert of_shared[1] > 0


def test_a_line_for_the_file_is_made_of_standard_input(tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "quire_worker", "hash-key", "team-a"], input="alpha\n", capture_output=True, text=True,
        check=True, timeout=600,
    )  # fmt: skip

    assert made.stdout == f"team-a:{hashlib.sha256(b'alpha').hexdigest()}\n"
    assert Keys([], KeyFile(file_with(tmp_path, made.stdout))).find("alpha") is not None


def test_a_name_that_cannot_stand_in_the_file_is_refused() -> None:
    with pytest.raises(ConfigError, match="A-Z"):
        key_line("a:b", "alpha")
