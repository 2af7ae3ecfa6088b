"""What bench/engine.py can measure: models and rows. A row is a number of equal requests that start together."""

import random
from dataclasses import dataclass

from checkpoints import LLAMA_88M, LLAMA_372M, Sizes

VOCAB = 16_000
WARM_UP_OUTPUT_TOKENS = 8
WARM_UP_PROMPT_TOKENS = 4096

MODELS: dict[str, tuple[Sizes, str]] = {
    "88m": (
        LLAMA_88M,
        "Llama shape, 88 M parameters (768 wide, 12 layers, 12 heads, 4 KV heads, 2048 MLP, 16,000 tokens, tied)",
    ),
    "372m": (
        LLAMA_372M,
        "Llama shape, 372 M parameters (896 wide, 24 layers, 14 heads, 2 KV heads, 4864 MLP, 16,000 tokens, tied)",
    ),
}
"""By the name that --shape takes: sizes, and words for a table's caption."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """num_prompts prompts of prompt_tokens each, output_tokens generated for each."""

    name: str
    num_prompts: int
    prompt_tokens: int
    output_tokens: int
    decode_only: bool = False
    """Count only the steps in which every request decodes (sides/protocol.py, DecodeClock)."""

    def __str__(self) -> str:
        return f"{self.num_prompts} x ({self.prompt_tokens:,}, {self.output_tokens})"

    @property
    def counts(self) -> str:
        """What a token in the row's tokens/s is."""
        if self.decode_only:
            return "output, decode only"
        return "output" if self.output_tokens > 1 else "prompt"

    @property
    def total_tokens(self) -> int:
        """Tokens whose KV is written: what makes memory."""
        return self.num_prompts * (self.prompt_tokens + self.output_tokens)

    def prompts(self, rng: random.Random) -> list[list[int]]:
        """Random token ids, new with every call, so that no cache helps."""
        return [[rng.randrange(3, VOCAB) for _ in range(self.prompt_tokens)] for _ in range(self.num_prompts)]

    def warm_up(self) -> "Row":
        """The same batch with little output, and fewer prompts where they are long."""
        return Row(
            name=self.name,
            num_prompts=max(1, min(self.num_prompts, WARM_UP_PROMPT_TOKENS // self.prompt_tokens)),
            prompt_tokens=self.prompt_tokens,
            output_tokens=min(self.output_tokens, WARM_UP_OUTPUT_TOKENS),
            decode_only=self.decode_only,
        )


ROWS = {
    row.name: row
    for row in (
        Row(name="1", num_prompts=1, prompt_tokens=16, output_tokens=128),
        Row(name="8", num_prompts=8, prompt_tokens=16, output_tokens=128),
        Row(name="32", num_prompts=32, prompt_tokens=16, output_tokens=128),
        Row(name="64", num_prompts=64, prompt_tokens=16, output_tokens=128),
        Row(name="32x256", num_prompts=32, prompt_tokens=256, output_tokens=128),
        Row(name="prefill", num_prompts=16, prompt_tokens=1024, output_tokens=1),
        Row(name="context", num_prompts=2, prompt_tokens=4096, output_tokens=64, decode_only=True),
    )
}
"""By the name that --rows takes."""

MAX_MODEL_LEN = 4352
"""Holds every row; the same for all sides."""
