"""vLLM's in-process LLM as a side of bench/engine.py. Runs under the peer's own interpreter.

Its default leaves the model one of two cores; the driver sets its best setting, and the size of its KV cache, in the environment.
"""

from decode_clock import DecodeClock
from protocol import serve
from settings import parse_settings
from vllm import LLM, SamplingParams
from vllm.sampling_params import RequestOutputKind


def main() -> None:
    settings = parse_settings()
    llm = LLM(
        model=str(settings.model_dir),
        dtype="bfloat16",
        enable_prefix_caching=False,
        max_model_len=settings.max_model_len,
        skip_tokenizer_init=True,
        seed=0,
    )

    def generate(prompts: list[list[int]], max_tokens: int) -> list[int]:
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)
        outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
        return [len(o.outputs[0].token_ids) for o in outputs]

    def decode_only(prompts: list[list[int]], max_tokens: int, clock: DecodeClock) -> list[int]:
        """What LLM.generate does, but every step's tokens are seen."""
        params = SamplingParams(
            temperature=0.0,
            max_tokens=max_tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        rows = {f"decode-{i}": i for i in range(len(prompts))}
        for request_id, row in rows.items():
            llm.llm_engine.add_request(request_id, {"prompt_token_ids": prompts[row]}, params)
        counts = [0] * len(prompts)
        while llm.llm_engine.has_unfinished_requests():
            new = {rows[o.request_id]: len(o.outputs[0].token_ids) for o in llm.llm_engine.step()}
            clock.saw(new)
            for row, count in new.items():
                counts[row] += count
        return counts

    serve(generate, decode_only)


if __name__ == "__main__":
    main()
