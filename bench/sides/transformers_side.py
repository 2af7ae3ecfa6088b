"""transformers' generate() as a side of bench/engine.py."""

from typing import Any

import torch
from decode_clock import DecodeClock
from protocol import serve
from settings import parse_settings
from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList


class Watch(StoppingCriteria):
    """Stops nothing; tells the clock of every step."""

    def __init__(self, num_rows: int, clock: DecodeClock) -> None:
        self._num_rows, self._clock = num_rows, clock

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        self._clock.saw(dict.fromkeys(range(self._num_rows), 1))
        return torch.zeros(self._num_rows, dtype=torch.bool)


def main() -> None:
    settings = parse_settings()
    torch.set_num_threads(settings.threads)
    model: Any = AutoModelForCausalLM.from_pretrained(settings.model_dir, dtype=torch.bfloat16)
    model.eval()

    def generate(prompts: list[list[int]], max_tokens: int, watch: list[StoppingCriteria] | None = None) -> list[int]:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_tokens,
                min_new_tokens=max_tokens,
                do_sample=False,
                pad_token_id=0,
                stopping_criteria=StoppingCriteriaList(watch or []),
            )
        return [int(out.shape[1]) - len(prompt) for prompt in prompts]

    def decode_only(prompts: list[list[int]], max_tokens: int, clock: DecodeClock) -> list[int]:
        return generate(prompts, max_tokens, [Watch(len(prompts), clock)])

    serve(generate, decode_only)


if __name__ == "__main__":
    main()
