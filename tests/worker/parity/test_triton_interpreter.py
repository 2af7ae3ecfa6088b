"""The engine through Triton's ops, run by Triton's interpreter, gives the tokens of the CPU ops."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from quire_worker.request import FAILED_NO_TOKEN, FAILED_NOT_FINITE, SamplingParams, Submit
from tests.worker.models.fp8_checkpoints import VOCAB, make_checkpoints

pytest.importorskip("triton")

MAX_TOKENS = 4
SPOILT = 319
"""The token whose embedding is not finite in the damaged checkpoint."""
SCRIPT = Path(__file__).with_name("triton_side.py")


KINDS = (
    {"temperature": 0.0},
    {"seed": 3, "top_p": 0.9, "frequency_penalty": 0.5},
    {
        "seed": 4,
        "prompt_logprobs": 2,
        "logprobs": 0,
        "logprob_token_ids": (5, 300),
        "allowed_token_ids": tuple(range(0, 320, 3)),
        "bad_words": ((3,), (6, 9)),
    },
)


def through_triton(folder, requests, **options):
    """(tokens, the prompt's log-probabilities, error codes) of each (prompt, sampling parameters); `options` are RunnerOptions."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), json.dumps(options)],
        input=json.dumps(requests),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(SCRIPT.parents[2])},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2-mixed-windows", "qwen3-moe"])
def test_tokens_through_triton_equal_those_through_the_cpu_ops(name, checkpoint, side, mixed_prompts):
    prompts = [mixed_prompts[i] for i in (2, 8, 11)]
    kinds = [{"max_tokens": MAX_TOKENS, **kind} for kind in KINDS]
    submits = [
        Submit(request_id=str(i), prompt_token_ids=prompt, sampling=SamplingParams(**kind))
        for i, (prompt, kind) in enumerate(zip(prompts, kinds, strict=True))
    ]

    found = through_triton(checkpoint(name), list(zip(prompts, kinds, strict=True)))

    expected = side(checkpoint(name)).generate(submits)
    assert [tokens for tokens, _, _ in found] == [expected[str(i), 0].token_ids for i in range(len(prompts))]
    assert [logprobs for _, logprobs, _ in found[:2]] == [[], []]
    assert found[2][1] == pytest.approx(expected["2", 0].prompt_values, abs=1e-4)
    assert len(found[2][1]) == len(prompts[2]) - 1


def test_what_fails_through_triton_fails_alone(damaged, side, mixed_prompts):
    greedy, stuck = {"max_tokens": 3, "temperature": 0.0}, {"max_tokens": 3, "seed": 1, "allowed_token_ids": (4,)}
    requests = [
        (mixed_prompts[3], greedy),
        ([7, SPOILT, 8], {**greedy, "temperature": 1.0}),
        (mixed_prompts[4], {**stuck, "bad_words": ((4,),)}),
        ([SPOILT, 9], greedy),
    ]

    found = through_triton(damaged, requests)

    assert [errors for _, _, errors in found] == [[], [FAILED_NOT_FINITE], [FAILED_NO_TOKEN], [FAILED_NOT_FINITE]]
    assert [found[i][0] for i in (0, 1, 2, 3)] == [side(damaged).greedy([mixed_prompts[3]], 3)[0], [], [], []]


@pytest.mark.slow
def test_an_fp8_checkpoint_through_triton_gives_what_the_reference_gives(tmp_path):
    fp8, _ = make_checkpoints(tmp_path)
    rng = random.Random(5)
    prompts = [[rng.randrange(VOCAB) for _ in range(length)] for length in (3, 17)]
    requests = [(prompt, {"max_tokens": 2, "temperature": 0.0, "prompt_logprobs": 0}) for prompt in prompts]

    found, expected = (through_triton(fp8, requests, dtype="bfloat16", ops=ops) for ops in ("triton", "reference"))

    assert [tokens for tokens, _, _ in found] == [tokens for tokens, _, _ in expected]
    for (_, logprobs, _), (_, right, _) in zip(found, expected, strict=True):
        # Of logits of about 30, whose roundings to FP8 differ here and there.
        assert logprobs == pytest.approx(right, abs=1.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "qwen3-moe"])
def test_batch_invariant_logits_are_the_same_bits_alone_in_company_and_in_chunks(name, checkpoint, mixed_prompts):
    prompts = [mixed_prompts[i][:40] for i in (2, 8, 11)]
    asked = {"max_tokens": 2, "temperature": 0.0, "prompt_logprobs": 0}
    options = {"dtype": "bfloat16", "batch_invariant": True}

    together = through_triton(checkpoint(name), [(prompt, asked) for prompt in prompts], **options)
    alone = through_triton(checkpoint(name), [(prompts[2], asked)], **options, max_num_batched_tokens=100)

    assert alone[0][:2] == together[2][:2]
    assert len(alone[0][1]) == len(prompts[2]) - 1
