"""The reason of an end stands in the termination log, whoever knew it, and the exit code is not 0."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quire_worker.last_words import LastWords


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "termination-log"
    path.write_text("of an earlier life")
    return path


def test_a_wrong_folder_is_told(launch: Callable[..., Any], log: Path, tmp_path: Path) -> None:
    worker = launch("--termination-log", str(log), model=tmp_path)

    assert worker.wait() == 2
    assert str(tmp_path / "tokenizer.json") in log.read_text()


async def test_an_engine_that_was_killed_is_told_with_the_usual_cause(launch: Callable[..., Any], log: Path) -> None:
    worker = launch("--termination-log", str(log)).wait_until_ready()

    os.kill(worker.engine_pid(), signal.SIGKILL)

    assert await asyncio.to_thread(worker.wait) == 1
    assert log.read_text() == (  # noqa: ASYNC240
        "the engine process was ended by SIGKILL; out of memory? look at the container's memory limit"
    )


def test_a_wanted_end_leaves_no_reason_and_exits_0(launch: Callable[..., Any], log: Path) -> None:
    worker = launch("--termination-log", str(log)).wait_until_ready()

    worker.process.send_signal(signal.SIGTERM)

    assert worker.wait() == 0
    assert log.read_text() == "of an earlier life"


def test_a_wrong_config_is_told_before_the_engine_is_started(
    start_real: Callable[..., Any], log: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["MambaForCausalLM"], "vocab_size": 10}')

    worker = start_real(tmp_path, "--termination-log", str(log))

    assert worker.wait() == 2
    assert "MambaForCausalLM" in log.read_text()
    assert "event=listening" not in worker.log


def test_only_the_first_reason_is_kept_and_it_is_cut_to_what_is_read(log: Path) -> None:
    words = LastWords(log)

    words.write("cause " + "é" * 4000)
    words.write("consequence")

    assert log.stat().st_size == 4096
    assert log.read_bytes().startswith("cause é".encode())


def test_no_file_is_made_and_no_link_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "victim")

    for name in ("missing", "link", "missing/deeper"):
        LastWords(tmp_path / name).write("a reason")

    assert not (tmp_path / "missing").exists()
    assert (tmp_path / "victim").read_text() == "precious"
