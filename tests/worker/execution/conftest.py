"""A tiny random checkpoint, written without transformers, and plans by hand."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from quire_worker.execution.build import build_runner
from quire_worker.execution.options import RunnerOptions
from quire_worker.plan import NewRow, StepPlan
from quire_worker.request import SamplingParams

VOCAB_SIZE = 96
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "torch_dtype": "float32",
}


def make_tensors() -> dict[str, torch.Tensor]:
    """Every tensor of CONFIG's model."""
    hidden, width, kv = CONFIG["hidden_size"], CONFIG["intermediate_size"], 16
    shapes = {"model.embed_tokens.weight": (VOCAB_SIZE, hidden), "lm_head.weight": (VOCAB_SIZE, hidden)}
    for layer in range(CONFIG["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.self_attn.q_proj.weight": (hidden, hidden),
            f"{prefix}.self_attn.k_proj.weight": (kv, hidden),
            f"{prefix}.self_attn.v_proj.weight": (kv, hidden),
            f"{prefix}.self_attn.o_proj.weight": (hidden, hidden),
            f"{prefix}.mlp.gate_proj.weight": (width, hidden),
            f"{prefix}.mlp.up_proj.weight": (width, hidden),
            f"{prefix}.mlp.down_proj.weight": (hidden, width),
        }
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}
    norms = ["model.norm.weight"]
    norms += [
        f"model.layers.{layer}.{norm}.weight"
        for layer in range(CONFIG["num_hidden_layers"])
        for norm in ("input_layernorm", "post_attention_layernorm")
    ]
    return tensors | {name: torch.ones(hidden) for name in norms}


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(make_tensors(), folder / "model.safetensors")
    return folder


@pytest.fixture
def runner(model_dir):
    """A runner of 8 rows and 40 blocks."""
    options = RunnerOptions(
        model_dir=model_dir,
        device="cpu",
        compute_threads=1,
        max_num_seqs=8,
        max_num_batched_tokens=256,
        num_gpu_blocks_override=40,
    )
    return build_runner(options)[0]


class Plans:
    """Makes plans with few words."""

    @staticmethod
    def new(row, token_ids, block_ids, *, num_prompt=None, num_computed=0, **sampling):
        """A row of one KV group."""
        return NewRow(
            row=row,
            request_id=str(row),
            token_ids=token_ids,
            num_prompt_tokens=len(token_ids) if num_prompt is None else num_prompt,
            num_computed=num_computed,
            block_ids=[block_ids],
            sampling=SamplingParams(**{"max_tokens": 100, "temperature": 0.0, **sampling}),
        )

    @staticmethod
    def step(rows, num_tokens, *, new=(), freed=(), copies=(), grown=(), replaced=(), has_masks=False):
        return StepPlan(
            step_id=0,
            freed_rows=list(freed),
            copies=list(copies),
            new_rows=list(new),
            rows=list(rows),
            num_tokens=list(num_tokens),
            new_blocks=list(grown),
            replaced_block_ids=list(replaced),
            has_masks=has_masks,
        )

    @staticmethod
    def run(runner, plan, masks=None):
        """Launch, sample, wait: row -> token."""
        handle = runner.launch(plan)
        runner.sample(handle, masks)
        result = handle.result()
        return {row: token_ids[0] for row, token_ids in zip(result.rows, result.token_ids, strict=True)}

    @classmethod
    def continue_rows(cls, runner, rows, num_steps):
        """Decode: row -> tokens."""
        tokens = {row: [] for row in rows}
        for _ in range(num_steps):
            for row, token_id in cls.run(runner, cls.step(rows, [1] * len(rows))).items():
                tokens[row].append(token_id)
        return tokens


@pytest.fixture
def plans() -> type[Plans]:
    return Plans


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)
