"""A compact Llama in plain torch for training the demo model; its parameters have Hugging Face's names, so a state dict is a checkpoint.

It computes in bfloat16 from float32 weights, as the model is served. It must not know the data or the tokenizer.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

MAX_PLAIN_LENGTH = 512


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The model's sizes; the query heads are a multiple of the key/value heads, embeddings are tied."""

    vocab: int = 1536
    hidden: int = 256
    intermediate: int = 768
    layers: int = 5
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    max_positions: int = 4096
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.eps)
        return x * scale.to(x.dtype) * self.weight.to(x.dtype)


class Attention(nn.Module):
    """Causal grouped-query attention; rotary pairs are (i, i + head_dim / 2)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.q_proj = nn.Linear(shape.hidden, shape.heads * shape.head_dim, bias=False)
        self.k_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head_dim, bias=False)
        self.v_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head_dim, bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.head_dim, shape.hidden, bias=False)

    def forward(self, x_BTE: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
        batch, length, _ = x_BTE.shape
        q, k, v = (
            project(x_BTE).view(batch, length, -1, self.shape.head_dim).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, cos_TD, sin_TD), rotate(k, cos_TD, sin_TD)
        groups = self.shape.heads // self.shape.kv_heads
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        out = attend(q, k, v)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))  # type: ignore[no-any-return]


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of [B, H, T, D]. On a CPU the plain form is twice as fast on short rows, the fused one on long rows."""
    length = q.shape[2]
    if length > MAX_PLAIN_LENGTH:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    future = torch.full((length, length), float("-inf"), dtype=q.dtype).triu(1)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + future
    out: Tensor = scores.softmax(-1) @ v
    return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x[..., T, D] by cos and sin [T, D]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class MLP(nn.Module):
    """The gated SiLU feed-forward layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.down_proj = nn.Linear(shape.intermediate, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """Attention and feed-forward, each behind a norm and added to its input."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden, shape.norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape.hidden, shape.norm_eps)
        self.mlp = MLP(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


class Llama(nn.Module):
    """The decoder; `forward` gives the last norm's output, `loss` the cross entropy at the learnt positions."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.hidden, shape.norm_eps)
        frequencies = shape.rope_theta ** (-torch.arange(0, shape.head_dim, 2) / shape.head_dim)
        angles = torch.outer(torch.arange(shape.max_positions), frequencies).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(weight, std=0.02 if not residual else 0.02 / (2 * shape.layers) ** 0.5)

    def forward(self, ids_BT: Tensor) -> Tensor:
        length = ids_BT.shape[1]
        x = self.embed_tokens(ids_BT).bfloat16()
        cos, sin = self.cos[:length].bfloat16(), self.sin[:length].bfloat16()  # type: ignore[index]
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)  # type: ignore[no-any-return]

    def loss(self, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean cross entropy where `targets` is not -100; only those positions meet the vocabulary."""
        chosen = targets_BT.flatten().ge(0).nonzero().squeeze(1)
        hidden = self(ids_BT).flatten(0, 1).index_select(0, chosen)
        logits = F.linear(hidden, self.embed_tokens.weight)
        return F.cross_entropy(logits.float(), targets_BT.flatten()[chosen])


def write_model(model: Llama, folder: Path, *, end: int, end_of_text: int) -> None:
    """`config.json`, `generation_config.json` and `model.safetensors` (bfloat16) as Hugging Face lays them out."""
    shape = model.shape
    weights = {f"model.{name}": weight.detach().bfloat16().contiguous() for name, weight in model.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # the library makes it readable by its owner only
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "rope_scaling": None,
        "max_position_embeddings": shape.max_positions,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "pretraining_tp": 1,
        "use_cache": True,
        "bos_token_id": None,
        "eos_token_id": end,
        "pad_token_id": end_of_text,
        "torch_dtype": "bfloat16",
    }
    generation = {
        "eos_token_id": [end, end_of_text],
        "pad_token_id": end_of_text,
        "do_sample": True,
        "temperature": 0.2,
        "top_p": 0.95,
    }
    for name, content in (("config.json", config), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
