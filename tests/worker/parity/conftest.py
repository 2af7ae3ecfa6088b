"""Random checkpoints, our engine over them, and the oracle: transformers, with our sampling formulas written out plainly on top."""

import itertools
import json
import shutil
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from quire_kernels.sampling import SamplingTensors, perturbed_logits
from quire_worker.engine.engine import Engine
from quire_worker.execution.build import build_runner
from quire_worker.execution.options import RunnerOptions
from quire_worker.execution.runner import TorchRunner
from quire_worker.kv.block_manager import BlockManager
from quire_worker.kv.block_pool import BlockPool
from quire_worker.request import PromptLogprobs, SamplingParams, Submit, TokenLogprobs
from quire_worker.scheduling.limits import SchedulerLimits
from quire_worker.scheduling.scheduler import Scheduler

VOCAB_SIZE = 320
EXCUSED_GAP = 1e-4
"""Two implementations may differ where the two best perturbed logits are closer than this."""

_COMMON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
    "bos_token_id": None,
    "eos_token_id": None,
}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {}),
    "llama-tied-bias": (
        "LlamaForCausalLM",
        {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "head_dim": 32},
    ),
    "llama-narrow-mlp": ("LlamaForCausalLM", {"intermediate_size": 90}),
    "llama-odd-mlp": ("LlamaForCausalLM", {"intermediate_size": 91}),
    "llama-linear": (
        "LlamaForCausalLM",
        {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4}},
    ),
    "llama-llama3": (
        "LlamaForCausalLM",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
                "rope_theta": 1e4,
            }
        },
    ),
    "llama-yarn": (
        "LlamaForCausalLM",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 128,
                "rope_theta": 1e4,
            }
        },
    ),
    "mistral": ("MistralForCausalLM", {"sliding_window": 24}),
    "qwen2": ("Qwen2ForCausalLM", {}),
    "qwen2-mixed-windows": (
        "Qwen2ForCausalLM",
        {"use_sliding_window": True, "sliding_window": 40, "max_window_layers": 1, "num_hidden_layers": 3},
    ),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 32}),
    "qwen3-moe": (
        "Qwen3MoeForCausalLM",
        {
            "head_dim": 16,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 48,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
        },
    ),
    "mixtral": ("MixtralForCausalLM", {"num_local_experts": 4, "num_experts_per_tok": 2}),
}


def make_checkpoint(folder: Path, name: str) -> Path:
    """Write a random checkpoint of MODELS[name] with transformers; norms and biases are random too."""
    architecture, changes = MODELS[name]
    model_class = getattr(transformers, architecture)
    config = model_class.config_class(**{**_COMMON, **changes})
    torch.manual_seed(sum(name.encode()))
    model = model_class(config)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                is_norm = "norm" in parameter_name
                parameter.copy_(torch.randn_like(parameter) * 0.1 + (1.0 if is_norm else 0.0))
        if config.tie_word_embeddings:
            # Otherwise each token's own embedding is what its logits like best, and every text is one token.
            model.model.norm.weight.normal_()
    model.save_pretrained(folder)
    return folder


@dataclass
class Outcome:
    """What one choice got."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None
    prompt_logprobs: list[PromptLogprobs] | None = None
    error_code: str | None = None

    @property
    def prompt_values(self) -> list[float]:
        """Log-probabilities of the prompt's tokens but the first."""
        return [value for part in self.prompt_logprobs or [] for value in array("f", part.logprobs)]

    @property
    def prompt_ids(self) -> list[int]:
        """The likeliest tokens in their places, one place after the other."""
        return [value for part in self.prompt_logprobs or [] for value in array("i", part.top_ids)]

    @property
    def prompt_bytes(self) -> list[bytes]:
        """All that is told of the prompt, however it was cut into steps."""
        parts = self.prompt_logprobs or []
        columns = ("logprobs", "ranks", "top_ids", "top_logprobs")
        return [b"".join(getattr(part, name) for part in parts) for name in columns]


class Side:
    """Our engine over a checkpoint, the real scheduler included."""

    def __init__(
        self,
        folder: Path,
        *,
        depth: int = 1,
        caching: bool = True,
        chunk: int = 4096,
        rows: int = 32,
        blocks: int = 600,
        ops: str = "cpu",
        dtype: str = "float32",
        quantization: str = "none",
        resident: bool | None = None,
        wrap: Callable[[TorchRunner], Any] = lambda runner: runner,
    ) -> None:
        options = RunnerOptions(
            model_dir=folder,
            device="cpu",
            dtype=dtype,
            quantization=quantization,
            ops=ops,
            compute_threads=1,
            max_num_seqs=rows,
            max_num_batched_tokens=max(chunk, rows),
            num_gpu_blocks_override=blocks,
            is_resident=resident,
        )
        self.runner, self.info = build_runner(options)
        limits = SchedulerLimits(
            max_num_seqs=rows,
            max_num_batched_tokens=max(chunk, rows),
            max_model_len=self.info.max_model_len,
            max_num_queued_reqs=1000,
            max_num_queued_tokens=10**6,
            vocab_size=VOCAB_SIZE,
        )
        groups = self.info.groups
        kv = BlockManager(
            BlockPool(self.info.num_blocks, len(groups)), self.info.block_size, groups, enable_prefix_caching=caching
        )
        self.scheduler = Scheduler(kv, limits, itertools.count().__next__)
        self.engine = Engine(self.scheduler, wrap(self.runner), depth=depth)

    def generate(self, submits: Sequence[Submit]) -> dict[tuple[str, int], Outcome]:
        """All of them as one continuous batch. (request id, choice) -> outcome."""
        for submit in submits:
            assert self.scheduler.add(submit) is None
        outcomes: dict[tuple[str, int], Outcome] = {}
        while self.scheduler.has_work:
            for output in self.engine.step():
                outcome = outcomes.setdefault((output.request_id, output.choice), Outcome())
                assert output.error is None or output.error_code is not None, output.error
                outcome.error_code = output.error_code
                if output.prompt_logprobs is not None:
                    assert outcome.prompt_logprobs is None, "told twice"
                    outcome.prompt_logprobs = output.prompt_logprobs
                outcome.token_ids += output.token_ids
                outcome.logprobs += output.logprobs or []
                outcome.finish_reason = output.finish_reason or outcome.finish_reason
        self.scheduler.check()
        return outcomes

    def greedy(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
        """Greedy continuations."""
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0)
        submits = [
            Submit(request_id=str(i), prompt_token_ids=list(prompt), sampling=sampling)
            for i, prompt in enumerate(prompts)
        ]
        outcomes = self.generate(submits)
        return [outcomes[str(i), 0].token_ids for i in range(len(prompts))]


class Oracle:
    """transformers in float32."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="eager"
        ).eval()

    @torch.inference_mode()
    def logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        """[len, V] float32: row i predicts token i + 1."""
        logits: torch.Tensor = self.model(torch.tensor([list(token_ids)])).logits[0]
        return logits.float()

    def first_difference(self, prompt: Sequence[int], output: Sequence[int], sampling: SamplingParams) -> int | None:
        """The first position of `output` that is not what sampling from transformers' logits gives, near ties excused."""
        logits = self.logits([*prompt, *output[:-1]])[len(prompt) - 1 :]
        for i, token_id in enumerate(output):
            perturbed = perturb(logits[i], sampling, prompt, output[:i])
            best = int(perturbed.argmax())
            if best != token_id and gap_of(perturbed) > EXCUSED_GAP:
                return i
        return None

    def gap(self, prompt: Sequence[int], output: Sequence[int], sampling: SamplingParams) -> float:
        """Between the two best perturbed logits for the token after `output`."""
        return gap_of(perturb(self.logits([*prompt, *output])[-1], sampling, prompt, output))


def gap_of(perturbed_V: torch.Tensor) -> float:
    """Largest less second largest."""
    best, second = perturbed_V.topk(2).values.tolist()
    return float(best - second)


def perturb(
    logits_V: torch.Tensor, sampling: SamplingParams, prompt: Sequence[int], output: Sequence[int]
) -> torch.Tensor:
    """What the next token is the argmax of: every rule written out token by token."""
    logits = logits_V.clone()
    for token_id, value in sampling.logit_bias:
        logits[token_id] += value
    for token_id in set(prompt) | set(output):
        value = logits[token_id]
        logits[token_id] = value / sampling.repetition_penalty if value > 0 else value * sampling.repetition_penalty
    for token_id in set(output):
        count = list(output).count(token_id)
        logits[token_id] -= sampling.frequency_penalty * count + sampling.presence_penalty
    if sampling.allowed_token_ids:
        allowed = torch.zeros_like(logits, dtype=torch.bool)
        allowed[list(sampling.allowed_token_ids)] = True
        logits[~allowed] = float("-inf")
    for word in sampling.bad_words:
        if list(word[:-1]) == list(output)[len(output) - len(word) + 1 :]:
            logits[word[-1]] = float("-inf")
    if len(output) < sampling.min_tokens:
        logits[list(sampling.ending_token_ids)] = float("-inf")
    seed = sampling.seed - 2**64 if sampling.seed >= 2**63 else sampling.seed
    tensors = SamplingTensors(
        temperature=torch.tensor([sampling.temperature]),
        top_k=torch.tensor([sampling.top_k], dtype=torch.int32),
        top_p=torch.tensor([sampling.top_p]),
        min_p=torch.tensor([sampling.min_p]),
        seeds=torch.tensor([seed]),
        positions=torch.tensor([len(output)]),
    )
    return perturbed_logits(logits[None], tensors)[0]


def random_prompts(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    """Uniform tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, VOCAB_SIZE, (length,), generator=generator).tolist() for length in lengths]


MIXED_LENGTHS = (1, 2, 3, 5, 8, 13, 15, 16, 17, 25, 31, 33, 48, 64, 65, 97, 128, 129, 160, 200)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name -> folder, each made once."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = make_checkpoint(tmp_path_factory.mktemp(name), name)
        return made[name]

    return get


@pytest.fixture(scope="session")
def damaged(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in which the last token's embedding is not finite: whoever's prompt holds it gets NaN, as an overflow would give."""
    folder = tmp_path_factory.mktemp("damaged") / "llama"
    shutil.copytree(checkpoint("llama"), folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][VOCAB_SIZE - 1, 0] = float("inf")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def oracle(checkpoint: Callable[[str], Path]) -> Callable[[str], Oracle]:
    """Name -> transformers' model, each loaded once."""
    made: dict[str, Oracle] = {}

    def get(name: str) -> Oracle:
        if name not in made:
            made[name] = Oracle(checkpoint(name))
        return made[name]

    return get


@pytest.fixture(scope="session")
def model_names() -> Iterator[list[str]]:
    """All of MODELS."""
    return list(MODELS)


@pytest.fixture
def side() -> type[Side]:
    """The class itself: each test builds what it needs."""
    return Side


@pytest.fixture(scope="session")
def mixed_prompts() -> list[list[int]]:
    """Twenty prompts of 1 to 200 tokens."""
    return random_prompts(MIXED_LENGTHS)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `model_name` runs for every model."""
    if "model_name" in metafunc.fixturenames:
        metafunc.parametrize("model_name", list(MODELS))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """As the engine under test is given."""
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def edit_config(folder: Path, **changes: Any) -> None:
    """Change config.json in place."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
