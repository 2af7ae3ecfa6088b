"""The engine through Triton's ops, run by Triton's interpreter, gives the tokens of the CPU ops."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from quire_worker.request import SamplingParams, Submit

pytest.importorskip("triton")

MAX_TOKENS = 4
SCRIPT = Path(__file__).with_name("triton_side.py")


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2-mixed-windows", "qwen3-moe"])
def test_tokens_through_triton_equal_those_through_the_cpu_ops(name, checkpoint, side, mixed_prompts):
    prompts = [mixed_prompts[i] for i in (2, 8, 11)]
    kinds = ({"temperature": 0.0}, {"seed": 3, "top_p": 0.9, "frequency_penalty": 0.5})
    submits = [
        Submit(
            request_id=str(i),
            prompt_token_ids=prompt,
            sampling=SamplingParams(max_tokens=MAX_TOKENS, **kinds[i % 2]),
        )
        for i, prompt in enumerate(prompts)
    ]

    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(checkpoint(name)), str(MAX_TOKENS)],
        input=json.dumps(prompts),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(SCRIPT.parents[2])},
    )

    assert done.returncode == 0, done.stderr[-3000:]
    expected = side(checkpoint(name)).generate(submits)
    assert json.loads(done.stdout) == [expected[str(i), 0].token_ids for i in range(len(prompts))]
