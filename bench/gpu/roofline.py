"""What a step must at least cost: bytes over bandwidth, operations over matrix rate. Pure numbers; the larger of the two is the floor.

Weights are read once a step, but for the embedding table, of which a step reads one row a token. Attention reads every key and value of its
context once a KV head. Causal prefill counts the keys that each query sees, not the square.
"""

from dataclasses import dataclass

from gpu.sizes import Sizes


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Calibrated on the machine at hand."""

    read_bytes_per_s: float
    flops_per_s: float


@dataclass(frozen=True, kw_only=True)
class ModelCost:
    """Of one model, in the dtype that its weights and its KV have."""

    body_parameters: int
    """Of the layers: every token passes them."""
    head_parameters: int
    """Of the output head: sampled tokens pass it."""
    kv_bytes_per_token: int
    attention_flops_per_key: int
    """Of one query against one key, over all layers and heads: scores and weighted sum."""
    element_bytes: int

    @property
    def step_weight_bytes(self) -> int:
        """Read by every step that samples."""
        return (self.body_parameters + self.head_parameters) * self.element_bytes

    def decode_s(self, rates: Rates, batch: int, context: float) -> float:
        """One step that computes one token for each of `batch` rows, each with `context` tokens of KV."""
        weights_s = self.step_weight_bytes / rates.read_bytes_per_s
        matrix_s = 2 * (self.body_parameters + self.head_parameters) * batch / rates.flops_per_s
        return max(weights_s, matrix_s) + batch * context * self.kv_bytes_per_token / rates.read_bytes_per_s

    def prefill_s(self, rates: Rates, num_tokens: int, num_sampled: int = 1) -> float:
        """A prompt of `num_tokens` tokens from nothing, in one go."""
        matrix = 2 * (self.body_parameters * num_tokens + self.head_parameters * num_sampled)
        attention = self.attention_flops_per_key * num_tokens * (num_tokens + 1) / 2
        return max((matrix + attention) / rates.flops_per_s, self.step_weight_bytes / rates.read_bytes_per_s)

    def saturated_tokens_per_s(self, rates: Rates, prompt: int, output: int, kv_tokens: int) -> float:
        """Output tokens/s of requests without end: every output token costs its share of a decode step and of a prefill, in series.

        As many rows decode at once as the KV pool holds at their mean length.
        """
        mean_context = prompt + output / 2
        batch = max(1, int(kv_tokens / mean_context))
        per_token_s = self.decode_s(rates, batch, mean_context) / batch
        return 1 / (per_token_s + self.prefill_s(rates, prompt) / output)


def model_cost(sizes: Sizes, element_bytes: int = 2) -> ModelCost:
    """Of a dense Llama shape."""
    head_dim = sizes.head_dim
    kv_width = sizes.num_kv_heads * head_dim
    attention = 2 * sizes.hidden_size * sizes.num_heads * head_dim + 2 * sizes.hidden_size * kv_width
    mlp = 3 * sizes.hidden_size * sizes.intermediate_size
    norms = 2 * sizes.hidden_size
    return ModelCost(
        body_parameters=sizes.num_layers * (attention + mlp + norms) + sizes.hidden_size,
        head_parameters=sizes.vocab_size * sizes.hidden_size,
        kv_bytes_per_token=2 * sizes.num_layers * kv_width * element_bytes,
        attention_flops_per_key=4 * sizes.num_layers * sizes.num_heads * head_dim,
        element_bytes=element_bytes,
    )


def idle_share(intervals: list[tuple[float, float]]) -> float:
    """Of the time between the first start and the last end, the share in which none of the (start, end) intervals runs; 0 for none."""
    if not intervals:
        return 0.0
    ordered = sorted(intervals)
    first = ordered[0][0]
    busy, reached = 0.0, first
    for start, end in ordered:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return 1.0 - busy / (reached - first) if reached > first else 0.0
