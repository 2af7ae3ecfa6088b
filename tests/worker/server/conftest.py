"""A small model folder, and workers started as real processes on real sockets."""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

WORKER = (sys.executable, "-m", "quire_worker")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MAX_MODEL_LEN = 2048


class WorkerProcess:
    """A worker, its log, and where it listens. Waits are bounded."""

    def __init__(self, command: Sequence[str], env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}, start_new_session=True
        )
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.base = ""

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stderr:
            for text in stderr:
                with self._changed:
                    self._lines.append(text)
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def log(self) -> str:
        with self._changed:
            return "".join(self._lines)

    def wait_for_log(self, pattern: str, timeout_s: float = 400) -> re.Match[str]:
        """The first match of `pattern` in the log; fails if the worker ends first."""
        with self._changed:
            found = self._changed.wait_for(lambda: re.search(pattern, "".join(self._lines)) or self._ended, timeout_s)
        match = re.search(pattern, self.log)
        assert match is not None, f"no {pattern!r} (found={found}) in the log:\n{self.log}"
        return match

    def wait_until_ready(self) -> "WorkerProcess":
        port = self.wait_for_log(r'"?event"?[:=] ?"?listening"?,? .*port"?[:=] ?(\d+)')[1]
        self.base = f"http://127.0.0.1:{port}"
        self.wait_for_log(r'"?event"?[:=] ?"?ready"?')
        return self

    def wait(self, timeout_s: float = 240) -> int:
        code = self.process.wait(timeout_s)
        self._reader.join(timeout_s)
        return code

    def engine_pid(self) -> int:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        assert len(children) == 1
        return int(children[0])

    @contextlib.contextmanager
    def engine_held(self) -> Iterator[None]:
        """The engine stands still within the block: what is under way stays so, however long the test takes to look at it."""
        engine = self.engine_pid()
        os.kill(engine, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(engine, signal.SIGCONT)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.wait()

    def client(self, **options: Any) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.base}/v1", api_key="none", max_retries=0, timeout=120, **options)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizer, chat template and config.json of a model without weights. Its vocabulary holds all bytes and some words."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog, and hello to the world"] * 4, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|im_end|>", "chat_template": CHAT_TEMPLATE})
    )
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": MAX_MODEL_LEN,
        "eos_token_id": 1,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@contextlib.contextmanager
def launcher(model_dir: Path) -> Iterator[Callable[..., WorkerProcess]]:
    """A function that starts workers with a fake model; they end with the block."""
    with contextlib.ExitStack() as stack:

        def launch(*flags: str, model: Path | None = None, env: dict[str, str] | None = None) -> WorkerProcess:
            worker = WorkerProcess([*WORKER, "--model", str(model or model_dir), "--fake", "--port", "0", *flags], env)
            stack.callback(worker.stop)
            return worker

        yield launch


@pytest.fixture(scope="module")
def launch_in_module(model_dir: Path) -> Iterator[Callable[..., WorkerProcess]]:
    """Starts workers that end with the module: dozens that idle to the end of a run would take the machine's memory."""
    with launcher(model_dir) as launch:
        yield launch


@pytest.fixture
def launch(model_dir: Path) -> Iterator[Callable[..., WorkerProcess]]:
    """Starts workers that end with the test."""
    with launcher(model_dir) as start:
        yield start


@pytest.fixture(scope="module")
def start_real() -> Iterator[Callable[..., WorkerProcess]]:
    """Starts workers that load the given model's weights; they end with the module."""
    with contextlib.ExitStack() as stack:

        def start(model: Path, *flags: str) -> WorkerProcess:
            worker = WorkerProcess([*WORKER, "--model", str(model), "--port", "0", *flags])
            stack.callback(worker.stop)
            return worker

        yield start


@pytest.fixture
def start_command() -> Iterator[Callable[[Sequence[str]], WorkerProcess]]:
    """Starts processes that log as a worker does; they end with the test."""
    with contextlib.ExitStack() as stack:

        def start(command: Sequence[str]) -> WorkerProcess:
            started = WorkerProcess(command)
            stack.callback(started.stop)
            return started

        yield start


@pytest.fixture(scope="session")
def worker(model_dir: Path) -> Iterator[WorkerProcess]:
    """One worker for all tests that leave it as it was."""
    with launcher(model_dir) as launch:
        yield launch("--served-model-name", "tiny", "alias", "--seed", "7").wait_until_ready()


@pytest.fixture
async def client(worker: WorkerProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    async with worker.client() as made:
        yield made


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """For what the SDK would not send. Every request is bounded."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session:
        yield session


@pytest.fixture
def metric(http: aiohttp.ClientSession) -> Callable[..., Any]:
    """Reads one number from /metrics."""

    async def read(worker: WorkerProcess, name: str, **labels: str) -> float:
        async with http.get(f"{worker.base}/metrics") as response:
            text = await response.text()
        for sample in text.splitlines():
            found = re.fullmatch(r"([^{ ]+)(?:\{(.*)\})? (\S+)", sample)
            if found and found[1] == name and all(f'{key}="{value}"' in found[2] for key, value in labels.items()):
                return float(found[3])
        raise AssertionError(f"{name} {labels} is not in /metrics")

    return read


@pytest.fixture
def eventually() -> Callable[..., Any]:
    """Asks again until the answer is the expected one; each question is a round trip, so this does not spin."""

    async def wait(ask: Callable[[], Any], expected: Any, timeout_s: float = 120) -> None:
        seen = None
        try:
            async with asyncio.timeout(timeout_s):
                while (seen := await ask()) != expected:
                    pass
        except TimeoutError:
            raise AssertionError(f"still {seen!r}, expected {expected!r}") from None

    return wait
