"""What users of other servers complain of most, and goes right here: the cases that no other test shows.

docs/known-complaints.md lists the complaints with their tests;
the numbers below are its rows. Rows after the fifteenth are about scaling and are tested elsewhere.
"""

import asyncio
import re
import resource
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from quire_worker.models.safetensors_reader import open_checkpoint

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "examples" / "models" / "quire-demo"
PAGE = ROOT / "docs" / "known-complaints.md"
DEMO_WORKER = (
    sys.executable, "-m", "quire_worker", "--model", str(DEMO), "--served-model-name", "tiny", "--port", "0",
    "--device", "cpu", "--compute-threads", "1",
)  # fmt: skip
TEXT: dict[str, Any] = {"model": "tiny", "prompt": "the fox", "max_tokens": 4, "temperature": 0, "ignore_eos": True}
SLOW = ("--fake-decode-s-per-step", "0.05")


async def post(http: aiohttp.ClientSession, worker: Any, route: str = "/v1/completions", **changes: Any) -> Any:
    """(status, headers, body) of a request."""
    async with http.post(f"{worker.base}{route}", json={**TEXT, **changes}) as response:
        return response.status, response.headers, await response.json()


def fact(pid: int | str, file: str, pattern: str) -> int:
    """A number that the system tells of a process."""
    found = re.search(pattern, Path(f"/proc/{pid}/{file}").read_text())
    assert found is not None
    return int(found[1])


# ---- 1 and 2: starting


async def test_a_model_is_served_without_being_compiled_and_its_start_is_timed_by_phase(
    http: aiohttp.ClientSession, start_command: Callable[..., Any], metric: Any
) -> None:
    worker = start_command(["env", "PYTHONPROFILEIMPORTTIME=1", *DEMO_WORKER]).wait_until_ready()

    answered, _, _ = await post(http, worker)

    assert answered == 200
    imported = set(re.findall(r"^import time: .*\| +([\w.]+)$", worker.log, re.MULTILINE))
    assert {"torch", "quire_worker.execution.runner"} <= imported
    assert {name for name in imported if name.startswith(("torch._dynamo", "torch._inductor"))} == set()
    for phase in ("tokenizer", "config", "weights", "kv_cache", "warm_up", "total"):
        assert await metric(worker, "quire_worker_startup_seconds", phase=phase) > 0


def test_every_byte_of_the_weights_is_read_once_and_none_is_mapped(tmp_path: Path) -> None:
    folder = Path(
        shutil.copytree(DEMO, tmp_path / "model")
    )  # transformers, an oracle in this process, maps the demo model itself
    checkpoint = open_checkpoint(folder)
    size = sum(entry.size_bytes for entry in checkpoint.entries.values())
    before = fact("self", "io", r"rchar: (\d+)")

    mapped = [
        str(folder) in Path("/proc/self/maps").read_text()
        for _, tensor in checkpoint.stream(set(checkpoint.entries))
        if tensor.numel() > 100_000
    ]
    after = fact("self", "io", r"rchar: (\d+)")

    maps = len(mapped) * 1_000_000  # reading them counts too
    assert size <= after - before <= size + maps
    assert mapped and not any(mapped)


# ---- 3 and 7: health, and a device that is lost


async def test_a_long_prompt_makes_nobody_believe_that_the_engine_hangs(
    http: aiohttp.ClientSession, launch: Callable[..., Any]
) -> None:
    chunks = ("--max-num-seqs", "8", "--max-num-batched-tokens", "32", "--fake-prefill-s-per-token", "0.003")
    worker = launch("--served-model-name", "tiny", *chunks, "--health-timeout", "3").wait_until_ready()
    answers: set[int] = set()

    computing = asyncio.create_task(post(http, worker, prompt=[70] * 2000, max_tokens=1))
    while not computing.done():
        async with http.get(f"{worker.base}/health") as response:
            answers.add(response.status)

    assert (await computing)[0] == 200
    assert answers == {200}


async def test_a_lost_gpu_is_503_for_who_waits_exit_code_1_and_a_reason_for_who_looks(
    http: aiohttp.ClientSession, model_dir: Path, start_command: Callable[..., Any], tmp_path: Path
) -> None:
    reason = tmp_path / "termination-log"
    reason.touch()
    script = Path(__file__).with_name("hanging_worker.py")
    flags = ("--model", str(model_dir), "--served-model-name", "tiny", "--port", "0", "--fake")
    worker = start_command(
        [sys.executable, str(script), "loses the device", *flags, "--termination-log", str(reason)]
    ).wait_until_ready()

    answered, headers, body = await post(http, worker)
    code = await asyncio.to_thread(worker.wait)

    assert (answered, body["error"]["code"], code) == (503, "engine_dead", 1)
    assert headers["x-quire-reason"] == "engine_dead"
    assert "an illegal memory access was encountered" in reason.read_text()


# ---- 9: a queue that is bounded though nobody said so


async def test_without_any_flag_a_flood_is_429_with_the_time_to_come_back_and_the_rest_is_served(
    http: aiohttp.ClientSession, launch: Callable[..., Any], eventually: Any, metric: Any
) -> None:
    worker = launch("--served-model-name", "tiny", *SLOW).wait_until_ready()
    flood = {"prompt": [[70, 71]] * 100, "n": 4, "temperature": 1, "max_tokens": 24}

    answers = await asyncio.gather(*(post(http, worker, **flood) for _ in range(5)))
    late, _, _ = await post(http, worker)

    refused = [(headers, body) for code, headers, body in answers if code == 429]
    assert sorted(code for code, _, _ in answers) == [200, 200, 200, 429, 429]
    assert all(int(headers["Retry-After"]) >= 1 for headers, _ in refused)
    assert {body["error"]["code"] for _, body in refused} == {"queue_full"}
    assert late == 200
    await eventually(lambda: metric(worker, "vllm:kv_cache_usage_perc"), 0)


# ---- 10: memory that runs out under load


@asynccontextmanager
async def short_of_memory(pid: int, spare_bytes: int) -> AsyncIterator[None]:
    """Within the block, the process gets at most so many bytes more from the system."""
    size = fact(pid, "status", r"VmSize:\s+(\d+) kB") * 1024
    resource.prlimit(pid, resource.RLIMIT_AS, (size + spare_bytes, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


async def test_a_step_that_finds_no_memory_is_done_in_smaller_ones_and_nobody_fails(
    http: aiohttp.ClientSession, start_command: Callable[..., Any]
) -> None:
    steps = (
        "--max-num-batched-tokens",
        "8192",
        "--max-prefill-tokens-per-step",
        "8192",
    )  # large, however slow the machine is
    worker = start_command([*DEMO_WORKER, *steps]).wait_until_ready()
    prompts = [f"{index} " * 200 for index in range(24)] + ["12 " * 1200]
    await post(http, worker)

    async with short_of_memory(worker.engine_pid(), 12_000_000):
        short = await asyncio.gather(*(post(http, worker, prompt=prompt) for prompt in prompts))
    plenty = await asyncio.gather(*(post(http, worker, prompt=prompt) for prompt in prompts))

    worker.wait_for_log("no memory for a step")
    worker.wait_for_log("steps become smaller")
    assert {answered for answered, _, _ in short} == {200}
    assert [body["choices"] for _, _, body in short] == [body["choices"] for _, _, body in plenty]


# ---- 11 and 12: memory and blocks after many requests


async def test_after_hundreds_of_requests_memory_is_flat_and_every_block_is_back(
    http: aiohttp.ClientSession, launch: Callable[..., Any], eventually: Any, metric: Any
) -> None:
    worker = launch("--served-model-name", "tiny", "--disable-log-requests").wait_until_ready()
    pids = (worker.process.pid, worker.engine_pid())

    async def leave_in_the_middle(index: int) -> None:
        async with http.post(
            f"{worker.base}/v1/completions", json={**TEXT, "prompt": f"{index}", "max_tokens": 1500, "stream": True}
        ) as streamed:
            assert await streamed.content.readline()
            streamed.close()

    async def rounds(first: int, last: int) -> list[int]:
        """Kilobytes of each process: the least after one of the last 30 rounds, for what is under way comes and goes."""
        samples = []
        for index in range(first, last):
            await asyncio.gather(
                post(http, worker, prompt=f"{index} the lazy dog"),
                post(http, worker, prompt=f"{index}", n=3, temperature=1, logprobs=2),
                leave_in_the_middle(index),
            )
            samples.append([fact(pid, "status", r"VmRSS:\s+(\d+) kB") for pid in pids])
        return [min(column) for column in zip(*samples[-30:], strict=True)]

    # What 840 requests left behind would be seen from 5 kB each, in every period; `bench/soak.py` looks closer, over 20,000. What an
    # allocator takes once, as more is under way at once than before, is seen in one of them.
    seen = [await rounds(0, 120)]
    for period in range(3):
        seen.append(await rounds(120 + 280 * period, 400 + 280 * period))
        if all(late - early < 4096 for early, late in zip(*seen[-2:], strict=True)):
            break
    else:
        pytest.fail(f"kilobytes of the API process and the engine, after 120 rounds and each 280 more: {seen}")
    for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"):
        await eventually(lambda name=name: metric(worker, name), 0)


# ---- 13: preemption that is told, and ends


async def test_where_blocks_run_short_everybody_finishes_and_the_log_names_who_gave_way_and_what_it_cost(
    http: aiohttp.ClientSession, launch: Callable[..., Any], metric: Any, eventually: Callable[..., Any]
) -> None:
    roomy = launch("--served-model-name", "tiny").wait_until_ready()
    tight = launch("--served-model-name", "tiny", "--num-gpu-blocks-override", "24").wait_until_ready()
    prompts = [[70 + index] * 20 for index in range(12)]

    async def answers(worker: Any) -> list[str]:
        found = await asyncio.gather(*(post(http, worker, prompt=prompt, max_tokens=120) for prompt in prompts))
        return [body["choices"][0]["text"] for _, _, body in found]

    expected, pressed = await answers(roomy), await answers(tight)

    assert pressed == expected
    assert await metric(roomy, "vllm:num_preemptions_total") == 0

    async def has_preempted() -> bool:
        return bool(await metric(tight, "vllm:num_preemptions_total") > 0)

    await eventually(has_preempted, True)
    tight.wait_for_log(r"event=preempted request_id=\S+ .*reason=blocks tokens_lost=\d+")
    told = re.findall(r"event=preempted request_id=(\S+) .*reason=blocks tokens_lost=(\d+)", tight.log)
    assert told and all(int(tokens_lost) >= 0 for _, tokens_lost in told)


# ---- 14: names that went away elsewhere


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize(
    ("field", "value", "today"),
    [
        ("guided_json", {"type": "object"}, "json"),
        ("guided_regex", "[a-z]+", "regex"),
        ("guided_choice", ["yes", "no"], "choice"),
        ("guided_grammar", "root ::= 'a'", "grammar"),
        ("guided_whitespace_pattern", " ", "whitespace_pattern"),
    ],
)
async def test_a_constraint_under_its_old_name_is_refused_with_its_new_one(
    http: aiohttp.ClientSession, worker: Any, route: str, field: str, value: Any, today: str
) -> None:
    body: dict[str, Any] = {"model": "tiny", "max_tokens": 4, field: value}
    body |= {"prompt": "hi"} if route == "/v1/completions" else {"messages": [{"role": "user", "content": "hi"}]}

    async with http.post(f"{worker.base}{route}", json=body) as response:
        error = (await response.json())["error"]

    assert (response.status, error["param"], error["code"]) == (400, field, "unsupported_parameter")
    assert f'{{"structured_outputs": {{"{today}": ...}}}}' in error["message"]


# ---- the page


def test_every_test_that_the_page_names_exists() -> None:
    page = PAGE.read_text()

    named = set(re.findall(r"\[`(test_\w+)`\]\(\.\./(tests/[\w/]+\.py)\)", page))

    assert {int(row) for row in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)} == set(range(1, 23))
    assert len(re.findall(r"`test_\w+`", page)) == len(re.findall(r"\[`test_\w+`\]\(\.\./tests/", page))
    missing = [
        name for name, file in named
        if not re.search(rf"^(?:async )?def {name}\(", (ROOT / file).read_text(), re.MULTILINE)
    ]  # fmt: skip
    assert named and missing == []
