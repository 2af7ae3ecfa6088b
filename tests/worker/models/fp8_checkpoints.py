"""A tiny model as an FP8 checkpoint, and as one of floats that means the same."""

import json

import torch
from safetensors.torch import save_file

from quire_kernels.quantize_fp8 import FP8, FP8_MAX

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 2, 256, 4, 2, 64, 96
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": 256,
    "torch_dtype": "bfloat16",
}
FP8_CONFIG = CONFIG | {
    "quantization_config": {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    }
}


def quantised(weight):
    """(values, scales by blocks of 128 x 128)."""
    blocks = weight.unflatten(0, (-1, 128)).unflatten(2, (-1, 128))
    scales = blocks.abs().amax((1, 3)) / FP8_MAX
    values = (blocks / scales[:, None, :, None]).to(FP8)
    return values.flatten(2).flatten(0, 1), scales


def make_checkpoints(root):
    """The folder of an FP8 checkpoint, and of one in float32 that means the same."""
    generator = torch.Generator().manual_seed(0)
    fp8 = {
        f"{name}.weight": torch.randn(VOCAB, HIDDEN, generator=generator) for name in ("model.embed_tokens", "lm_head")
    }
    fp8["model.norm.weight"] = torch.ones(HIDDEN)
    plain = dict(fp8)
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            plain[f"{prefix}.{name}.weight"] = fp8[f"{prefix}.{name}.weight"] = torch.ones(HIDDEN)
        attention = {"q_proj": HIDDEN, "k_proj": KV_HEADS * HEAD_DIM, "v_proj": KV_HEADS * HEAD_DIM, "o_proj": HIDDEN}
        mlp = dict.fromkeys(("gate_proj", "up_proj", "down_proj"), HIDDEN)
        sizes = {f"self_attn.{name}": size for name, size in attention.items()}
        sizes |= {f"mlp.{name}": size for name, size in mlp.items()}
        for name, size in sizes.items():
            values, scales = quantised(torch.randn(size, HIDDEN, generator=generator) * 0.05)
            full_name = f"{prefix}.{name}.weight"
            fp8[full_name], fp8[f"{full_name}_scale_inv"] = values, scales
            plain[full_name] = values.float() * scales.repeat_interleave(128, 0).repeat_interleave(128, 1)
    return save(root / "fp8", FP8_CONFIG, fp8), save(root / "plain", CONFIG, plain)


EXPERTS, WIDTH = 4, 128
MOE_CONFIG = CONFIG | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "head_dim": HEAD_DIM,
    "num_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": WIDTH,
    "norm_topk_prob": True,
}


def make_moe_checkpoints(root):
    """As make_checkpoints, of a mixture of experts."""
    generator = torch.Generator().manual_seed(1)
    exact = {
        f"{name}.weight": torch.randn(VOCAB, HIDDEN, generator=generator) for name in ("model.embed_tokens", "lm_head")
    }
    exact["model.norm.weight"] = torch.ones(HIDDEN)
    projections = {}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        for name, size in (("input_layernorm", HIDDEN), ("post_attention_layernorm", HIDDEN)):
            exact[f"{prefix}.{name}.weight"] = torch.ones(size)
        for name in ("q_norm", "k_norm"):
            exact[f"{prefix}.self_attn.{name}.weight"] = torch.ones(HEAD_DIM)
        exact[f"{prefix}.mlp.gate.weight"] = torch.randn(EXPERTS, HIDDEN, generator=generator) * 0.2
        attention = {"q_proj": HIDDEN, "k_proj": KV_HEADS * HEAD_DIM, "v_proj": KV_HEADS * HEAD_DIM, "o_proj": HIDDEN}
        projections |= {f"{prefix}.self_attn.{name}": (size, HIDDEN) for name, size in attention.items()}
        for expert in range(EXPERTS):
            shapes = {"gate_proj": (WIDTH, HIDDEN), "up_proj": (WIDTH, HIDDEN), "down_proj": (HIDDEN, WIDTH)}
            projections |= {f"{prefix}.mlp.experts.{expert}.{name}": shape for name, shape in shapes.items()}
    fp8, plain = dict(exact), dict(exact)
    for name, shape in projections.items():
        values, scales = quantised(torch.randn(shape, generator=generator) * 0.05)
        fp8[f"{name}.weight"], fp8[f"{name}.weight_scale_inv"] = values, scales
        plain[f"{name}.weight"] = values.float() * scales.repeat_interleave(128, 0).repeat_interleave(128, 1)
    quantization = {"quantization_config": FP8_CONFIG["quantization_config"]}
    return save(root / "moe-fp8", MOE_CONFIG | quantization, fp8), save(root / "moe-plain", MOE_CONFIG, plain)


def save(folder, config, tensors):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder
