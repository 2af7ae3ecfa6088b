"""Models with random weights: tiny ones of every architecture, written to a folder; large ones, made on the device."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpu.sizes import Sizes
from quire_kernels.ops import load_ops
from quire_kernels.quantize_fp8 import FP8, FP8_MAX
from quire_worker.models.config import parse_model_config
from quire_worker.models.decoder import Decoder
from quire_worker.models.kv_groups import decide_kv_layout
from quire_worker.models.safetensors_files import TensorEntry
from quire_worker.models.safetensors_reader import Checkpoint
from quire_worker.models.weight_slots import WeightSlots

TINY_VOCABULARY = 320
_TINY: dict[str, Any] = {
    "vocab_size": TINY_VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "torch_dtype": "float32",
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
TINY_MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    # name: (architecture, model_type, changes)
    "llama": ("LlamaForCausalLM", "llama", {}),
    "llama-bias-rope3": (
        "LlamaForCausalLM",
        "llama",
        {"attention_bias": True, "mlp_bias": True, "head_dim": 32, "rope_theta": 1e4, "rope_scaling": _LLAMA3_ROPE},
    ),
    "mistral": ("MistralForCausalLM", "mistral", {"sliding_window": 24}),
    "qwen2": ("Qwen2ForCausalLM", "qwen2", {"tie_word_embeddings": True}),
    "qwen2-windows": (
        "Qwen2ForCausalLM",
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 40, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3ForCausalLM", "qwen3", {"head_dim": 32}),
    "qwen3-moe": (
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        {
            "head_dim": 16,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 48,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
        },
    ),
    "mixtral": ("MixtralForCausalLM", "mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
}


def tiny_config(name: str) -> dict[str, Any]:
    """config.json of TINY_MODELS[name]."""
    architecture, model_type, changes = TINY_MODELS[name]
    return {"architectures": [architecture], "model_type": model_type, **_TINY, **changes}


def write_tiny_checkpoint(folder: Path, name: str) -> Path:
    """config.json and model.safetensors; norms and biases are random too, so that a forgotten one shows."""
    config = tiny_config(name)
    generator = torch.Generator().manual_seed(sum(name.encode()))
    tensors = {}
    for tensor_name, shape in tensor_shapes(config).items():
        values = torch.randn(shape, generator=generator) * 0.1
        # A tied head likes each token's own embedding best, unless the last norm turns signs.
        is_last_norm = config["tie_word_embeddings"] and tensor_name == "model.norm.weight"
        tensors[tensor_name] = values * 10 if is_last_norm else values + tensor_name.endswith("norm.weight")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


_FP8_WIDTHS = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "moe_intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
"""Of tiny models whose weights are scaled by blocks of 128 x 128."""
_FP8_CONFIG = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


def write_fp8_checkpoint(folder: Path, name: str) -> Path:
    """A wider TINY_MODELS[name], its projections in FP8 with a scale for each 128 x 128 numbers."""
    config = tiny_config(name) | _FP8_WIDTHS
    generator = torch.Generator().manual_seed(sum(name.encode()))
    tensors = {}
    for tensor_name, shape in tensor_shapes(config).items():
        values = torch.randn(shape, generator=generator) * 0.05 + tensor_name.endswith("norm.weight")
        is_projection = len(shape) == 2 and ".layers." in tensor_name and not tensor_name.endswith(".gate.weight")
        if is_projection:
            blocks = values.view(shape[0] // 128, 128, shape[1] // 128, 128)
            scales = blocks.abs().amax((1, 3)) / FP8_MAX
            tensors[f"{tensor_name}_scale_inv"] = scales
            values = (blocks / scales[:, None, :, None]).to(FP8).view(shape)
        tensors[tensor_name] = values
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": _FP8_CONFIG}))
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


_TYPE_NAMES = {torch.float32: "F32", FP8: "F8_E4M3"}


def write_safetensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Tensors of float32 and FP8 in the format of https://huggingface.co/docs/safetensors: needs no package."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": _TYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in tensors.values():
            file.write(tensor.contiguous().view(torch.uint8).numpy().tobytes())


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """What the decoder of this config.json wants from its checkpoint. Allocates nothing large."""
    model_config = parse_model_config(config)
    slots = WeightSlots()
    Decoder(
        model_config,
        ops=load_ops("reference"),
        slots=slots,
        places=decide_kv_layout(model_config.windows).places,
        device=torch.device("cpu"),
        dtype=torch.float32,
        num_positions=1,
    )
    return slots.shapes


class RandomWeights(Checkpoint):
    """A checkpoint that is made as it is read, where it is wanted: norms are ones, all else normal with deviation 0.02."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], device: torch.device, dtype: torch.dtype) -> None:
        type_name = {torch.bfloat16: "BF16", torch.float32: "F32", torch.float16: "F16"}[dtype]
        super().__init__(
            {
                name: TensorEntry(
                    name=name,
                    path=Path("random"),
                    type_name=type_name,
                    shape=shape,
                    offset=0,
                    size_bytes=math.prod(shape) * dtype.itemsize,
                )
                for name, shape in shapes.items()
            }
        )
        self._device = device
        self._dtype = dtype
        self._generator = torch.Generator(device).manual_seed(0)

    def stream(self, names: set[str]) -> Iterator[tuple[str, Tensor]]:
        """Each named tensor that there is, on the device."""
        for name in sorted(names & self.entries.keys()):
            tensor = torch.empty(self.entries[name].shape, device=self._device, dtype=self._dtype)
            if name.endswith("norm.weight"):
                yield name, tensor.fill_(1.0)
            else:
                yield name, tensor.normal_(0.0, 0.02, generator=self._generator)


def random_weights(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Callable[[Path], Checkpoint]:
    """For build_runner: ignores the folder's tensors, of which there are none."""
    shapes = tensor_shapes(sizes.config(str(dtype).removeprefix("torch.")))
    return lambda _folder: RandomWeights(shapes, device, dtype)
