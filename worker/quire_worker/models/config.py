"""A model's shape, read from the `config.json` of a Hugging Face checkpoint.

Knows every spelling of a field (transformers 4 and 5) and every default that transformers applies, and turns them into plain values that
the decoder needs. Whatever would change the model's output and is not built here is refused by name: a model must never be
served a little wrong. Knows nothing of tensors, devices or files other than this one.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from quire_worker.errors import LoadError
from quire_worker.models.fields import Fields
from quire_worker.models.quantization_config import Fp8Format, parse_quantization_config
from quire_worker.models.rope import RopeConfig, parse_rope

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class MoeConfig:
    """Mixture of experts in place of the MLP."""

    num_experts: int
    num_experts_per_token: int
    intermediate_size: int
    """Width of one expert."""
    normalises_weights: bool
    """The chosen experts' weights are divided by their sum."""
    layers: frozenset[int]
    """Layers that have experts; the others have a plain MLP."""
    prefix: str
    """Name of the block inside a layer: `mlp` or `block_sparse_moe`."""
    expert_names: tuple[str, str, str]
    """Names of an expert's gate, up and down projection."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One decoder-only transformer. Sizes are element counts."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position: int
    """Positions the checkpoint was made for."""
    rope: RopeConfig
    windows: tuple[int | None, ...]
    """By layer: tokens it looks back, itself included. None: all."""
    has_qkv_bias: bool
    has_output_bias: bool
    has_mlp_bias: bool
    has_qk_norm: bool
    """An RMS norm over each head's query and key, before rotary."""
    ties_embeddings: bool
    """The output head is the embedding matrix."""
    moe: MoeConfig | None
    dtype: str | None
    """The checkpoint's, one of DTYPES. None: the file does not say."""
    fp8: Fp8Format | None
    """How the checkpoint's FP8 weights are scaled. None: it has none."""
    has_head: bool = True
    """Logits come out. Without: the normalised hidden states that the head would see."""


@dataclass(frozen=True, kw_only=True)
class _Family:
    """What an architecture adds to the common decoder, beyond what its config.json says."""

    default_theta: float = 10_000.0
    default_head_dim: int | None = None
    has_qk_norm: bool = False
    always_qkv_bias: bool = False
    reads_attention_bias: bool = False
    reads_mlp_bias: bool = False
    window: str = "none"
    """"none", "all" (sliding_window concerns every layer) or "layers" (layer_types, or those from max_window_layers on)."""
    default_window: int | None = None
    window_needs_flag: bool = False
    """sliding_window counts only with use_sliding_window."""
    moe: str | None = None


_FAMILIES = {
    "LlamaForCausalLM": _Family(reads_attention_bias=True, reads_mlp_bias=True),
    "MistralForCausalLM": _Family(window="all", default_window=4096),
    "Qwen2ForCausalLM": _Family(always_qkv_bias=True, window="layers", default_window=4096, window_needs_flag=True),
    "Qwen3ForCausalLM": _Family(
        default_head_dim=128,
        has_qk_norm=True,
        reads_attention_bias=True,
        window="layers",
        default_window=4096,
        window_needs_flag=True,
    ),
    "Qwen3MoeForCausalLM": _Family(
        has_qk_norm=True,
        reads_attention_bias=True,
        window="all",
        default_window=4096,
        window_needs_flag=True,
        moe="qwen3",
    ),
    "MixtralForCausalLM": _Family(default_theta=1_000_000.0, window="all", moe="mixtral"),
}

SUPPORTED_ARCHITECTURES = tuple(_FAMILIES)


def load_model_config(model_dir: Path) -> ModelConfig:
    """Read `model_dir/config.json`. Raises LoadError naming the file or the field and what is supported."""
    return parse_model_config(read_config_json(model_dir), source=str(model_dir / "config.json"))


def read_config_json(model_dir: Path) -> dict[str, Any]:
    """The object in `model_dir/config.json`. Raises LoadError naming the file."""
    path = model_dir / "config.json"
    if not model_dir.is_dir():
        raise LoadError(f"--model {model_dir}: no such folder; give the folder of a Hugging Face checkpoint")
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except FileNotFoundError as error:
        raise LoadError(f"{path} is missing: {model_dir} is not the folder of a Hugging Face checkpoint") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise LoadError(f"{path} is not a JSON object ({error}): download it again") from error


def parse_model_config(raw: dict[str, Any], source: str = "config.json") -> ModelConfig:
    """The decoder's shape from a parsed config.json; `source` names the file in errors. Raises LoadError."""
    fields = Fields(raw, source)
    architecture = _architecture(fields)
    family = _FAMILIES[architecture]
    _refuse_unsupported(fields)
    hidden_size = fields.positive_int("hidden_size")
    num_layers = fields.positive_int("num_hidden_layers")
    num_heads = fields.positive_int("num_attention_heads")
    num_kv_heads = fields.positive_int("num_key_value_heads", default=num_heads)
    if num_heads % num_kv_heads:
        raise fields.error("num_key_value_heads", f"must divide num_attention_heads ({num_heads})")
    max_position = fields.positive_int("max_position_embeddings")
    has_attention_bias = family.reads_attention_bias and fields.boolean("attention_bias", default=False)
    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.positive_int("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.positive_int("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=_head_dim(fields, family, hidden_size, num_heads),
        rms_norm_eps=fields.number("rms_norm_eps", default=1e-6),
        max_position=max_position,
        rope=parse_rope(fields, family.default_theta, max_position),
        windows=_windows(fields, family, num_layers),
        has_qkv_bias=family.always_qkv_bias or has_attention_bias,
        has_output_bias=has_attention_bias,
        has_mlp_bias=family.reads_mlp_bias and fields.boolean("mlp_bias", default=False),
        has_qk_norm=family.has_qk_norm,
        ties_embeddings=fields.boolean("tie_word_embeddings", default=False),
        moe=_moe(fields, family, num_layers),
        dtype=parse_dtype(fields),
        fp8=parse_quantization_config(fields),
    )


def _architecture(fields: Fields) -> str:
    names = fields.raw.get("architectures")
    known = ", ".join(SUPPORTED_ARCHITECTURES)
    if not isinstance(names, list) or not names:
        raise fields.error("architectures", f"must name the model's class; supported: {known}")
    for name in names:
        if name in _FAMILIES:
            return str(name)
    raise fields.error("architectures", f"is not supported; supported: {known}")


def _refuse_unsupported(fields: Fields) -> None:
    """Fields that change what the model computes and that the decoder does not implement."""
    act = fields.raw.get("hidden_act", "silu")
    if act not in ("silu", "swish"):
        raise fields.error("hidden_act", "is not supported; supported: silu")
    if fields.raw.get("is_encoder_decoder"):
        raise fields.error("is_encoder_decoder", "is not supported; supported: decoder-only models")


def _head_dim(fields: Fields, family: _Family, hidden_size: int, num_heads: int) -> int:
    if fields.raw.get("head_dim") is None and family.default_head_dim is None and hidden_size % num_heads:
        raise fields.error("hidden_size", f"must be a multiple of num_attention_heads ({num_heads}) without head_dim")
    head_dim = fields.positive_int("head_dim", default=family.default_head_dim or hidden_size // num_heads)
    if head_dim % 2:
        raise fields.error("head_dim", "must be even: rotary embedding turns pairs")
    return head_dim


def _windows(fields: Fields, family: _Family, num_layers: int) -> tuple[int | None, ...]:
    is_on = family.window != "none" and (
        not family.window_needs_flag or fields.boolean("use_sliding_window", default=False)
    )
    window = fields.optional_positive_int("sliding_window", default=family.default_window) if is_on else None
    if family.window == "layers" and fields.raw.get("layer_types") is not None:
        return _windows_of_types(fields, window, num_layers)
    if window is None:
        return (None,) * num_layers
    first = fields.integer("max_window_layers", default=28) if family.window == "layers" else 0
    return tuple(window if layer >= first else None for layer in range(num_layers))


def _windows_of_types(fields: Fields, window: int | None, num_layers: int) -> tuple[int | None, ...]:
    types = fields.raw["layer_types"]
    if not isinstance(types, list) or len(types) != num_layers:
        raise fields.error("layer_types", f"must list num_hidden_layers ({num_layers}) types")
    if not set(types) <= {"full_attention", "sliding_attention"}:
        raise fields.error("layer_types", "is not supported; supported: full_attention, sliding_attention")
    if "sliding_attention" in types and window is None:
        raise fields.error("layer_types", "has sliding_attention, which needs use_sliding_window and sliding_window")
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def _moe(fields: Fields, family: _Family, num_layers: int) -> MoeConfig | None:
    if family.moe is None:
        return None
    num_experts = _num_experts(fields, default=8 if family.moe == "mixtral" else 128)
    per_token = fields.positive_int("num_experts_per_tok", default=2 if family.moe == "mixtral" else 8)
    if per_token > num_experts:
        raise fields.error("num_experts_per_tok", f"exceeds the number of experts ({num_experts})")
    if family.moe == "mixtral":
        return MoeConfig(
            num_experts=num_experts,
            num_experts_per_token=per_token,
            intermediate_size=fields.positive_int("intermediate_size"),
            normalises_weights=True,
            layers=frozenset(range(num_layers)),
            prefix="block_sparse_moe",
            expert_names=("w1", "w3", "w2"),
        )
    step = fields.positive_int("decoder_sparse_step", default=1)
    dense = set(fields.raw.get("mlp_only_layers") or ())
    return MoeConfig(
        num_experts=num_experts,
        num_experts_per_token=per_token,
        intermediate_size=fields.positive_int("moe_intermediate_size", default=768),
        normalises_weights=fields.boolean("norm_topk_prob", default=False),
        layers=frozenset(layer for layer in range(num_layers) if layer not in dense and (layer + 1) % step == 0),
        prefix="mlp",
        expert_names=("gate_proj", "up_proj", "down_proj"),
    )


def _num_experts(fields: Fields, default: int) -> int:
    name = "num_experts" if "num_experts" in fields.raw else "num_local_experts"
    return fields.positive_int(name, default=default)


def parse_dtype(fields: Fields) -> str | None:
    """The checkpoint's, one of DTYPES; None: the file does not say."""
    name = "dtype" if fields.raw.get("dtype") is not None else "torch_dtype"
    value = fields.raw.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or value.removeprefix("torch.") not in DTYPES:
        raise fields.error(name, f"is not supported; supported: {', '.join(DTYPES)}")
    return value.removeprefix("torch.")
