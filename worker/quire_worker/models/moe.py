"""Mixture-of-experts block: a router picks each token's experts, their outputs are summed by its weights.

    x    [T, E]   hidden states
    out  [T, E]   x's dtype

Tokens are sorted by expert and each expert that has any runs once over its own, so work grows with the tokens, not with the experts: in one
operation (quire_kernels.moe, or moe_fp8) where the backend has it, else expert by expert.
The sum over a token's experts runs in float32 in ascending expert order, so that it does not depend on the other tokens.
"""

import torch
from torch import Tensor

from quire_kernels.moe_fp8 import Fp8Experts
from quire_kernels.ops import Ops
from quire_worker.models.config import ModelConfig, MoeConfig
from quire_worker.models.fp8_rows import Rows
from quire_worker.models.linear import LinearFactory, Part
from quire_worker.models.loaded_linear import GatedLinear, LoadedLinear


class MoeBlock:
    """Routing as in transformers' Mixtral and Qwen3-MoE: softmax over all experts in float32, then the k largest."""

    def __init__(self, name: str, config: ModelConfig, moe: MoeConfig, linears: LinearFactory, ops: Ops) -> None:
        self._moe = moe
        block = f"{name}.{moe.prefix}"
        self._router = linears.linear(f"{block}.gate", config.hidden_size, moe.num_experts, "replicated", is_exact=True)
        experts: type[_SeparateExperts | _StackedExperts | _StackedFp8Experts] = _SeparateExperts
        if ops.moe is not None:
            has_fp8 = _StackedFp8Experts.are_possible(block, config.hidden_size, moe, linears, ops)
            experts = _StackedFp8Experts if has_fp8 else _StackedExperts
        self._experts = experts(block, config.hidden_size, moe, linears, ops)

    def __call__(self, x: Rows) -> Tensor:
        assert isinstance(x, Tensor), "the router reads floats"
        return self._experts(x, *self._route(x))

    def _route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Float32 weights and expert ids, both [T, K], experts ascending."""
        probabilities = torch.softmax(self._router(x), dim=-1, dtype=torch.float32)
        weights, experts = probabilities.topk(self._moe.num_experts_per_token, dim=-1)
        if self._moe.normalises_weights:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        experts, ascending = experts.sort(dim=-1)
        return weights.gather(-1, ascending), experts


class _StackedExperts:
    """All experts in one operation."""

    def __init__(self, block: str, hidden_size: int, moe: MoeConfig, linears: LinearFactory, ops: Ops) -> None:
        assert ops.moe is not None
        self._run = ops.moe
        self._num_experts = moe.num_experts
        gate_ups, downs = _all_parts(block, moe, hidden_size)
        self._gate_up = linears.stacked_weight(hidden_size, gate_ups)
        self._down = linears.stacked_weight(moe.intermediate_size, downs)

    def __call__(self, x: Tensor, weights_TK: Tensor, experts_TK: Tensor) -> Tensor:
        gate_up_XFE, down_XEF = (
            stack.tensor.view(self._num_experts, -1, stack.tensor.shape[1]) for stack in (self._gate_up, self._down)
        )
        return self._run(x, weights_TK, experts_TK, gate_up_XFE, down_XEF)


class _StackedFp8Experts:
    """All experts in one operation, in FP8."""

    def __init__(self, block: str, hidden_size: int, moe: MoeConfig, linears: LinearFactory, ops: Ops) -> None:
        assert ops.moe_fp8 is not None
        self._run = ops.moe_fp8
        self._num_experts = moe.num_experts
        gate_ups, downs = _all_parts(block, moe, hidden_size)
        self._gate_up = linears.fp8_stack(hidden_size, gate_ups)
        self._down = linears.fp8_stack(moe.intermediate_size, downs)

    @staticmethod
    def are_possible(block: str, hidden_size: int, moe: MoeConfig, linears: LinearFactory, ops: Ops) -> bool:
        """Whether the checkpoint or the flag wants them in FP8, and their sizes allow it."""
        gate_ups, downs = _all_parts(block, moe, hidden_size)
        has_both = linears.has_fp8_stack(hidden_size, gate_ups) and linears.has_fp8_stack(moe.intermediate_size, downs)
        return ops.moe_fp8 is not None and has_both

    def __call__(self, x: Tensor, weights_TK: Tensor, experts_TK: Tensor) -> Tensor:
        gate_up, down = self._gate_up, self._down
        stacks = Fp8Experts(
            gate_up=self._by_expert(gate_up.values),
            gate_up_scales=self._by_expert(gate_up.scales),
            down=self._by_expert(down.values),
            down_scales=self._by_expert(down.scales),
        )
        return self._run(x, weights_TK, experts_TK, stacks)

    def _by_expert(self, stack: Tensor) -> Tensor:
        return stack.view(self._num_experts, -1, *stack.shape[1:])


class _SeparateExperts:
    """One expert after the other, each a packed projection."""

    def __init__(self, block: str, hidden_size: int, moe: MoeConfig, linears: LinearFactory, ops: Ops) -> None:
        self._ops = ops
        self._num_experts = moe.num_experts
        self._gate_ups: list[GatedLinear] = []
        self._downs: list[LoadedLinear] = []
        width = moe.intermediate_size
        for expert in range(moe.num_experts):
            prefix = f"{block}.experts.{expert}"
            gate_up, down = _parts(prefix, moe, hidden_size)
            self._gate_ups.append(linears.gated_linear(f"{prefix}.gate_up_proj", hidden_size, gate_up, ops.silu_mul))
            self._downs.append(linears.linear(down.name, width, hidden_size, "row"))

    def __call__(self, x: Tensor, weights_TK: Tensor, experts_TK: Tensor) -> Tensor:
        num_tokens, per_token = experts_TK.shape
        order = experts_TK.flatten().argsort(stable=True)
        counts = torch.bincount(experts_TK.flatten(), minlength=self._num_experts).tolist()
        sorted_in = x[order // per_token]
        sorted_out = torch.empty_like(sorted_in)
        start = 0
        for expert, count in enumerate(counts):
            if count:
                mine = slice(start, start + count)
                hidden = self._gate_ups[expert](sorted_in[mine])
                sorted_out[mine] = self._downs[expert](hidden)
                start += count
        outputs = torch.empty_like(sorted_out)
        outputs[order] = sorted_out
        return self._combine(outputs.view(num_tokens, per_token, -1), weights_TK).to(x.dtype)

    @staticmethod
    def _combine(outputs_TKE: Tensor, weights_TK: Tensor) -> Tensor:
        total = outputs_TKE[:, 0].float() * weights_TK[:, :1]
        for k in range(1, weights_TK.shape[1]):
            total += outputs_TKE[:, k] * weights_TK[:, k : k + 1]
        return total


def _all_parts(block: str, moe: MoeConfig, hidden_size: int) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    """Gates and ups, and downs, of all experts."""
    gate_ups: list[Part] = []
    downs: list[Part] = []
    for expert in range(moe.num_experts):
        gate_up, down = _parts(f"{block}.experts.{expert}", moe, hidden_size)
        gate_ups += gate_up
        downs.append(down)
    return tuple(gate_ups), tuple(downs)


def _parts(prefix: str, moe: MoeConfig, hidden_size: int) -> tuple[tuple[Part, Part], Part]:
    """Gate and up, and down, of one expert, as a checkpoint names them."""
    gate, up, down = moe.expert_names
    width = moe.intermediate_size
    gate_up = (
        Part(name=f"{prefix}.{gate}", out_features=width),
        Part(name=f"{prefix}.{up}", out_features=width),
    )
    return gate_up, Part(name=f"{prefix}.{down}", out_features=hidden_size)
