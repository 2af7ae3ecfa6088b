"""The demo model: its files and scores, held-out questions disjoint from training, and answers of the committed weights."""

import importlib
import importlib.util
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from safetensors import safe_open
from tokenizers import Tokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"
MODEL = EXAMPLES / "models" / "quire-demo"
FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def questions() -> Iterator[ModuleType]:
    """The generator, loaded by path as the demo loads it."""
    spec = importlib.util.spec_from_file_location("demo_model_questions", EXAMPLES / "demo_model" / "questions.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_model_has_the_files_of_a_hugging_face_folder_and_at_most_25_megabytes() -> None:
    files = {path.name: path.stat().st_size for path in MODEL.iterdir()}

    assert set(files) == FILES
    assert sum(files.values()) <= 25_000_000


def test_the_model_is_a_llama_in_bfloat16_of_at_most_12_million_parameters() -> None:
    config = read_json(MODEL / "config.json")

    with safe_open(MODEL / "model.safetensors", framework="np") as weights:
        slices = [weights.get_slice(name) for name in weights.keys()]  # noqa: SIM118 (not a dict)
        num_parameters = sum(int(_product(part.get_shape())) for part in slices)
        dtypes = {part.get_dtype() for part in slices}

    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["max_position_embeddings"] >= 2048
    assert dtypes == {"BF16"}
    assert num_parameters <= 12_000_000


def _product(sizes: list[int]) -> int:
    product = 1
    for size in sizes:
        product *= size
    return product


@pytest.mark.parametrize("text", ["Grüße, 世界! 🎉", "  two  spaces\r\n\ttab ", "0123456789", "\x00\x7f", ""])
def test_the_tokenizer_gives_any_text_back(text: str) -> None:
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))

    ids = tokenizer.encode(text).ids

    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_the_tokenizer_makes_a_token_of_each_digit_and_stays_within_the_vocabulary() -> None:
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    vocab_size = read_json(MODEL / "config.json")["vocab_size"]

    tokens = tokenizer.encode("What is 407 + 95?").tokens

    assert [token for token in tokens if token.isdigit()] == list("40795")
    assert tokenizer.get_vocab_size() <= vocab_size


@pytest.mark.parametrize("setting", ["alone", "long_system_prompt", "foreign_system_prompt", "conversation"])
def test_the_scores_say_nine_in_ten_right_in_every_setting(setting: str) -> None:
    scores = read_json(EXAMPLES / "demo_model" / "scores.json")

    assert scores[setting]["overall"] >= 0.9
    assert scores["alone"]["questions"] >= 300
    assert min(scores["alone"]["tasks"].values()) >= 0.9


def test_the_same_seed_gives_the_same_held_out_questions(questions: ModuleType) -> None:
    first = list(questions.held_out_questions(3, 60))
    second = list(questions.held_out_questions(3, 60))
    other = list(questions.held_out_questions(4, 60))

    assert first == second
    assert first != other
    assert [question.task for question in first[:6]] == list(questions.TASKS)


def test_no_held_out_prompt_occurs_among_training_prompts(questions: ModuleType) -> None:
    rng = random.Random(5)
    held_out = {question.prompt for question in questions.held_out_questions(6, 1200)}

    training = {questions.draw(rng, task, held_out=False).prompt for task in questions.TASKS for _ in range(5000)}

    assert len(held_out) == 1200
    assert not held_out & training


def test_a_reply_is_right_only_if_it_is_the_whole_answer(questions: ModuleType) -> None:
    question = questions.Question("What is 1 + 1?", "1 + 1 = 2", "arithmetic")

    assert questions.is_right(question, " 1 + 1 = 2\n")
    assert not questions.is_right(question, "1 + 1 = 2 and more")


@pytest.fixture
def torch() -> Iterator[Any]:
    """torch on one thread: several on busy cores wait for each other."""
    module = importlib.import_module("torch")
    before = module.get_num_threads()
    module.set_num_threads(1)
    yield module
    module.set_num_threads(before)


def test_the_committed_weights_answer_held_out_questions(questions: ModuleType, torch: Any) -> None:
    transformers = importlib.import_module("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    asked = list(questions.held_out_questions(99, 36))

    num_right = 0
    for question in asked:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question.prompt}], add_generation_prompt=True, tokenize=False
        )
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=48, do_sample=False, temperature=None, top_p=None
        )
        num_right += questions.is_right(question, tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))

    assert num_right >= 0.9 * len(asked)


def test_the_chat_template_takes_a_developer_for_a_system_and_text_parts_for_text() -> None:
    transformers = importlib.import_module("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    plain = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1"}]
    parts = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "1 + 1"}]},
    ]

    rendered = tokenizer.apply_chat_template(plain, add_generation_prompt=True, tokenize=False)

    assert (
        rendered
        == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1 + 1<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.apply_chat_template(parts, add_generation_prompt=True, tokenize=False) == rendered
