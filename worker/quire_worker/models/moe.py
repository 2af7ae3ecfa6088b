"""Mixture-of-experts block: a router picks each token's experts, their outputs are summed by its weights.

    x    [T, E]   hidden states
    out  [T, E]   x's dtype

Tokens are sorted by expert and each expert that has any runs once over its own, so work grows with the tokens, not with the experts.
The sum over a token's experts runs in float32 in ascending expert order, so that it does not depend on the other tokens.
"""

import torch
from torch import Tensor

from quire_kernels.ops import Ops
from quire_worker.models.config import ModelConfig, MoeConfig
from quire_worker.models.linear import Linear, LinearFactory, Part


class MoeBlock:
    """Routing as in transformers' Mixtral and Qwen3-MoE: softmax over all experts in float32, then the k largest."""

    def __init__(self, name: str, config: ModelConfig, moe: MoeConfig, linears: LinearFactory, ops: Ops) -> None:
        self._moe = moe
        self._ops = ops
        hidden_size, width = config.hidden_size, moe.intermediate_size
        block = f"{name}.{moe.prefix}"
        self._router = linears.linear(f"{block}.gate", hidden_size, moe.num_experts, "replicated")
        self._gate_ups: list[Linear] = []
        self._downs: list[Linear] = []
        gate, up, down = moe.expert_names
        for expert in range(moe.num_experts):
            prefix = f"{block}.experts.{expert}"
            parts = (
                Part(name=f"{prefix}.{gate}", out_features=width),
                Part(name=f"{prefix}.{up}", out_features=width),
            )
            fused = linears.linear(f"{prefix}.gate_up_proj", hidden_size, 2 * width, "column", parts=parts)
            self._gate_ups.append(fused)
            self._downs.append(linears.linear(f"{prefix}.{down}", width, hidden_size, "row"))

    def __call__(self, x: Tensor) -> Tensor:
        weights_TK, experts_TK = self._route(x)
        num_tokens, per_token = experts_TK.shape
        order = experts_TK.flatten().argsort(stable=True)
        counts = torch.bincount(experts_TK.flatten(), minlength=self._moe.num_experts).tolist()
        sorted_in = x[order // per_token]
        sorted_out = torch.empty_like(sorted_in)
        start = 0
        for expert, count in enumerate(counts):
            if count:
                mine = slice(start, start + count)
                hidden = self._ops.silu_mul(self._gate_ups[expert](sorted_in[mine]))
                sorted_out[mine] = self._downs[expert](hidden)
                start += count
        outputs = torch.empty_like(sorted_out)
        outputs[order] = sorted_out
        return self._combine(outputs.view(num_tokens, per_token, -1), weights_TK).to(x.dtype)

    def _route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Float32 weights and expert ids, both [T, K], experts ascending."""
        probabilities = torch.softmax(self._router(x), dim=-1, dtype=torch.float32)
        weights, experts = probabilities.topk(self._moe.num_experts_per_token, dim=-1)
        if self._moe.normalises_weights:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        experts, ascending = experts.sort(dim=-1)
        return weights.gather(-1, ascending), experts

    @staticmethod
    def _combine(outputs_TKE: Tensor, weights_TK: Tensor) -> Tensor:
        total = outputs_TKE[:, 0].float() * weights_TK[:, :1]
        for k in range(1, weights_TK.shape[1]):
            total += outputs_TKE[:, k] * weights_TK[:, k : k + 1]
        return total
