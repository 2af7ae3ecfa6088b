"""lm-evaluation-harness against the server: its log-likelihoods are those of transformers on the same model."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from client_server import Server

TASK = """\
task: quire_arithmetic
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: ""
metric_list:
  - metric: acc
"""
QUESTIONS = [
    {
        "question": f"Convert {number} {unit} to {other}. The answer is",
        "choices": [f" {number * factor} {other}", f" {number + 1}", " no"],
        "answer": 0,
    }
    for number, unit, other, factor in [
        (5, "km", "m", 1000),
        (3, "m", "cm", 100),
        (7, "kg", "g", 1000),
        (2, "h", "min", 60),
    ]
]


@pytest.fixture
def task_dir(tmp_path: Path) -> Path:
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    (tmp_path / "quire.yaml").write_text(TASK.format(data=data))
    return tmp_path


def expected_log_likelihoods(model_dir: Path) -> list[list[float]]:
    """By transformers: for each question the sum over each choice's tokens."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_dir)
    model = transformers.AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    sums = []
    for question in QUESTIONS:
        context = tokenizer(question["question"]).input_ids
        row = []
        for choice in question["choices"]:  # type: ignore[attr-defined]
            ids = tokenizer(f"{question['question']}{choice}").input_ids
            with torch.no_grad():
                logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            places = range(len(context), len(ids))
            row.append(sum(float(logprobs[place - 1, ids[place]]) for place in places))
        sums.append(row)
    return sums


def run_lm_eval(
    client_bin: Path, server: Server, task_dir: Path, *model_args: str, batch_size: int
) -> list[dict[str, Any]]:
    """The samples it logs, in order."""
    wanted = ",".join(
        [
            "model=demo",
            f"base_url={server.v1}/completions",
            f"tokenizer={server.model_dir}",
            "max_retries=1",
            *model_args,
        ]
    )
    command = [client_bin / "lm_eval", "run", "--model", "local-completions", "--model_args", wanted, "--log_samples"]
    command += ["--tasks", "quire_arithmetic", "--include_path", task_dir, "--output_path", task_dir / "out"]
    command += ["--batch_size", batch_size]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(task_dir / "hf")}
    done = subprocess.run(
        [str(part) for part in command],
        env={"PATH": "/usr/bin:/bin", "HOME": str(task_dir), **offline},
        capture_output=True,
        text=True,
        timeout=850,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (samples,) = (task_dir / "out").rglob("samples_quire_arithmetic_*.jsonl")
    return sorted((json.loads(line) for line in samples.read_text().splitlines()), key=lambda sample: sample["doc_id"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_args", "batch_size"),
    [
        pytest.param(("tokenizer_backend=huggingface", "num_concurrent=4"), 3, id="token ids, batches"),
        pytest.param(("tokenizer_backend=huggingface", "tokenized_requests=False"), 1, id="text, one at a time"),
    ],
)
def test_log_likelihoods_are_those_of_transformers(
    client_bin: Path, server: Server, task_dir: Path, model_args: tuple[str, ...], batch_size: int
) -> None:
    samples = run_lm_eval(client_bin, server, task_dir, *model_args, batch_size=batch_size)

    found = [[float(answer[0][0]) for answer in sample["resps"]] for sample in samples]
    expected = expected_log_likelihoods(server.model_dir)
    assert len(found) == len(QUESTIONS)
    for row, wanted in zip(found, expected, strict=True):
        assert row == pytest.approx(wanted, abs=1e-3)
