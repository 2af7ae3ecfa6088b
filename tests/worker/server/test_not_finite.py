"""A model whose output is not finite, over HTTP: the request that meets it is told so, counted, and alone."""

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from safetensors.torch import load_file, save_file

DEMO = Path(__file__).parents[3] / "examples" / "models" / "quire-demo"
SPOILT = 1400
"""A token whose embedding is damaged."""
FLAGS = ("--device", "cpu", "--compute-threads", "1", "--num-gpu-blocks-override", "128", "--max-model-len", "256")


@pytest.fixture(scope="module")
def damaged(start_real: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("damaged") / "demo"
    shutil.copytree(DEMO, folder)
    spoil(folder, SPOILT)
    return start_real(folder, "--served-model-name", "demo", *FLAGS).wait_until_ready()


def spoil(folder: Path, token: int) -> None:
    """Its embedding holds NaN; the output head, otherwise the same weights, does not."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.embed_tokens.weight"][token, 3] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_model_that_is_never_finite_is_not_served_and_the_reason_is_said(start_real: Any, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    shutil.copytree(DEMO, folder)
    spoil(folder, 0)  # which the first step computes

    worker = start_real(folder, *FLAGS)

    assert worker.wait() != 0
    assert "the model's output is not finite" in worker.log.splitlines()[-1]
    assert "--dtype" in worker.log.splitlines()[-1]


@pytest.mark.parametrize("stream", [False, True])
async def test_it_is_an_error_with_its_reason_for_the_one_that_meets_it(
    damaged: Any, http: aiohttp.ClientSession, metric: Callable[..., Any], stream: bool
) -> None:
    before = await metric(damaged, "quire_worker_non_finite_outputs_total")

    async def post(prompt: list[int]) -> tuple[int, Any]:
        body: dict[str, Any] = {"model": "demo", "prompt": prompt, "max_tokens": 20, "temperature": 0}
        body |= {"logit_bias": {str(SPOILT): -100}, "stream": stream and SPOILT in prompt}
        async with http.post(f"{damaged.base}/v1/completions", json=body) as response:
            return response.status, await response.json()

    answers = await asyncio.gather(post([5, 6, 7, 8]), post([5, SPOILT, 7]), post([9, 10]))

    (fine, whole), (status, error), (fine_too, _) = answers
    assert (fine, fine_too, status) == (200, 200, 500)
    assert error["error"]["code"] == "output_not_finite"
    assert error["error"]["type"] == "server_error"
    assert "not finite" in error["error"]["message"] and "bfloat16" in error["error"]["message"]
    assert (await post([5, 6, 7, 8]))[1]["choices"] == whole["choices"]
    assert await metric(damaged, "quire_worker_non_finite_outputs_total") == before + 1
