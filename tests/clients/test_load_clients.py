"""Load generators as teams use them: guidellm, and a client that reads streams the way `vllm bench serve` does."""

import asyncio
import json
import subprocess
from pathlib import Path

import aiohttp
import pytest
from client_server import Server


@pytest.mark.slow
def test_guidellm_runs_without_an_error(client_bin: Path, server: Server, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [
        f"{client_bin}/guidellm",
        "run",
        *("--backend", f"kind=openai_http,target={server.base},model=demo"),
        *("--profile", "kind=concurrent,streams=4"),
        *("--constraint", "kind=max_requests,count=24"),
        *("--tokenizer", f"kind=hf_auto,model={server.model_dir}"),
        *("--data", "kind=synthetic_text,prompt_tokens=32,output_tokens=16"),
        *("--output", f"kind=json,path={report}"),
        "--disable-console-interactive",
    ]
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}

    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=850, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    (benchmark,) = json.loads(report.read_text())["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    assert totals["errored"] == 0
    assert totals["successful"] == 24


async def bench_stream(session: aiohttp.ClientSession, server: Server, prompt: str) -> tuple[int, int, str]:
    """(tokens by the usage chunk, events with text, finish reason) of one request in the form that vLLM's benchmark sends."""
    body = {
        "model": "demo",
        "prompt": prompt,
        "temperature": 0.0,
        "repetition_penalty": 1.0,
        "max_tokens": 24,
        "logprobs": None,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }
    completion_tokens, num_events, finish = 0, 0, ""
    async with session.post(f"{server.v1}/completions", json=body) as response:
        assert response.status == 200
        async for line in response.content:
            text = line.strip().removeprefix(b"data: ")
            if not text or text == b"[DONE]" or text.startswith(b":"):
                continue
            event = json.loads(text)
            for choice in event["choices"]:
                num_events += 1
                finish = choice["finish_reason"] or finish
            if event.get("usage"):
                completion_tokens = event["usage"]["completion_tokens"]
    return completion_tokens, num_events, finish


async def test_a_load_in_the_form_of_vllms_benchmark_gets_every_token_and_a_usage_chunk(server: Server) -> None:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session:
        found = await asyncio.gather(*(bench_stream(session, server, f"Convert {n} km to m.") for n in range(64)))

    assert {(tokens, finish) for tokens, _, finish in found} == {(24, "length")}
    assert all(1 <= events <= 25 for _, events, _ in found)
