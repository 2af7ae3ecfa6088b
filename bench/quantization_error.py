"""What quantisation does to logits: the last token's of a set of prompts, against the same model in float32.

    python bench/quantization_error.py [--model DIR | --shape 88m] [--prompts 48] [--json FILE]

Every variant is served by our own runner: bfloat16 and int8 by the CPU's ops, FP8 by the reference ops, which define what a GPU's kernels
compute. Prints for each the mean relative error (norm of the difference / norm of the float32 logits) and the share of prompts with the
same argmax. Variants that this processor cannot compute are named and left out.
"""

import argparse
import json
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from checkpoints import make_random_checkpoint
from rows import MODELS
from tokenizers import Tokenizer

from quire_worker.errors import QuireWorkerError
from quire_worker.execution.build import build_runner
from quire_worker.execution.options import RunnerOptions
from quire_worker.plan import NewRow, StepPlan
from quire_worker.request import SamplingParams

DEMO = Path(__file__).parents[1] / "examples" / "models" / "quire-demo"
MAX_TOKENS = 200


@dataclass(frozen=True)
class Variant:
    """A way to serve the model."""

    name: str
    options: dict[str, Any]


EXACT = Variant("float32", {"dtype": "float32", "ops": "reference"})
VARIANTS = (
    Variant("bfloat16", {"dtype": "bfloat16"}),
    Variant("int8", {"dtype": "bfloat16", "quantization": "int8"}),
    Variant("int8 weights only", {"dtype": "bfloat16", "quantization": "int8-weight-only"}),
    Variant("int8 weights only, float32", {"dtype": "float32", "quantization": "int8-weight-only"}),
    Variant("fp8 weights and activations", {"dtype": "bfloat16", "quantization": "fp8", "ops": "reference"}),
    Variant("fp8 KV cache, scales 1", {"dtype": "bfloat16", "kv_cache_dtype": "fp8", "ops": "reference"}),
    Variant(
        "fp8 both",
        {"dtype": "bfloat16", "quantization": "fp8", "kv_cache_dtype": "fp8", "ops": "reference"},
    ),
)


def prompts_for(model_dir: Path, count: int, rng: random.Random) -> list[list[int]]:
    """Prompts of 16 to 200 tokens: text the model may know, if it has a tokenizer and was trained, else random ids."""
    vocab_size = json.loads((model_dir / "config.json").read_text())["vocab_size"]
    lengths = [rng.randint(16, MAX_TOKENS) for _ in range(count)]
    if model_dir != DEMO:
        return [[rng.randrange(vocab_size) for _ in range(length)] for length in lengths]
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    units = ("km to m", "m to cm", "kg to g", "h to min")
    made = []
    for length in lengths:
        ids: list[int] = []
        while len(ids) < length:
            ids += tokenizer.encode(f"Convert {rng.randrange(1, 100)} {rng.choice(units)}. ").ids
        made.append(ids[:length])
    return made


def logits_of(model_dir: Path, prompts: list[list[int]], variant: Variant) -> torch.Tensor:
    """[prompts, vocabulary] float32, each prompt in one step of its own. QuireWorkerError where the variant cannot be served."""
    runner, info = build_runner(
        RunnerOptions(
            model_dir=model_dir,
            device="cpu",
            max_num_seqs=1,
            num_gpu_blocks_override=64,
            max_model_len=512,
            **variant.options,
        )
    )
    found = []
    for step, prompt in enumerate(prompts):
        num_blocks = -(-len(prompt) // info.block_size)
        tables = [list(range(1 + g * num_blocks, 1 + (g + 1) * num_blocks)) for g in range(len(info.groups))]
        new = NewRow(
            row=0,
            request_id=str(step),
            token_ids=prompt,
            num_prompt_tokens=len(prompt),
            num_computed=0,
            block_ids=tables,
            sampling=SamplingParams(max_tokens=1, temperature=0.0),
        )
        plan = StepPlan(
            step_id=step,
            freed_rows=[0],
            copies=[],
            new_rows=[new],
            rows=[0],
            num_tokens=[len(prompt)],
            new_blocks=[],
            replaced_block_ids=[],
        )
        handle = runner.launch(plan)
        found.append(handle.take_logits().float().clone())  # type: ignore[attr-defined]
    runner.close()
    return torch.cat(found)


def compare(found: torch.Tensor, exact: torch.Tensor) -> dict[str, float]:
    """Means over prompts."""
    relative = (found - exact).norm(dim=1) / exact.norm(dim=1)
    same = (found.argmax(dim=1) == exact.argmax(dim=1)).float()
    return {"relative_error": float(relative.mean()), "same_argmax": float(same.mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a checkpoint [the demo model]")
    parser.add_argument("--shape", choices=sorted(MODELS), help="a random model of this shape instead")
    parser.add_argument("--prompts", type=int, default=48, metavar="COUNT")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        model_dir = args.model or DEMO
        if args.shape:
            model_dir = Path(work) / args.shape
            make_random_checkpoint(model_dir, MODELS[args.shape][0])
        prompts = prompts_for(model_dir, args.prompts, random.Random(0))
        exact = logits_of(model_dir, prompts, EXACT)
        figures = {}
        for variant in VARIANTS:
            try:
                figures[variant.name] = compare(logits_of(model_dir, prompts, variant), exact)
            except QuireWorkerError as error:
                print(f"{variant.name}: left out: {error}", file=sys.stderr)
                continue
            shown = figures[variant.name]
            print(
                f"{variant.name}: relative error {100 * shown['relative_error']:.1f} %, same argmax "
                f"{100 * shown['same_argmax']:.0f} %",
                flush=True,
            )
    if args.json:
        args.json.write_text(
            json.dumps({"model": model_dir.name, "prompts": args.prompts, "variants": figures}, indent=2)
        )


if __name__ == "__main__":
    main()
