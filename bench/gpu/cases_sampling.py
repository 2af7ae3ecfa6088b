"""Checks of the kernels that work over the vocabulary: sampling, penalties, biases, masks, log-probabilities."""

from collections.abc import Iterator

import torch
from torch import Tensor

from gpu.cases import Case, Inputs, seeded
from gpu.compare import Difference
from quire_kernels.ops import Ops
from quire_kernels.sampling import SamplingTensors, perturbed_logits

EXCUSED_GAP = 1e-4
"""A kernel's noise is float32 and the reference's float64: of two tokens closer than this, either may win."""
EXCUSED_ROWS = 0.02
"""Share of rows whose token the reference cut: sums to top_p within 1e-6 of it fall on either side."""
VOCABULARIES = (5, 50, 300, 9001, 128_256)


def sampling_cases() -> Iterator[Case]:
    """All of them."""
    for vocab_size in VOCABULARIES:
        for kind in ("greedy", "plain", "mixed", "ties", "bf16"):
            yield _sample_case(vocab_size, kind)
        for k in (0, 5, 20, 50):
            yield _logprobs_case(vocab_size, k)
        yield _penalty_case(vocab_size)
        yield _mask_case(vocab_size)
    yield _count_case()
    for num_rows in (3, 300):
        yield _append_case(num_rows)
    yield _bias_case()


def _sample_case(vocab_size: int, kind: str) -> Case:
    rows = 3 if vocab_size < 10 else 8 if vocab_size < 10_000 else 33

    def make(device: torch.device) -> Inputs:
        generator = seeded("sample", vocab_size, kind)
        logits = torch.randn(rows, vocab_size, generator=generator) * 3
        if kind in ("ties", "bf16"):
            logits = logits.round() if kind == "ties" else logits.bfloat16()
        return {
            "logits": logits.to(device),
            "params": _params(rows, vocab_size, kind, generator, device),
        }

    return Case(
        op="sample",
        name=f"{kind} V{vocab_size}",
        make=make,
        run=lambda ops, inputs: [ops.sample(inputs["logits"], inputs["params"])],
        judge=judge_tokens,
        is_small=vocab_size < 60,
    )


def _params(rows: int, vocab_size: int, kind: str, generator: torch.Generator, device: torch.device) -> SamplingTensors:
    def rand() -> Tensor:
        return torch.rand(rows, generator=generator)

    has_cuts = kind in ("mixed", "ties", "bf16")
    temperature = torch.zeros(rows) if kind == "greedy" else 0.2 + 1.5 * rand()
    top_k = (rand() * (vocab_size + 2)).floor() * (rand() > 0.5) if has_cuts else torch.zeros(rows)
    top_p = torch.where(rand() > 0.4, rand(), 1.0) if has_cuts else torch.ones(rows)
    min_p = torch.where(rand() > 0.7, rand() * 0.3, 0.0) if has_cuts else torch.zeros(rows)
    return SamplingTensors(
        temperature=temperature.to(device),
        top_k=top_k.int().to(device),
        top_p=top_p.to(device),
        min_p=min_p.to(device),
        seeds=torch.randint(-(2**63), 2**63 - 1, (rows,), generator=generator).to(device),
        positions=torch.randint(0, 5000, (rows,), generator=generator).to(device),
    )


def judge_tokens(inputs: Inputs, found: list[Tensor], expected: list[Tensor]) -> Difference:
    """Where tokens differ: by how much the reference's best perturbed logit beats what was drawn, over the excused gap. A few rows may
    draw a token just beyond a cut."""
    differing = (found[0] != expected[0]).nonzero().flatten()
    if not len(differing):
        return Difference(error=0.0, units=0.0)
    perturbed = perturbed_logits(inputs["logits"], inputs["params"])[differing]
    gaps = perturbed.max(-1).values - perturbed.gather(-1, found[0][differing, None])[:, 0]
    cut = ~gaps.isfinite()
    allowed = max(1, int(EXCUSED_ROWS * len(found[0])))
    worst = float(gaps[~cut].max()) if bool((~cut).any()) else 0.0
    return Difference(error=worst, units=max(worst / EXCUSED_GAP, int(cut.sum()) / allowed))


def _logprobs_case(vocab_size: int, k: int) -> Case:
    rows = 3 if vocab_size < 10_000 else 9

    def make(device: torch.device) -> Inputs:
        generator = seeded("logprobs", vocab_size, k)
        logits = (torch.randn(rows, vocab_size, generator=generator) * 4).round().div(2)
        chosen = torch.randint(0, vocab_size, (rows,), generator=generator)
        return {"logits": logits.bfloat16().to(device), "chosen": chosen.to(device)}

    def run(ops: Ops, inputs: Inputs) -> list[Tensor]:
        found = ops.top_logprobs(inputs["logits"], inputs["chosen"], k)
        return [found.chosen_logprobs, found.chosen_ranks, found.ids, found.logprobs]

    def magnitude(inputs: Inputs) -> list[Tensor]:
        # A log-probability is a difference of two numbers of the logits' size.
        rank_shape = inputs["chosen"]
        width = (rows, min(k, vocab_size))
        return [torch.full((rows,), 20.0), rank_shape, torch.zeros(width, dtype=torch.int64), torch.full(width, 20.0)]

    small = vocab_size < 60 and k < 6
    return Case(op="top_logprobs", name=f"k{k} V{vocab_size}", make=make, run=run, magnitude=magnitude, is_small=small)


def _penalty_case(vocab_size: int) -> Case:
    rows, slots = 6, 4

    def make(device: torch.device) -> Inputs:
        generator = seeded("penalties", vocab_size)
        counts = torch.randint(0, 4, (slots, vocab_size), generator=generator).int()
        wide = torch.randn(rows, vocab_size + 8, generator=generator).to(device)
        return {
            "logits": wide[:, :vocab_size],
            "slots": torch.tensor([2, -1, 0, 3, 1, -1], device=device),
            "prompt_mask": (torch.rand(slots, vocab_size, generator=generator) < 0.3).to(device),
            "output_counts": (counts - 2).clamp(min=0).int().to(device),
            "repetition": (0.5 + torch.rand(rows, generator=generator)).to(device),
            "frequency": (torch.rand(rows, generator=generator) - 0.5).to(device),
            "presence": (torch.rand(rows, generator=generator) - 0.5).to(device),
        }

    def run(ops: Ops, inputs: Inputs) -> list[Tensor]:
        ops.apply_penalties(*inputs.values())
        return [inputs["logits"]]

    return Case(op="apply_penalties", name=f"V{vocab_size}", make=make, run=run, is_small=vocab_size < 400)


def _mask_case(vocab_size: int) -> Case:
    def make(device: torch.device) -> Inputs:
        generator = seeded("bitmask", vocab_size)
        words = torch.randint(-(2**31), 2**31 - 1, (3, -(-vocab_size // 32)), generator=generator).int()
        logits = torch.randn(4, vocab_size, generator=generator)
        return {
            "logits": logits.to(device),
            "rows": torch.tensor([3, -1, 1], device=device),
            "bitmask": words.to(device),
        }

    def run(ops: Ops, inputs: Inputs) -> list[Tensor]:
        ops.apply_bitmask(*inputs.values())
        return [inputs["logits"]]

    return Case(op="apply_bitmask", name=f"V{vocab_size}", make=make, run=run, is_small=vocab_size < 400)


def _count_case() -> Case:
    def make(device: torch.device) -> Inputs:
        generator = seeded("counts")
        return {
            "output_counts": torch.zeros(9, 1000, dtype=torch.int32, device=device),
            "slots": torch.randint(-1, 9, (400,), generator=generator).to(device),
            "token_ids": torch.randint(-1, 30, (400,), generator=generator).to(device),
        }

    def run(ops: Ops, inputs: Inputs) -> list[Tensor]:
        ops.count_tokens(*inputs.values())
        return [inputs["output_counts"]]

    return Case(op="count_tokens", name="400 rows, many on one count", make=make, run=run, is_small=True)


def _append_case(num_rows: int) -> Case:
    """Every third token is padding."""

    def make(device: torch.device) -> Inputs:
        generator = seeded("append", num_rows)
        rows = torch.randperm(2 * num_rows, generator=generator)[:num_rows]
        rows[::3] = -1
        return {
            "row_ids": rows.to(device),
            "sampled": torch.randint(0, 128_256, (num_rows,), generator=generator).to(device),
            "token_ids": torch.zeros(2 * num_rows, 70, dtype=torch.int32, device=device),
            "num_tokens": torch.randint(0, 70, (2 * num_rows,), generator=generator).to(device),
        }

    def run(ops: Ops, inputs: Inputs) -> list[Tensor]:
        ops.append_tokens(*inputs.values())
        return [inputs["token_ids"], inputs["num_tokens"]]

    return Case(op="append_tokens", name=f"{num_rows} rows", make=make, run=run, is_small=num_rows < 10)


def _bias_case() -> Case:
    def make(device: torch.device) -> Inputs:
        generator = seeded("bias")
        flat = torch.randperm(7 * 500, generator=generator)[:300]
        rows, values = flat // 500, torch.randn(300, generator=generator)
        rows[::11], values[::7] = -1, float("-inf")
        return {
            "logits": torch.randn(7, 500, generator=generator).to(device),
            "row_idx": rows.to(device),
            "ids": (flat % 500).to(device),
            "values": values.to(device),
        }

    def run(ops: Ops, inputs: Inputs) -> list[Tensor]:
        ops.apply_bias(*inputs.values())
        return [inputs["logits"]]

    return Case(op="apply_bias", name="300 entries, padding and -inf", make=make, run=run, is_small=True)
