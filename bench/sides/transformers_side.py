"""transformers' generate() as a side of bench/engine.py: MODEL_DIR THREADS."""

import sys

import torch
from protocol import serve
from transformers import AutoModelForCausalLM


def main() -> None:
    model_dir, threads = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16).eval()

    def generate(prompts: list[list[int]], max_tokens: int) -> list[int]:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_tokens,
                min_new_tokens=max_tokens,
                do_sample=False,
                pad_token_id=0,
            )
        return [int(out.shape[1]) - len(prompt) for prompt in prompts]

    serve(generate)


if __name__ == "__main__":
    main()
