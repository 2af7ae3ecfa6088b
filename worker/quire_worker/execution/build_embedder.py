"""Builds an embedder: device, weights, and for decoders the scratch KV cache, timing each phase.

Like build.py for runners, with which it shares how devices, types and operations are chosen. Everything that can be wrong with a model
folder or a setting is raised as LoadError before the first request.
"""

import dataclasses
import logging
from dataclasses import dataclass
from typing import Any

import torch

from quire_kernels.cpu.linear import DTYPES as NATIVE_DTYPES
from quire_kernels.cpu.native_attention import fits_native_attention
from quire_kernels.cpu.native_library import NativeLibrary, native_library
from quire_kernels.ops import OpsName, load_ops
from quire_worker.embedding import Embedder, EmbeddingInfo, EmbedInput
from quire_worker.errors import LoadError
from quire_worker.execution.build import PhaseClock
from quire_worker.execution.device import (
    DTYPES,
    resolve_device,
    resolve_dtype,
    resolve_ops,
    resolve_quantization,
    resolve_threads,
)
from quire_worker.execution.embedder import DecoderEmbedder, EncoderEmbedder
from quire_worker.execution.kv_memory import KVShape, decide_num_blocks, host_free_bytes, kv_shape
from quire_worker.execution.options import RunnerOptions
from quire_worker.models.checkpoint_names import decoder_checkpoint, encoder_checkpoint
from quire_worker.models.config import parse_model_config, read_config_json
from quire_worker.models.decoder import Decoder
from quire_worker.models.embedding_config import (
    EmbeddingConfig,
    Pooling,
    Task,
    decoder_raw,
    is_encoder,
    load_embedding_config,
)
from quire_worker.models.encoder import Encoder
from quire_worker.models.encoder_config import parse_encoder_config
from quire_worker.models.fp8_weights import find_stored_fp8
from quire_worker.models.kv_groups import decide_kv_layout
from quire_worker.models.linear import LinearFactory, Quantization
from quire_worker.models.safetensors_reader import Checkpoint, open_checkpoint
from quire_worker.models.score_head import PairScorer
from quire_worker.models.weight_slots import WeightSlots
from quire_worker.plan import KVGroup, ModelInfo

_log = logging.getLogger(__name__)
_WARM_UP_TOKENS = (1, 30)
_GPU_CACHE_SHARE = 0.5
"""Of the memory that weights leave; activations of a long input take the rest."""


@dataclass(frozen=True, kw_only=True)
class _Target:
    """Where and how the model runs."""

    device: torch.device
    dtype: torch.dtype
    ops_name: OpsName
    library: NativeLibrary | None
    quantization: Quantization


@dataclass(frozen=True, kw_only=True)
class _Built:
    """An embedder and what is to be told of it."""

    embedder: Embedder
    target: _Target
    architecture: str
    vocab_size: int
    longest: int
    """Tokens of an input at most."""
    hidden_size: int
    model: Encoder | Decoder
    kv_size_bytes: int = 0


def build_embedder(options: RunnerOptions, task: Task, pooling: Pooling | None = None) -> tuple[Embedder, ModelInfo]:
    """An embedder ready for its first batch; `task` is embed or score. Raises LoadError with the file or flag at fault and the fix."""
    clock = PhaseClock()
    with clock.phase("config"):
        raw = read_config_json(options.model_dir)
        checkpoint = open_checkpoint(options.model_dir)
        encodes = is_encoder(raw)
        embedding = load_embedding_config(options.model_dir, raw, is_decoder=not encodes, pooling=pooling)
    with clock.phase("weights"):
        build = _build_encoder if encodes else _build_decoder
        built = build(options, raw, checkpoint, embedding)
    with clock.phase("warm_up"):
        for num_tokens in _WARM_UP_TOKENS:
            built.embedder.embed([EmbedInput(token_ids=[0] * min(num_tokens, built.longest))])
    info = ModelInfo(
        vocab_size=built.vocab_size,
        max_model_len=built.longest,
        # Nothing stays in the cache, so as much as one input may need is always free.
        num_blocks=1 + -(-built.longest // options.block_size),
        block_size=options.block_size,
        groups=[KVGroup(num_layers=1)],
        device=built.target.device.type,
        dtype=str(built.target.dtype).removeprefix("torch."),
        num_parameters=built.model.num_parameters,
        weights_size_bytes=built.model.weights_size_bytes,
        kv_size_bytes=built.kv_size_bytes,
        phases_s=clock.phases_s,
        embedding=_info(task, embedding, built.hidden_size),
        weights_read_bytes=checkpoint.size_bytes,
        weights_began_s=clock.began_s["weights"],
    )
    _log.info(
        "model ready task=%s architecture=%s parameters=%d device=%s dtype=%s quantization=%s ops=%s pooling=%s normalises=%s "
        "dimensions=%d max_model_len=%d phases_s=%s",
        task,
        built.architecture,
        info.num_parameters,
        info.device,
        info.dtype,
        built.target.quantization,
        built.target.ops_name,
        embedding.pooling,
        embedding.normalises,
        built.hidden_size if task == "embed" else 1,
        info.max_model_len,
        clock,
    )
    return built.embedder, info


def _info(task: Task, embedding: EmbeddingConfig, hidden_size: int) -> EmbeddingInfo:
    if task == "score":
        return EmbeddingInfo(task=task, dimensions=1)
    sizes = embedding.matryoshka
    return EmbeddingInfo(
        task=task,
        dimensions=hidden_size,
        can_cut=sizes is not False,
        cuts=[size for size in sizes if size <= hidden_size] if isinstance(sizes, tuple) else [],
    )


def _target(
    options: RunnerOptions,
    dtype_name: str | None,
    checkpoint: Checkpoint,
    *,
    is_stored_fp8: bool = False,
    is_encoder: bool = False,
) -> _Target:
    device = resolve_device(options.device)
    stored = DTYPES[dtype_name] if dtype_name is not None else checkpoint.dtype()
    dtype = resolve_dtype(options.dtype, stored, device)
    ops_name = resolve_ops(options.ops, device)
    if is_encoder and ops_name == "cpu" and options.ops == "auto" and options.quantization == "none":
        # Much of an encoder's time goes into torch's own operations, and torch's threads spin on the cores that C++ computes on:
        # one of the two must have all threads. On one thread both multiply equally fast.
        ops_name = "cpu-torch"
    library = native_library() if ops_name == "cpu" else None
    if device.type == "cpu":
        num_threads = resolve_threads(options.compute_threads)
        torch.set_num_threads(1 if library is not None and dtype in NATIVE_DTYPES else num_threads)
        if library is not None:
            library.set_num_threads(num_threads)
    quantization = resolve_quantization(
        options.quantization, device, dtype, ops_name, has_library=library is not None, is_stored_fp8=is_stored_fp8
    )
    return _Target(device=device, dtype=dtype, ops_name=ops_name, library=library, quantization=quantization)


def _build_encoder(
    options: RunnerOptions, raw: dict[str, Any], checkpoint: Checkpoint, embedding: EmbeddingConfig
) -> _Built:
    config = parse_encoder_config(raw, str(options.model_dir / "config.json"))
    target = _target(options, config.dtype, checkpoint, is_encoder=True)
    if target.quantization == "fp8":
        raise LoadError("--quantization fp8 is for decoders: leave it out, or use int8 or int8-weight-only on a CPU")
    slots = WeightSlots()
    linears = LinearFactory(
        slots, target.device, target.dtype, library=target.library, quantization=target.quantization
    )
    model = Encoder(config, slots=slots, device=target.device, dtype=target.dtype, linears=linears)
    head = config.score_head
    scorer = None if head is None else PairScorer(config, head, linears)
    if scorer is None or config.family != "bert":
        # BERT's pooler is for the sentence that follows; embeddings are made of hidden states.
        slots.ignore("pooler.dense.weight")
        slots.ignore("pooler.dense.bias")
    slots.load(encoder_checkpoint(checkpoint, config.family), str(options.model_dir))
    return _Built(
        embedder=EncoderEmbedder(model, config, target.device, pooling=embedding, scorer=scorer),
        target=target,
        architecture=config.architecture,
        vocab_size=config.vocab_size,
        longest=_longest(options, config.max_length, embedding),
        hidden_size=config.hidden_size,
        model=model,
    )


def _build_decoder(
    options: RunnerOptions, raw: dict[str, Any], checkpoint: Checkpoint, embedding: EmbeddingConfig
) -> _Built:
    config = parse_model_config(decoder_raw(raw), str(options.model_dir / "config.json"))
    config = dataclasses.replace(config, has_head=False)
    if embedding.pooling == "cls":
        raise LoadError(
            f"{options.model_dir}: pooling by the first token is not supported for {config.architecture}, whose first token sees "
            "no other: use --pooling last or mean"
        )
    if raw.get("is_causal") is False or raw.get("use_bidirectional_attention"):
        raise LoadError(f"{options.model_dir / 'config.json'}: a decoder whose tokens see later ones is not supported")
    checkpoint = decoder_checkpoint(checkpoint)
    stored_fp8 = find_stored_fp8(config.fp8, checkpoint)
    target = _target(options, config.dtype, checkpoint, is_stored_fp8=config.fp8 is not None)
    if target.quantization == "fp8":
        raise LoadError("--quantization fp8 is not supported with --task embed: leave it out")
    native_kv = fits_native_attention(target.dtype, config.head_dim, options.block_size)
    ops = load_ops(target.ops_name, batch_invariant=options.batch_invariant, native_kv=native_kv)
    layout = decide_kv_layout(config.windows)
    longest = _longest(options, config.max_position, embedding)
    slots = WeightSlots()
    model = Decoder(
        config,
        ops=ops,
        slots=slots,
        places=layout.places,
        device=target.device,
        dtype=target.dtype,
        num_positions=longest,
        linears=LinearFactory(
            slots,
            target.device,
            target.dtype,
            library=target.library,
            quantization=target.quantization,
            stored_fp8=stored_fp8,
            product=ops.linear if options.batch_invariant and ops.name == "triton" else None,
        ),
    )
    slots.load(checkpoint, str(options.model_dir))
    shape = kv_shape(config, layout, options.block_size, target.dtype)
    num_blocks, longest = _scratch(options, shape, longest, target.device)
    kv_cache = shape.allocate(num_blocks, target.device)
    model.bind_kv_cache(kv_cache)
    return _Built(
        embedder=DecoderEmbedder(model, kv_cache, shape, target.device, embedding),
        target=target,
        architecture=config.architecture,
        vocab_size=config.vocab_size,
        longest=longest,
        hidden_size=config.hidden_size,
        model=model,
        kv_size_bytes=num_blocks * shape.block_bytes,
    )


def _longest(options: RunnerOptions, max_position: int, embedding: EmbeddingConfig) -> int:
    """As asked, else as the model's authors intend, within what positions there are."""
    wanted = options.max_model_len
    if wanted is not None and wanted > max_position:
        raise LoadError(
            f"--max-model-len {wanted} exceeds the model's longest input ({max_position}): give at most that"
        )
    return min(wanted or embedding.max_length or max_position, max_position)


def _scratch(options: RunnerOptions, shape: KVShape, longest: int, device: torch.device) -> tuple[int, int]:
    """Blocks for one batch, and the longest input that they hold: a batch is within the budget, or one input."""
    size = shape.block_size
    is_gpu = device.type == "cuda"
    free_bytes = int(torch.cuda.mem_get_info(device)[0] * _GPU_CACHE_SHARE) if is_gpu else host_free_bytes()
    most = (decide_num_blocks(shape, options, free_bytes, is_gpu=is_gpu) - 1) // shape.num_groups
    # Each input of a batch leaves part of its last block empty.
    budget = -(-options.max_num_batched_tokens // size) + min(options.max_num_seqs, options.max_num_batched_tokens)
    if budget > most:
        raise LoadError(
            f"no room for the keys of a batch of --max-num-batched-tokens {options.max_num_batched_tokens}: lower it or "
            "--max-num-seqs, or raise --kv-cache-memory-bytes"
        )
    fitted = min(longest, most * size)
    if options.max_model_len is not None and fitted < options.max_model_len:
        raise LoadError(
            f"--max-model-len {options.max_model_len} does not fit into memory: lower it to {fitted}, or raise --kv-cache-memory-bytes"
        )
    return 1 + shape.num_groups * max(budget, -(-fitted // size)), fitted
