"""Single operations at the sizes that a model brings, with what each must at least move and compute. Timed by gpu.bench and gpu.tune."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from gpu.roofline import Rates
from gpu.sizes import Sizes
from quire_kernels.ops import Ops
from quire_kernels.rotate_and_store import CacheTarget
from quire_kernels.sampling import SamplingTensors

CACHE_BYTES = 200 << 20
"""Calls rotate over so many bytes at least, several times any L2, so that each reads from memory as in a step."""
MAX_COPIES = 24
Build = Callable[[Ops, torch.device], list[Callable[[], object]]]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One operation of one size."""

    op: str
    """A field of Ops, or `linear` (the matrix library's)."""
    name: str
    size_bytes: int
    """Read and written once each."""
    flops: int
    build: Build
    """Calls that do the same to different memory."""

    def floor_s(self, rates: Rates) -> float:
        """The larger of the two bounds."""
        return max(self.size_bytes / rates.read_bytes_per_s, self.flops / rates.flops_per_s)


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Of an attention layer and its cache."""

    heads: int
    kv_heads: int
    dim: int
    block_size: int = 16
    dtype: torch.dtype = torch.bfloat16

    @property
    def q_dtype(self) -> torch.dtype:
        """Queries over an FP8 cache are bf16."""
        return torch.bfloat16 if self.dtype == torch.float8_e4m3fn else self.dtype


def model_workloads(sizes: Sizes, *, batches: tuple[int, ...], prompts: tuple[int, ...]) -> Iterator[Workload]:
    """Everything that a layer and the sampler of this model call, decode steps and prompts."""
    heads = Heads(heads=sizes.num_heads, kv_heads=sizes.num_kv_heads, dim=sizes.head_dim)
    fp8 = Heads(heads=heads.heads, kv_heads=heads.kv_heads, dim=heads.dim, dtype=torch.float8_e4m3fn)
    for batch in batches:
        yield decode_attention(heads, batch, 1024)
    yield decode_attention(heads, 1, 8192)
    yield decode_attention(fp8, batches[-1], 1024)
    for num_tokens in prompts:
        yield prefill_attention(heads, num_tokens)
    for num_tokens in (*batches, prompts[0]):
        yield add_norm(num_tokens, sizes.hidden_size)
        yield silu(num_tokens, sizes.intermediate_size)
        yield rotary(heads, num_tokens)
        yield store(heads, num_tokens)
        yield rotary_and_store(heads, num_tokens)
        yield from linears(sizes, num_tokens, with_head=num_tokens in batches)
    for batch in (batches[0], batches[-1]):
        yield largest(batch, sizes.vocab_size)
        yield sample(batch, sizes.vocab_size)
        yield logprobs(batch, sizes.vocab_size)


def _copies(size_bytes: int, device: torch.device) -> int:
    """One on a CPU: a rehearsal need not be right about caches."""
    return 1 if device.type == "cpu" else max(1, min(MAX_COPIES, math.ceil(CACHE_BYTES / max(1, size_bytes))))


def _randn(device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.empty(shape, device=device, dtype=torch.bfloat16 if dtype.itemsize == 1 else dtype).normal_().to(dtype)


# ---- attention


def decode_attention(heads: Heads, batch: int, context: int) -> Workload:
    """One query a row."""
    kv_bytes = batch * context * heads.kv_heads * heads.dim * 2 * heads.dtype.itemsize
    q_bytes = 2 * batch * heads.heads * heads.dim * heads.q_dtype.itemsize
    return Workload(
        op="paged_attention" if heads.dtype.itemsize > 1 else "paged_attention_fp8",
        name=f"decode, {batch} rows, context {context}",
        size_bytes=kv_bytes + q_bytes,
        flops=4 * batch * context * heads.heads * heads.dim,
        build=partial(_attention_calls, heads, batch, 1, context, kv_bytes),
    )


def prefill_attention(heads: Heads, num_tokens: int, rows: int = 1) -> Workload:
    """Whole prompts."""
    pairs = rows * num_tokens * (num_tokens + 1) // 2
    token_bytes = rows * num_tokens * heads.dim * heads.dtype.itemsize
    return Workload(
        op="paged_attention" if heads.dtype.itemsize > 1 else "paged_attention_fp8",
        name=f"prefill, {rows} x {num_tokens}",
        size_bytes=token_bytes * 2 * (heads.heads + heads.kv_heads),
        flops=4 * pairs * heads.heads * heads.dim,
        build=partial(_attention_calls, heads, rows, num_tokens, num_tokens, token_bytes * 8),
    )


def _attention_calls(
    heads: Heads, rows: int, queries: int, context: int, size_bytes: int, ops: Ops, device: torch.device
) -> list[Callable[[], object]]:
    """Blocks are shuffled, as after an hour of serving."""
    per_row = -(-context // heads.block_size)
    shape = (rows * per_row + 1, 2, heads.kv_heads, heads.block_size, heads.dim)
    starts = torch.arange(0, rows * queries + 1, queries, dtype=torch.int32, device=device)
    lens = torch.full((rows,), context, dtype=torch.int32, device=device)
    scales = torch.ones(2, heads.kv_heads, device=device)
    calls: list[Callable[[], object]] = []
    for _ in range(_copies(size_bytes, device)):
        cache = _randn(device, heads.dtype, *shape)
        blocks = torch.randperm(rows * per_row, device=device).int().add_(1).view(rows, per_row)
        q = _randn(device, heads.q_dtype, rows * queries, heads.heads + 2 * heads.kv_heads, heads.dim)[:, : heads.heads]
        tables = (blocks, starts, lens)
        attention = ops.paged_attention
        if heads.dtype.itemsize == 1:
            attention = partial(ops.paged_attention_fp8, kv_scales=scales)
        calls.append(
            partial(
                attention,
                q,
                cache[:, 0],
                cache[:, 1],
                *tables,
                scale=heads.dim**-0.5,
                window=None,
                max_query_len=queries,
                max_seq_len=context,
                plan=ops.plan_attention(cache[:, 0], *tables, window=None),
            )
        )
    return calls


# ---- a layer's other operations


def add_norm(num_tokens: int, width: int, dtype: torch.dtype = torch.bfloat16) -> Workload:
    """The sum with the residual, and its norm."""
    size = 4 * num_tokens * width * dtype.itemsize

    def build(ops: Ops, device: torch.device) -> list[Callable[[], object]]:
        weight = _randn(device, dtype, width)
        tensors = [[_randn(device, dtype, num_tokens, width) for _ in range(2)] for _ in range(_copies(size, device))]
        return [partial(ops.rms_norm, x, weight, 1e-5, residual) for x, residual in tensors]

    return Workload(op="rms_norm", name=f"residual, {num_tokens} x {width}", size_bytes=size, flops=0, build=build)


def silu(num_tokens: int, width: int, dtype: torch.dtype = torch.bfloat16) -> Workload:
    """The gated activation."""
    size = 3 * num_tokens * width * dtype.itemsize

    def build(ops: Ops, device: torch.device) -> list[Callable[[], object]]:
        return [
            partial(ops.silu_mul, _randn(device, dtype, num_tokens, 2 * width)) for _ in range(_copies(size, device))
        ]

    return Workload(op="silu_mul", name=f"{num_tokens} x {width}", size_bytes=size, flops=0, build=build)


def rotary(heads: Heads, num_tokens: int) -> Workload:
    """Queries and keys where they lie in the fused projection."""
    turned = heads.heads + heads.kv_heads
    size = 2 * num_tokens * turned * heads.dim * heads.dtype.itemsize

    def build(ops: Ops, device: torch.device) -> list[Callable[[], object]]:
        table = torch.rand(8192, heads.dim, device=device, dtype=heads.dtype)
        positions = torch.randint(0, 8192, (num_tokens,), device=device)
        calls: list[Callable[[], object]] = []
        for _ in range(_copies(size, device)):
            qkv = _randn(device, heads.dtype, num_tokens, turned + heads.kv_heads, heads.dim)
            calls.append(
                partial(ops.apply_rotary, qkv[:, : heads.heads], qkv[:, heads.heads : turned], positions, table)
            )
        return calls

    return Workload(op="apply_rotary", name=f"{num_tokens} tokens", size_bytes=size, flops=0, build=build)


def store(heads: Heads, num_tokens: int) -> Workload:
    """Keys and values into scattered blocks."""
    size = 4 * num_tokens * heads.kv_heads * heads.dim * heads.dtype.itemsize

    def build(ops: Ops, device: torch.device) -> list[Callable[[], object]]:
        num_blocks = num_tokens + 1
        calls: list[Callable[[], object]] = []
        for _ in range(_copies(size * heads.block_size, device)):
            cache = torch.zeros(num_blocks, 2, heads.kv_heads, heads.block_size, heads.dim, device=device)
            cache = cache.to(heads.dtype)
            kv = _randn(device, heads.dtype, num_tokens, 2 * heads.kv_heads, heads.dim)
            slots = torch.randperm(num_blocks * heads.block_size, device=device)[:num_tokens]
            k, v = kv[:, : heads.kv_heads], kv[:, heads.kv_heads :]
            calls.append(partial(ops.store_kv, k, v, cache[:, 0], cache[:, 1], slots))
        return calls

    return Workload(op="store_kv", name=f"{num_tokens} tokens", size_bytes=size, flops=0, build=build)


def rotary_and_store(heads: Heads, num_tokens: int) -> Workload:
    """Both in one, as the decoder asks for them."""
    numbers = num_tokens * heads.dim
    size = 2 * numbers * (heads.heads + 2 * heads.kv_heads) * heads.dtype.itemsize

    def build(ops: Ops, device: torch.device) -> list[Callable[[], object]]:
        table = torch.rand(8192, heads.dim, device=device).to(heads.dtype)
        positions = torch.randint(0, 8192, (num_tokens,), device=device)
        num_blocks = num_tokens + 1
        calls: list[Callable[[], object]] = []
        for _ in range(_copies(size * heads.block_size, device)):
            cache = torch.zeros(num_blocks, 2, heads.kv_heads, heads.block_size, heads.dim, device=device)
            cache = cache.to(heads.dtype)
            slots = torch.randperm(num_blocks * heads.block_size, device=device)[:num_tokens]
            qkv = _randn(device, heads.dtype, num_tokens, heads.heads + 2 * heads.kv_heads, heads.dim)
            q, k, v = qkv.split_with_sizes((heads.heads, heads.kv_heads, heads.kv_heads), dim=1)
            target = CacheTarget(k_cache=cache[:, 0], v_cache=cache[:, 1], slots=slots)
            calls.append(partial(ops.rotate_and_store, q, k, v, positions, table, target))
        return calls

    return Workload(op="rotate_and_store", name=f"{num_tokens} tokens", size_bytes=size, flops=0, build=build)


def linears(sizes: Sizes, num_tokens: int, *, with_head: bool) -> Iterator[Workload]:
    """The matrix library's own figures: what the kernels around them are measured against."""
    hidden, head_dim = sizes.hidden_size, sizes.head_dim
    query, key = sizes.num_heads * head_dim, sizes.num_kv_heads * head_dim
    shapes = {
        "qkv": (hidden, query + 2 * key),
        "out": (query, hidden),
        "gate and up": (hidden, 2 * sizes.intermediate_size),
        "down": (sizes.intermediate_size, hidden),
    }
    if with_head:
        shapes["head"] = (hidden, sizes.vocab_size)
    for name, (inputs, outputs) in shapes.items():
        yield _linear(f"{name}, {num_tokens} tokens", num_tokens, inputs, outputs)


def _linear(name: str, num_tokens: int, inputs: int, outputs: int) -> Workload:
    size = 2 * (inputs * outputs + num_tokens * (inputs + outputs))

    def build(ops: Ops, device: torch.device) -> list[Callable[[], object]]:
        calls: list[Callable[[], object]] = []
        for _ in range(_copies(size, device)):
            x = _randn(device, torch.bfloat16, num_tokens, inputs)
            weight = _randn(device, torch.bfloat16, outputs, inputs)
            calls.append(partial(torch.nn.functional.linear, x, weight))
        return calls

    return Workload(op="linear", name=name, size_bytes=size, flops=2 * num_tokens * inputs * outputs, build=build)


# ---- the sampler


def sample(rows: int, vocab_size: int) -> Workload:
    """Random rows, half of them with cuts."""
    size = 2 * rows * vocab_size

    def build(ops: Ops, device: torch.device) -> list[Callable[[], object]]:
        odd = torch.arange(rows, device=device) % 2
        params = SamplingTensors(
            temperature=torch.full((rows,), 0.8, device=device),
            top_k=(odd * 50).int(),
            top_p=1.0 - 0.1 * odd.float(),
            min_p=torch.zeros(rows, device=device),
            seeds=torch.arange(rows, device=device),
            positions=torch.arange(rows, device=device),
        )
        logits = [_randn(device, torch.bfloat16, rows, vocab_size) for _ in range(_copies(size, device))]
        return [partial(ops.sample, one, params) for one in logits]

    return Workload(op="sample", name=f"{rows} rows, half cut", size_bytes=size, flops=0, build=build)


def largest(rows: int, vocab_size: int) -> Workload:
    """A greedy step's tokens."""
    size = 2 * rows * vocab_size

    def build(ops: Ops, device: torch.device) -> list[Callable[[], object]]:
        logits = [_randn(device, torch.bfloat16, rows, vocab_size) for _ in range(_copies(size, device))]
        return [partial(ops.argmax, one) for one in logits]

    return Workload(op="argmax", name=f"{rows} rows", size_bytes=size, flops=0, build=build)


def logprobs(rows: int, vocab_size: int) -> Workload:
    """The five likeliest tokens."""
    size = 2 * rows * vocab_size

    def build(ops: Ops, device: torch.device) -> list[Callable[[], object]]:
        chosen = torch.randint(0, vocab_size, (rows,), device=device)
        logits = [_randn(device, torch.bfloat16, rows, vocab_size) for _ in range(_copies(size, device))]
        return [partial(ops.top_logprobs, one, chosen, 5) for one in logits]

    return Workload(op="top_logprobs", name=f"{rows} rows, k 5", size_bytes=size, flops=0, build=build)


def penalties(rows: int, vocab_size: int) -> Workload:
    """Every row penalised."""
    size = rows * vocab_size * (4 + 4 + 4 + 1)

    def build(ops: Ops, device: torch.device) -> list[Callable[[], object]]:
        slots = torch.arange(rows, device=device)
        seen = torch.rand(rows, vocab_size, device=device) < 0.01
        counts = seen.int()
        strengths = [torch.full((rows,), value, device=device) for value in (1.1, 0.1, 0.1)]
        logits = [torch.randn(rows, vocab_size, device=device) for _ in range(_copies(size, device))]
        return [partial(ops.apply_penalties, one, slots, seen, counts, *strengths) for one in logits]

    return Workload(op="apply_penalties", name=f"{rows} rows", size_bytes=size, flops=0, build=build)


def copies_of_blocks(heads: Heads, layers: int, pairs: int) -> Workload:
    """Whole blocks, all layers."""
    block = layers * 2 * heads.kv_heads * heads.block_size * heads.dim
    size = 2 * pairs * block * heads.dtype.itemsize

    def build(ops: Ops, device: torch.device) -> list[Callable[[], object]]:
        cache = _randn(device, heads.dtype, 2 * pairs, layers, 2, heads.kv_heads, heads.block_size, heads.dim)
        numbers = torch.arange(pairs, device=device)
        return [partial(ops.copy_blocks, cache, torch.stack((numbers, numbers + pairs), 1))]

    return Workload(op="copy_blocks", name=f"{pairs} pairs", size_bytes=size, flops=0, build=build)
