"""Checks of the kernels that work token by token: norms, rotary embedding, activation, writing and copying KV."""

from collections.abc import Iterator

import torch
from torch import Tensor

from gpu.cases import Case, Inputs, dtype_name, seeded
from quire_kernels.ops import Ops
from quire_kernels.rotary import RotaryConfig, rotary_cos_sin

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NORM_SHAPES = [(1, 32), (5, 60), (3, 768), (33, 4096), (2, 8192), (7, 5120), (4, 5, 80), (6, 8, 128)]
ROTARY_SHAPES = [(1, 1, 1, 32, 32), (5, 7, 1, 80, 20), (3, 6, 2, 96, 96), (65, 32, 8, 128, 128), (9, 4, 4, 256, 64)]
STORE_SHAPES = [(1, 1, 16, 32), (7, 4, 16, 64), (5, 3, 48, 80), (9, 2, 32, 128), (700, 8, 16, 128)]


def row_cases() -> Iterator[Case]:
    """All of them."""
    for dtype in _DTYPES:
        for shape in NORM_SHAPES:
            yield _norm_case(shape, dtype)
            if len(shape) == 2:
                yield _residual_case(shape, dtype)
        for tokens, heads, kv_heads, dim, rotary_dim in ROTARY_SHAPES:
            yield _rotary_case(tokens, heads, kv_heads, dim, rotary_dim, dtype)
        for num_tokens, width in ((1, 7), (3, 96), (5, 2049), (300, 14336)):
            yield _silu_case(num_tokens, width, dtype)
        for tokens, heads, size, dim in STORE_SHAPES:
            yield _store_case(tokens, heads, size, dim, dtype)
        yield _copy_case(dtype, dim=24)
        yield _copy_case(dtype, dim=128)
    yield _store_case(9, 8, 16, 128, torch.bfloat16, far=True)
    for tokens, heads, size, dim in STORE_SHAPES:
        yield _store_fp8_case(tokens, heads, size, dim)


def _randn(generator: torch.Generator, device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator).to(dtype).to(device)


def _norm_case(shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    """Three dims: heads inside a fused projection, so with odd strides."""

    def make(device: torch.device) -> Inputs:
        generator = seeded("norm", shape, dtype)
        wide = (shape[0], shape[1] + 3, shape[2]) if len(shape) == 3 else shape
        x = _randn(generator, device, dtype, *wide)
        return {
            "x": x[:, 1 : 1 + shape[1]] if len(shape) == 3 else x,
            "weight": _randn(generator, device, dtype, shape[-1]),
        }

    def run(ops: Ops, inputs: Inputs) -> list[Tensor]:
        return [ops.rms_norm(inputs["x"], inputs["weight"], 1e-5)]

    return Case(
        op="rms_norm", name=f"{dtype_name(dtype)} {shape}", make=make, run=run, is_small=shape[0] * shape[-1] < 3000
    )


def _residual_case(shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    def make(device: torch.device) -> Inputs:
        generator = seeded("residual", shape, dtype)
        x, residual = (_randn(generator, device, dtype, *shape) for _ in range(2))
        return {"x": x, "residual": residual, "weight": _randn(generator, device, dtype, shape[-1])}

    def run(ops: Ops, inputs: Inputs) -> list[Tensor]:
        return list(ops.rms_norm(inputs["x"], inputs["weight"], 1e-5, inputs["residual"]))

    return Case(op="rms_norm", name=f"residual {dtype_name(dtype)} {shape}", make=make, run=run)


def _rotary_case(tokens: int, heads: int, kv_heads: int, dim: int, rotary_dim: int, dtype: torch.dtype) -> Case:
    def make(device: torch.device) -> Inputs:
        generator = seeded("rotary", tokens, heads, dim, dtype)
        qkv = _randn(generator, device, dtype, tokens, heads + 2 * kv_heads, dim)
        table = rotary_cos_sin(
            RotaryConfig(head_dim=dim, rotary_dim=rotary_dim, theta=500.0, max_position=5000), dtype, str(device)
        )
        positions = torch.randint(0, 5000, (tokens,), generator=generator).to(device)
        q, k = qkv[:, :heads], qkv[:, heads : heads + kv_heads]
        return {"q": q, "k": k, "positions": positions, "cos_sin": table}

    def run(ops: Ops, inputs: Inputs) -> list[Tensor]:
        return list(ops.apply_rotary(inputs["q"], inputs["k"], inputs["positions"], inputs["cos_sin"]))

    def magnitude(inputs: Inputs) -> list[Tensor]:
        # A rotated number is the sum of two products, neither larger than the pair it comes from.
        return [_pair_sizes(inputs[name], rotary_dim) for name in ("q", "k")]

    name = f"{dtype_name(dtype)} {tokens}x{heads}+{kv_heads}x{dim} turns {rotary_dim}"
    return Case(op="apply_rotary", name=name, make=make, run=run, magnitude=magnitude, is_small=tokens < 4)


def _pair_sizes(x_THD: Tensor, rotary_dim: int) -> Tensor:
    sizes = x_THD.float().abs().clone()
    first, second = sizes[..., :rotary_dim].chunk(2, dim=-1)
    sizes[..., :rotary_dim] = torch.cat((first + second, first + second), dim=-1)
    return sizes


def _silu_case(num_tokens: int, width: int, dtype: torch.dtype) -> Case:
    def make(device: torch.device) -> Inputs:
        wide = _randn(seeded("silu", num_tokens, width, dtype), device, dtype, num_tokens, 2 * width + 16) * 3
        return {"x": wide[:, : 2 * width]}

    return Case(
        op="silu_mul",
        name=f"{dtype_name(dtype)} {num_tokens}x{width}",
        make=make,
        run=lambda ops, inputs: [ops.silu_mul(inputs["x"])],
        is_small=width < 100,
    )


def _store_case(tokens: int, heads: int, size: int, dim: int, dtype: torch.dtype, *, far: bool = False) -> Case:
    """`far`: on a GPU the cache has more than 2**31 elements before the blocks that are written, which alone are compared."""
    blocks, layers = -(-2 * tokens // size) + 2, 3

    def make(device: torch.device) -> Inputs:
        generator = seeded("store", tokens, heads, size, dim, dtype)
        base = 2**31 // (layers * 2 * heads * size * dim) + 1 if far and device.type == "cuda" else 0
        kv_cache = torch.empty(base + blocks, layers, 2, heads, size, dim, dtype=dtype, device=device)
        kv_cache[base:] = 0
        qkv = _randn(generator, device, dtype, tokens, 3 * heads, dim)
        slots = torch.randperm(blocks * size, generator=generator)[:tokens] + base * size
        slots[tokens // 2] = -1 if tokens > 1 else slots[0]
        k, v = qkv[:, heads : 2 * heads], qkv[:, 2 * heads :]
        return {"k": k, "v": v, "kv_cache": kv_cache, "slots": slots.to(device), "base": base}

    def run(ops: Ops, inputs: Inputs) -> list[Tensor]:
        layer = inputs["kv_cache"][:, 1]
        ops.store_kv(inputs["k"], inputs["v"], layer[:, 0], layer[:, 1], inputs["slots"])
        return [inputs["kv_cache"][inputs["base"] :]]

    name = f"{dtype_name(dtype)} {tokens} tokens {heads}x{dim} B{size}" + (", cache past 2**31" if far else "")
    return Case(op="store_kv", name=name, make=make, run=run, is_small=tokens < 8, group="far cache" if far else "")


def _store_fp8_case(tokens: int, heads: int, size: int, dim: int) -> Case:
    """Numbers beyond what FP8 holds among them."""
    blocks = -(-2 * tokens // size) + 2

    def make(device: torch.device) -> Inputs:
        generator = seeded("store fp8", tokens, heads, size, dim)
        qkv = _randn(generator, device, torch.bfloat16, tokens, 3 * heads, dim) * 200
        slots = torch.randperm(blocks * size, generator=generator)[:tokens]
        return {
            "k": qkv[:, heads : 2 * heads],
            "v": qkv[:, 2 * heads :],
            "kv_cache": torch.zeros(blocks, 2, 2, heads, size, dim, device=device).to(torch.float8_e4m3fn),
            "slots": slots.to(device),
            "kv_scales": (0.5 + torch.rand(2, heads, generator=generator)).to(device),
        }

    def run(ops: Ops, inputs: Inputs) -> list[Tensor]:
        layer = inputs["kv_cache"][:, 1]
        ops.store_kv_fp8(inputs["k"], inputs["v"], layer[:, 0], layer[:, 1], inputs["slots"], inputs["kv_scales"])
        return [inputs["kv_cache"]]

    name = f"{tokens} tokens {heads}x{dim} B{size}"
    return Case(op="store_kv_fp8", name=name, make=make, run=run, is_small=tokens < 8)


def _copy_case(dtype: torch.dtype, dim: int) -> Case:
    def make(device: torch.device) -> Inputs:
        kv_cache = _randn(seeded("copy", dtype, dim), device, dtype, 6, 3, 2, 3, 16, dim)
        return {"kv_cache": kv_cache, "pairs": torch.tensor([[0, 4], [0, 1], [5, 2]], device=device)}

    def run(ops: Ops, inputs: Inputs) -> list[Tensor]:
        ops.copy_blocks(inputs["kv_cache"], inputs["pairs"])
        return [inputs["kv_cache"]]

    return Case(op="copy_blocks", name=f"{dtype_name(dtype)} D{dim}", make=make, run=run, is_small=dim == 24)
