"""A bound, not an engine: the linear layers of a model alone, as a side of bench/engine.py.

Does every matrix product that the request needs, and nothing else: prompts in chunks as large as our engine's, then one pass of all rows
for each further token, the output head on the rows that sample. The products are oneDNN's on prepacked bf16 weights, the
fastest that torch has. No attention, norms, rotation, sampling, scheduling: no engine on this library can be faster. Ours multiplies by itself
and is, at few rows.
"""

import json
from collections.abc import Callable
from typing import Any

import torch
from decode_clock import DecodeClock
from protocol import serve
from settings import parse_settings

CHUNK_TOKENS = 2048
Layer = Callable[[torch.Tensor], torch.Tensor]


def shapes_of(config: dict[str, Any]) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """[out, in] of the projections of one decoder layer, and of the head."""
    hidden, mlp = config["hidden_size"], config["intermediate_size"]
    head_dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    heads, kv_heads = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    layer = [(heads + 2 * kv_heads, hidden), (hidden, heads), (2 * mlp, hidden), (hidden, mlp)]
    return layer, (config["vocab_size"], hidden)


def prepacked(out_features: int, in_features: int) -> Layer:
    weight = torch.ops.mkldnn._reorder_linear_weight(torch.randn(out_features, in_features).bfloat16() * 0.02)

    def multiply(x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
        return out

    return multiply


class LinearLayers:
    """All of a model's."""

    def __init__(self, config: dict[str, Any]) -> None:
        layer, head = shapes_of(config)
        self._layers = [(prepacked(*shape), shape[1]) for _ in range(config["num_hidden_layers"]) for shape in layer]
        self._head, self._hidden = prepacked(*head), head[1]
        self._widths = sorted({in_features for _, in_features in self._layers})

    @torch.inference_mode()
    def run(self, num_tokens: int, num_sampled: int) -> None:
        """One pass of `num_tokens` rows, the head on `num_sampled` of them."""
        inputs = {width: torch.ones(num_tokens, width, dtype=torch.bfloat16) for width in self._widths}
        for multiply, width in self._layers:
            multiply(inputs[width])
        if num_sampled:
            self._head(inputs[self._hidden][:num_sampled])


def main() -> None:
    settings = parse_settings()
    torch.set_num_threads(settings.threads)
    model = LinearLayers(json.loads((settings.model_dir / "config.json").read_text()))

    def prefill(prompts: list[list[int]]) -> None:
        left = sum(map(len, prompts))
        while left:
            now = min(left, CHUNK_TOKENS)
            left -= now
            model.run(now, 0 if left else len(prompts))

    def generate(prompts: list[list[int]], max_tokens: int) -> list[int]:
        prefill(prompts)
        for _ in range(max_tokens - 1):
            model.run(len(prompts), len(prompts))
        return [max_tokens] * len(prompts)

    def decode_only(prompts: list[list[int]], max_tokens: int, clock: DecodeClock) -> list[int]:
        """The prompts' pass is left out: the clock does not see it."""
        each = dict.fromkeys(range(len(prompts)), 1)
        clock.saw(each)
        for _ in range(max_tokens - 1):
            model.run(len(prompts), len(prompts))
            clock.saw(each)
        return [max_tokens] * len(prompts)

    serve(generate, decode_only)


if __name__ == "__main__":
    main()
