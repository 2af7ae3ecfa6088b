"""vLLM's in-process LLM as a side of bench/engine.py: MODEL_DIR THREADS. Runs under the peer's own interpreter.

Its default leaves the model one of two cores; the driver sets its best setting in the environment.
"""

import sys

from protocol import serve
from vllm import LLM, SamplingParams


def main() -> None:
    llm = LLM(
        model=sys.argv[1], dtype="bfloat16", enable_prefix_caching=False, max_model_len=2048, skip_tokenizer_init=True
    )

    def generate(prompts: list[list[int]], max_tokens: int) -> list[int]:
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)
        outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
        return [len(o.outputs[0].token_ids) for o in outputs]

    serve(generate)


if __name__ == "__main__":
    main()
