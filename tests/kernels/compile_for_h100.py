"""Compiles every Triton kernel for sm_90, without a GPU. Run by test_compile.py in a process where the interpreter is off.

Prints a line `name shared_bytes registers spilled_bytes` for each kernel and fails on the first that does not compile, needs more than
227 KiB shared memory, or, if hot, spills registers.
"""

import re
import sys
from contextlib import redirect_stdout
from io import StringIO

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from quire_kernels import launch_configs
from quire_kernels.gpu import (
    append_tokens,
    copy_blocks,
    decode_attention,
    decode_plan,
    invariant_matmul,
    logprobs,
    matmul_fp8,
    moe,
    moe_align,
    moe_fp8,
    paged_attention,
    penalties,
    prefill_attention,
    prepare_inputs,
    quantize_fp8,
    rms_norm,
    rotary,
    rotate_and_store,
    sampling,
    sampling_pivots,
    silu_mul,
    store_kv,
    token_bias,
)

MAX_SHARED_BYTES = 227 * 1024
ELEMENT = {2: "bf16", 4: "fp32"}


def registers_and_spills(ptxas_log: str) -> tuple[int, int]:
    """Registers of a thread, and the bytes that it spills."""
    registers = re.search(r"Used (\d+) registers", ptxas_log)
    spills = re.findall(r"(\d+) bytes spill stores", ptxas_log)
    assert registers and spills, ptxas_log
    return int(registers[1]), sum(map(int, spills))


def compile_kernel(
    name: str, kernel, types: str, num_warps: int = 4, num_stages: int = 3, is_hot: bool = False, **constants
) -> None:
    """`types` holds the types of the arguments that are not constants, in order."""
    names = [arg for arg in kernel.arg_names if arg not in constants]
    signature = dict(zip(names, types.split(), strict=True)) | dict.fromkeys(constants, "constexpr")
    # As at run time: pointers and strides that divide by 16 let loads be wide.
    divisible = [arg for arg in names if signature[arg].startswith("*") or "stride" in arg]
    attrs = {(kernel.arg_names.index(arg),): [["tt.divisibility", 16]] for arg in divisible}
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attrs)
    options = {"num_warps": num_warps, "num_stages": num_stages}
    with redirect_stdout(StringIO()) as log:
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    registers, spilled = registers_and_spills(log.getvalue())
    print(name, compiled.metadata.shared, registers, spilled, flush=True)
    if is_hot and spilled:
        sys.exit(f"{name} spills {spilled} bytes a thread with {registers} registers")
    if compiled.metadata.shared > MAX_SHARED_BYTES:
        sys.exit(f"{name} needs {compiled.metadata.shared} bytes of shared memory")


def compile_attention(window: int, *, every_entry: bool) -> None:
    for (op, head_dim, size), config in launch_configs.attention_configs().items():
        if every_entry or head_dim == 128:
            compile_attention_entry(op, config, head_dim, ELEMENT[size], ELEMENT[size], window)
    if window:
        return
    invariant = paged_attention.invariant_config(128, 2)
    for op in ("prefill", "decode"):
        compile_attention_entry(f"{op}/invariant", invariant, 128, "bf16", "bf16", window)
        config = launch_configs.attention_config(op, 128, 2)
        compile_attention_entry(f"{op}/fp8", config, 128, "bf16", "fp8e4nv", window)


def compile_attention_entry(op: str, config, head_dim: int, element: str, cached: str, window: int) -> None:
    q, cache, scales = f"*{element}", f"*{cached}", "*fp32" if cached == "fp8e4nv" else ""
    shape = {
        "GROUP": 4,
        "HEAD_DIM": head_dim,
        "BLOCK_SIZE": 16,
        "WINDOW": window,
        "BLOCK_M": config.block_m,
        "BLOCK_N": paged_attention.keys_per_tile(16, config.block_n),
    } | ({} if scales else {"kv_scales": None})
    launch = {"num_warps": config.num_warps, "num_stages": config.num_stages, "is_hot": True}
    name = f"{op}/{head_dim}/{element}/{window}"
    if op.startswith("prefill"):
        types = f"{q} {cache} {cache} {scales} {q} *i32 *i32 *i32 fp32 i32 i64 i64 i64"
        split_len = paged_attention.INVARIANT_SPLIT_LEN if op.endswith("invariant") else 0
        compile_kernel(name, prefill_attention.prefill_kernel, types, **launch, **shape, SPLIT_LEN=split_len)
    else:
        types = f"{q} {cache} {cache} {scales} {q} *fp32 *fp32 *i32 *i32 fp32 i64 i64 i64"
        compile_kernel(name, decode_attention.decode_kernel, types, **launch, **shape, LANES=4)


def compile_decode_helpers() -> None:
    for block_s in (1, paged_attention.REDUCE_SPLITS):
        shape = {"GROUP": 4, "HEAD_DIM": 128, "LANES": 4, "BLOCK_S": block_s}
        compile_kernel("reduce", decode_attention.reduce_kernel, "*fp32 *fp32 *bf16 *i32", is_hot=True, **shape)
    for split_len in (0, paged_attention.INVARIANT_SPLIT_LEN):
        plan = {"SPLIT_LEN": split_len, "MIN_LEN": 256, "ALIGN": 128, "WINDOW": 4096, "BLOCK": 1024}
        types = "*i32 *i32 *i32 *i32 i32 i32 i32"
        compile_kernel("plan_decode", decode_plan.plan_decode_kernel, types, is_hot=True, **plan)


def compile_small_kernels() -> None:
    heads = {"NUM_HEADS": 32, "NUM_KV_HEADS": 8, "HEAD_DIM": 128}
    compile_kernel("rotary", rotary.rotary_kernel, "*bf16 *bf16 *i64 *fp32 i64 i64", **heads, HALF=64, BLOCK=64)
    cache = {"BLOCK_SIZE": 16, "NUM_HEADS": 8, "HEAD_DIM": 128, "BLOCK": 1024}
    compile_kernel(
        "store_kv", store_kv.store_kv_kernel, "*bf16 *bf16 *bf16 *bf16 *i64 i64 i64 i64 i64", kv_scales=None, **cache
    )
    types = "*bf16 *bf16 *fp8e4nv *fp8e4nv *i64 *fp32 i64 i64 i64 i64"
    compile_kernel("store_kv/fp8", store_kv.store_kv_kernel, types, **cache)
    compile_kernel("copy_blocks", copy_blocks.copy_blocks_kernel, "*bf16 *i64 i64", BLOCK=4096)
    for has_residual in (False, True):
        row = {"SIZE": 4096, "BLOCK": 4096, "HAS_RESIDUAL": has_residual}
        compile_kernel("rms_norm", rms_norm.rms_norm_kernel, "*bf16 *bf16 *bf16 *bf16 i64 i64 i32 fp32", **row)
    compile_kernel("silu_mul", silu_mul.silu_mul_kernel, "*bf16 *bf16 i64 i32", BLOCK=1024)
    penalty_types = "*fp32 *i64 *i1 *i32 *fp32 *fp32 *fp32 i64 i32"
    compile_kernel("penalties", penalties.penalties_kernel, penalty_types, BLOCK=1024)
    compile_kernel("count_tokens", penalties.count_tokens_kernel, "*i32 *i64 *i64 i32 i32", BLOCK=128)
    compile_kernel("append_tokens", append_tokens.append_tokens_kernel, "*i64 *i64 *i32 *i64 i32 i64", BLOCK=128)
    compile_kernel("bias", token_bias.bias_kernel, "*fp32 *i64 *i64 *fp32 i32 i32 i64", BLOCK=128)
    compile_kernel("bitmask", token_bias.bitmask_kernel, "*fp32 *i64 *i32 i64 i32 i32", BLOCK=1024)
    compile_sampling()


def compile_sampling() -> None:
    vocabulary = launch_configs.row_config("vocabulary")
    launch = {"num_warps": vocabulary.num_warps, "BLOCK": vocabulary.block, "is_hot": True}
    tiles, splits = {"TILES": sampling.TILES_PER_SPLIT}, {"BLOCK_S": 16}
    for logits in ("bf16", "fp32"):
        types = f"*{logits} *fp32 *fp32 *i32 i64 i32"
        compile_kernel(f"sample/top/{logits}", sampling.top_kernel, types, **launch, **tiles)
    types = "*bf16 *fp32 *i32 *fp32 *fp32 *i32 *i32 *fp32 *i32 i64 i32 i32"
    room = {"ROOM": sampling.MAX_CANDIDATES}
    compile_kernel("sample/pivot", sampling_pivots.pivot_kernel, types, **launch, **splits, **room)
    types = "*bf16 *fp32 *fp32 *i64 *i64 *fp32 *i32 *i32 *i32 *fp32 i64 i32"
    compile_kernel("sample/draw", sampling.draw_kernel, types, PURPOSE=0, **launch, **tiles, **splits)
    compile_kernel("sample/choose", sampling.choose_kernel, "*fp32 *i32 *i64 i32 i32", num_warps=1, **splits)
    types = "*fp32 *i64 *fp32 *i64 *i64 *fp32 *fp32 *i32 i64 i32 i32"
    compile_kernel("top_logprobs", logprobs.top_logprobs_kernel, types, **launch, ROOM=logprobs.MAX_CANDIDATES)


def compile_fused_kernels() -> None:
    heads = {"NUM_HEADS": 32, "NUM_KV_HEADS": 8, "HEAD_DIM": 128, "HALF": 64, "BLOCK_SIZE": 16}
    for cached in ("bf16", "fp8e4nv"):
        scales = "*fp32" if cached == "fp8e4nv" else ""
        types = f"*bf16 *bf16 *bf16 *bf16 *{cached} *{cached} *i64 *bf16 *i64 *bf16 *bf16 {scales} i64 i64 fp32"
        given = heads if scales else heads | {"kv_scales": None}
        kernel = rotate_and_store.rotate_and_store_kernel
        compile_kernel(f"rotate_and_store/{cached}", kernel, types, num_warps=16, is_hot=True, **given)
    types = "*i64 *i32 *i32 *i64 *i32 *i32 *i64 *i64 i32 i32 i64 i64 i64"
    compile_kernel("tokens", prepare_inputs.tokens_kernel, types, NUM_GROUPS=2, BLOCK_SIZE=16, BLOCK=128)
    compile_kernel("rows", prepare_inputs.rows_kernel, "*i64 *i32 *i64 *i32 *i32 *i32 i32 i64 i64", BLOCK=1024)
    quantize = quantize_fp8.quantize_fp8_kernel
    widest = quantize_fp8.WIDEST
    for work, size, group in (
        (0, 4096, 4096),
        (1, 14336, 14336),
        (1, 14336, 128),
        (0, widest, widest),
        (1, widest, widest),
    ):
        together = min(size // group, quantize_fp8.GROUPS_TOGETHER)
        given = {"weight": None, "residual": None, "SIZE": size, "GROUP": group, "WORK": work, "TOGETHER": together}
        given["num_warps"] = launch_configs.warps_for(together * group)
        compile_kernel(f"quantize_fp8/{work}", quantize, "*bf16 *fp8e4nv *fp32 i64 fp32", is_hot=True, **given)
    types = "*bf16 *bf16 *bf16 *fp8e4nv *fp32 i64 fp32"
    for size, group in ((4096, 128), (4096, 4096), (widest, widest), (widest, 128)):
        given = {"SIZE": size, "GROUP": group, "WORK": 2, "TOGETHER": size // group}
        given["num_warps"] = launch_configs.warps_for(size)
        compile_kernel("rms_norm_fp8", quantize, types, is_hot=True, **given)


def compile_products() -> None:
    types = "*i64 *i32 *i32 *i32 i32 i32"
    pairs = {"NUM_EXPERTS": 128, "BLOCK_M": 16, "BLOCK_X": 256, "BLOCK": moe_align.CHUNK}
    compile_kernel("moe_align", moe_align.align_kernel, types, num_warps=8, **pairs)
    for block_m in (16, 64, 128):
        for is_gated in (True, False):
            launch = moe.tile_shape(block_m, 2, is_gated=is_gated)
            given = {"PAIRS_PER_ROW": 8, "SIZE_N": 768, "SIZE_K": 2048, "GATED": is_gated, "TOGETHER": 8}
            types = "*bf16 *bf16 *bf16 *i32 *i32 i32 i32 i64"
            name = f"experts/{block_m}/{is_gated}"
            compile_kernel(name, moe.expert_kernel, types, is_hot=True, BLOCK_M=block_m, **launch, **given)
            launch, types = (
                moe_fp8.tile_shape(block_m, is_gated=is_gated),
                "*fp8e4nv *fp32 *fp8e4nv *fp32 *bf16 *i32 *i32 i32 i32",
            )
            for is_blocks in (True, False):
                fp8 = {"BLOCK_M": block_m, "IS_BLOCKS": is_blocks, **given, **launch}
                name = f"experts_fp8/{block_m}/{is_gated}/{is_blocks}"
                compile_kernel(name, moe_fp8.expert_fp8_kernel, types, is_hot=True, **fp8)
    compile_kernel("combine", moe.combine_kernel, "*bf16 *fp32 *i64 *bf16 i32", PAIRS_PER_ROW=8, BLOCK=1024)
    for num_outputs, types in ((4096, "bf16"), (28672, "bf16"), (4096, "fp8e4nv"), (28672, "fp8e4nv"), (4096, "fp32")):
        launch = invariant_matmul.tile_shape(num_outputs, {"bf16": 2, "fp8e4nv": 1, "fp32": 4}[types])
        given = {"SIZE_N": num_outputs, "SIZE_K": 4096, "TOGETHER": 8, **launch}
        if types != "fp8e4nv":
            signature, given = (
                f"*{types} *{types} *{types} *{types} i32 i64",
                {**given, "x_scales": None, "w_scales": None},
            )
        else:
            signature, given = "*fp8e4nv *fp32 *fp8e4nv *fp32 *bf16 i32 i64", {**given, "bias": None}
        kernel = invariant_matmul.invariant_matmul_kernel
        compile_kernel(f"invariant_matmul/{num_outputs}/{types}", kernel, signature, is_hot=True, **given)
    for num_tokens in (1, 64, 512):
        launch, size = matmul_fp8.tile_shape(num_tokens), {"SIZE_N": 4096, "SIZE_K": 4096, "TOGETHER": 8}
        types = "*fp8e4nv *fp32 *fp8e4nv *fp32 *bf16 i32"
        name = f"matmul_fp8_blocks/{num_tokens}"
        compile_kernel(name, matmul_fp8.matmul_fp8_blocks_kernel, types, is_hot=True, **launch, **size)


if __name__ == "__main__":
    triton.knobs.compilation.always_compile = triton.knobs.nvidia.dump_ptxas_log = True
    compile_decode_helpers()
    compile_small_kernels()
    compile_fused_kernels()
    compile_products()
    compile_attention(0, every_entry="--every-entry" in sys.argv)
    compile_attention(4096, every_entry="--every-entry" in sys.argv)
