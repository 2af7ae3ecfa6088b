"""Compiles every Triton kernel for sm_90, without a GPU. Run by test_compile.py in a process where the interpreter is off.

Prints a line `name shared_bytes` for each kernel and fails on the first that does not compile or needs more than 227 KiB shared memory.
"""

import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from quire_kernels import launch_configs
from quire_kernels.gpu import (
    copy_blocks,
    logprobs,
    paged_attention,
    penalties,
    rms_norm,
    rotary,
    sampling,
    silu_mul,
    store_kv,
    token_bias,
)

MAX_SHARED_BYTES = 227 * 1024
ELEMENT = {2: "bf16", 4: "fp32"}


def compile_kernel(name: str, kernel, types: str, num_warps: int = 4, num_stages: int = 3, **constants) -> None:
    """`types` holds the types of the arguments that are not constants, in order."""
    names = [arg for arg in kernel.arg_names if arg not in constants]
    signature = dict(zip(names, types.split(), strict=True)) | dict.fromkeys(constants, "constexpr")
    # As at run time: pointers and strides that divide by 16 let loads be wide.
    divisible = [arg for arg in names if signature[arg].startswith("*") or "stride" in arg]
    attrs = {(kernel.arg_names.index(arg),): [["tt.divisibility", 16]] for arg in divisible}
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attrs)
    options = {"num_warps": num_warps, "num_stages": num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    print(name, compiled.metadata.shared, flush=True)
    if compiled.metadata.shared > MAX_SHARED_BYTES:
        sys.exit(f"{name} needs {compiled.metadata.shared} bytes of shared memory")


def compile_attention(window: int, *, every_entry: bool) -> None:
    for (op, head_dim, size), config in launch_configs.attention_configs().items():
        if not every_entry and (head_dim, size) != (128, 2):
            continue
        e = f"*{ELEMENT[size]}"
        block_n = paged_attention.keys_per_tile(16, config.block_n)
        shape = {
            "GROUP": 4,
            "HEAD_DIM": head_dim,
            "BLOCK_D": head_dim,
            "BLOCK_SIZE": 16,
            "WINDOW": window,
            "BLOCK_M": config.block_m,
            "BLOCK_N": block_n,
        }
        name, launch = f"{op}/{head_dim}/{e}/{window}", {"num_warps": config.num_warps, "num_stages": config.num_stages}
        if op == "prefill":
            types = f"{e} {e} {e} {e} *i32 *i32 *i32 fp32 i32 i64 i64 i64"
            compile_kernel(name, paged_attention.prefill_kernel, types, **launch, **shape)
        else:
            types = f"{e} {e} {e} *fp32 *fp32 *i32 *i32 fp32 i64 i64 i64"
            split = {"SPLIT_LEN": launch_configs.DECODE_SPLIT_LEN}
            compile_kernel(name, paged_attention.decode_kernel, types, **launch, **shape, **split)
    shape = {"HEAD_DIM": 128, "BLOCK_D": 128, "WINDOW": window, "BLOCK_S": paged_attention.REDUCE_SPLITS}
    split = {"SPLIT_LEN": launch_configs.DECODE_SPLIT_LEN}
    compile_kernel("reduce", paged_attention.reduce_kernel, "*fp32 *fp32 *bf16 *i32 i32", **shape, **split)


def compile_small_kernels() -> None:
    heads = {"NUM_HEADS": 32, "NUM_KV_HEADS": 8, "HEAD_DIM": 128}
    compile_kernel("rotary", rotary.rotary_kernel, "*bf16 *bf16 *i64 *fp32 i64 i64", **heads, HALF=64, BLOCK=64)
    cache = {"BLOCK_SIZE": 16, "NUM_HEADS": 8, "HEAD_DIM": 128, "BLOCK": 1024}
    compile_kernel("store_kv", store_kv.store_kv_kernel, "*bf16 *bf16 *bf16 *bf16 *i64 i64 i64 i64 i64", **cache)
    compile_kernel("copy_blocks", copy_blocks.copy_blocks_kernel, "*bf16 *i64 i64", BLOCK=4096)
    for has_residual in (False, True):
        row = {"SIZE": 4096, "BLOCK": 4096, "HAS_RESIDUAL": has_residual}
        compile_kernel("rms_norm", rms_norm.rms_norm_kernel, "*bf16 *bf16 *bf16 *bf16 i64 i64 i32 fp32", **row)
    compile_kernel("silu_mul", silu_mul.silu_mul_kernel, "*bf16 *bf16 i64 i32", BLOCK=1024)
    penalty_types = "*fp32 *i64 *i1 *i32 *fp32 *fp32 *fp32 i64 i32"
    compile_kernel("penalties", penalties.penalties_kernel, penalty_types, BLOCK=1024)
    compile_kernel("count_tokens", penalties.count_tokens_kernel, "*i32 *i64 *i64 i32 i32", BLOCK=128)
    compile_kernel("bias", token_bias.bias_kernel, "*fp32 *i64 *i64 *fp32 i32 i64", BLOCK=128)
    compile_kernel("bitmask", token_bias.bitmask_kernel, "*fp32 *i64 *i32 i64 i32 i32", BLOCK=1024)
    sample_types = "*fp32 *fp32 *i32 *fp32 *fp32 *i64 *i64 *i64 i64 i32"
    vocabulary = launch_configs.row_config("vocabulary")
    launch = {"num_warps": vocabulary.num_warps, "BLOCK": vocabulary.block}
    compile_kernel("sample", sampling.sample_kernel, sample_types, PURPOSE=0, **launch)
    logprob_types = "*fp32 *i64 *fp32 *i64 *i64 *fp32 i64 i32 i32"
    compile_kernel("top_logprobs", logprobs.top_logprobs_kernel, logprob_types, **launch)


if __name__ == "__main__":
    compile_small_kernels()
    compile_attention(0, every_entry="--every-entry" in sys.argv)
    compile_attention(4096, every_entry="--every-entry" in sys.argv)
