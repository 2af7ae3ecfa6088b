"""A checkpoint's `quantization_config`, as config.json states it: which FP8 (E4M3) formats are read, and refusals of all others.

    quant_method fp8                  `weight_scale_inv` by blocks of 128 x 128 (DeepSeek-V3, Qwen3-FP8), or `weight_scale` by tensor
    quant_method compressed-tensors   `weight_scale` by tensor, by output or by blocks of 128 x 128 (llm-compressor)

Activations are quantised anew at each step (dynamic) in all of them. Which layers are FP8 is what the tensors' own types say, not the
lists of exceptions. Knows nothing of tensors.
Sources: https://huggingface.co/docs/transformers/quantization/finegrained_fp8, https://github.com/vllm-project/compressed-tensors.
"""

from dataclasses import dataclass
from typing import Any

from quire_worker.errors import LoadError
from quire_worker.models.fields import Fields

BLOCK = [128, 128]
_SUPPORTED = (
    "supported: FP8 (E4M3) weights by tensor, by output or by blocks of 128 x 128 with dynamic activations "
    "(quant_method fp8 or compressed-tensors); or serve a float checkpoint, with --quantization if you like"
)
_FP8_KEYS = frozenset({"activation_scheme", "fmt", "weight_block_size", "modules_to_not_convert", "ignored_layers"})
_COMPRESSED_KEYS = frozenset(
    {
        "format",
        "config_groups",
        "ignore",
        "kv_cache_scheme",
        "quantization_status",
        "global_compression_ratio",
        "version",
    }
)
_STRATEGIES = {"tensor": False, "channel": False, "block": True}
"""Of weights; whether scales are by block."""
_WEIGHTS = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False}
_ACTIVATIONS = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": True}
_SCALES = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False, "strategy": "tensor"}


@dataclass(frozen=True, kw_only=True)
class Fp8Format:
    """How the FP8 weights of a checkpoint are scaled: what is meant is the stored number times its scale."""

    scale_name: str
    """Follows the layer's name, as `weight` does."""
    is_blocks: bool
    """A scale for each 128 x 128 numbers; else for each output, or one for the tensor."""


def parse_quantization_config(fields: Fields) -> Fp8Format | None:
    """None: the weights are floats. Raises LoadError naming the field that is not supported and what is."""
    raw = fields.raw.get("quantization_config")
    if raw is None:
        return None
    own = _object(fields, "quantization_config")
    match raw.get("quant_method"):
        case "fp8":
            return _parse_fp8(own)
        case "compressed-tensors":
            return _parse_compressed_tensors(own)
    raise _unsupported(own, "quant_method")


def _parse_fp8(own: Fields) -> Fp8Format:
    _refuse_others(own, _FP8_KEYS)
    if own.raw.get("activation_scheme", "dynamic") != "dynamic":
        raise _unsupported(own, "activation_scheme")
    if own.raw.get("fmt", "e4m3") not in ("e4m3", "float8_e4m3fn"):
        raise _unsupported(own, "fmt")
    block = own.raw.get("weight_block_size")
    if block is None:
        return Fp8Format(scale_name="weight_scale", is_blocks=False)
    if block != BLOCK:
        raise _unsupported(own, "weight_block_size")
    return Fp8Format(scale_name="weight_scale_inv", is_blocks=True)


def _parse_compressed_tensors(own: Fields) -> Fp8Format:
    _refuse_others(own, _COMPRESSED_KEYS)
    if own.raw.get("format") not in (None, "float-quantized"):
        raise _unsupported(own, "format")
    if own.raw.get("quantization_status") not in (None, "compressed", "frozen"):
        raise _unsupported(own, "quantization_status")
    if own.raw.get("kv_cache_scheme") is not None:
        _expect(_object(own, "kv_cache_scheme"), _SCALES)
    groups = own.raw.get("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1:
        raise _unsupported(own, "config_groups")
    all_groups = _object(own, "config_groups")
    group = _object(all_groups, next(iter(groups)))
    if group.raw.get("targets") != ["Linear"]:
        raise _unsupported(group, "targets")
    if group.raw.get("output_activations") is not None:
        raise _unsupported(group, "output_activations")
    is_blocks = _parse_weights(_object(group, "weights"))
    activations = _object(group, "input_activations")
    _expect(activations, _ACTIVATIONS)
    wanted = ("group", 128) if is_blocks else ("token", None)
    if activations.raw.get("strategy") != wanted[0]:
        raise _unsupported(activations, "strategy")
    if activations.raw.get("group_size") != wanted[1]:
        raise _unsupported(activations, "group_size")
    return Fp8Format(scale_name="weight_scale", is_blocks=is_blocks)


def _parse_weights(weights: Fields) -> bool:
    """Whether scales are by block."""
    _expect(weights, _WEIGHTS)
    is_blocks = _STRATEGIES.get(str(weights.raw.get("strategy")))
    if is_blocks is None:
        raise _unsupported(weights, "strategy")
    if is_blocks and weights.raw.get("block_structure") not in (BLOCK, "128x128"):
        raise _unsupported(weights, "block_structure")
    return is_blocks


def _expect(own: Fields, wanted: dict[str, Any]) -> None:
    for name, value in wanted.items():
        if own.raw.get(name, value) != value:
            raise _unsupported(own, name)


def _object(fields: Fields, name: str) -> Fields:
    raw = fields.raw.get(name)
    if not isinstance(raw, dict):
        raise _unsupported(fields, name)
    return Fields(raw, f"{fields.source}: {name}")


def _refuse_others(own: Fields, known: frozenset[str]) -> None:
    """A field that is not known here may change what the weights mean, unless it is empty."""
    for name, value in own.raw.items():
        if name not in known and name != "quant_method" and value not in (None, {}, [], False):
            raise _unsupported(own, name)


def _unsupported(own: Fields, name: str) -> LoadError:
    return own.error(name, f"is not supported; {_SUPPORTED}")
