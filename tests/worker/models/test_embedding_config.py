"""What a model is served for, and how its vectors are made, by its files."""

import json
from pathlib import Path
from typing import Any

import pytest

from quire_worker.errors import LoadError
from quire_worker.models.embedding_config import EmbeddingConfig, decoder_raw, load_embedding_config, resolve_task
from quire_worker.models.encoder_config import parse_encoder_config
from tests.worker.embedding_models import edit_json, minilm, sentence_transformers_files

BERT = {
    "architectures": ["BertModel"],
    "vocab_size": 30,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


def raw_of(*architectures: str) -> dict[str, Any]:
    return {"architectures": list(architectures)}


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("BertModel", "embed"),
        ("RobertaForMaskedLM", "embed"),
        ("XLMRobertaModel", "embed"),
        ("DistilBertModel", "embed"),
        ("BertForSequenceClassification", "score"),
        ("Qwen3Model", "embed"),
        ("LlamaForCausalLM", "generate"),
        ("UnheardOf", "generate"),
    ],
)
def test_the_architecture_decides_the_task(architecture: str, task: str, tmp_path: Path) -> None:
    assert resolve_task(raw_of(architecture), tmp_path, "auto") == task


def test_a_decoder_with_sentence_transformers_files_embeds_unless_told_otherwise(tmp_path: Path) -> None:
    raw = raw_of("Qwen3ForCausalLM")

    plain = [resolve_task(raw, tmp_path, wanted) for wanted in ("auto", "embed")]
    sentence_transformers_files(tmp_path, "lasttoken")
    with_files = [resolve_task(raw, tmp_path, wanted) for wanted in ("auto", "generate")]

    assert plain == ["generate", "embed"]
    assert with_files == ["embed", "generate"]


@pytest.mark.parametrize(
    ("architecture", "wanted", "fix"),
    [
        ("BertModel", "generate", "--task embed"),
        ("BertModel", "score", "--task embed"),
        ("BertForSequenceClassification", "embed", "--task score"),
        ("LlamaForCausalLM", "score", "--task embed"),
    ],
)
def test_a_task_that_the_model_cannot_have_is_refused_with_the_one_it_can(
    architecture: str, wanted: str, fix: str, tmp_path: Path
) -> None:
    with pytest.raises(LoadError, match=f"--task {wanted}.*{fix}"):
        resolve_task(raw_of(architecture), tmp_path, wanted)


def test_base_classes_of_decoders_are_read_as_the_classes_that_generate() -> None:
    assert decoder_raw(raw_of("Qwen3Model")) == raw_of("Qwen3ForCausalLM")


def test_all_minilm_is_pooled_by_the_mean_scaled_and_cut_at_256() -> None:
    found = load_embedding_config(minilm(), {}, is_decoder=False)

    assert found == EmbeddingConfig(pooling="mean", normalises=True, max_length=256, matryoshka=False)


@pytest.mark.parametrize(("name", "pooling"), [("cls_token", "cls"), ("mean_tokens", "mean"), ("lasttoken", "last")])
def test_the_pooling_file_decides_and_a_missing_step_means_no_scaling(name: str, pooling: str, tmp_path: Path) -> None:
    sentence_transformers_files(tmp_path, name, normalises=False)

    found = load_embedding_config(tmp_path, {}, is_decoder=True)

    assert (found.pooling, found.normalises) == (pooling, False)


def test_the_newer_form_of_the_pooling_file_is_read(tmp_path: Path) -> None:
    sentence_transformers_files(tmp_path, "cls_token")
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"embedding_dimension": 8, "pooling_mode": "mean"}))

    assert load_embedding_config(tmp_path, {}, is_decoder=False).pooling == "mean"


def test_without_files_encoders_pool_the_mean_and_decoders_the_last_token_and_a_flag_overrides(tmp_path: Path) -> None:
    found = [
        load_embedding_config(tmp_path, {}, is_decoder=False),
        load_embedding_config(tmp_path, {}, is_decoder=True),
        load_embedding_config(tmp_path, {}, is_decoder=True, pooling="mean"),
    ]

    assert [(config.pooling, config.normalises) for config in found] == [("mean", True), ("last", True), ("mean", True)]


@pytest.mark.parametrize("flags", [{"pooling_mode_max_tokens": True}, {"pooling_mode_cls_token": True}])
def test_poolings_that_are_not_built_are_refused_unless_a_flag_chooses(flags: dict[str, bool], tmp_path: Path) -> None:
    sentence_transformers_files(tmp_path, "mean_tokens", **flags)

    with pytest.raises(LoadError, match=r"1_Pooling.config\.json.*--pooling"):
        load_embedding_config(tmp_path, {}, is_decoder=False)
    assert load_embedding_config(tmp_path, {}, is_decoder=False, pooling="cls").pooling == "cls"


def test_a_step_that_is_not_built_is_refused(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text(
        json.dumps([{"path": "", "type": "sentence_transformers.models.Transformer"}, {"path": "2", "type": "a.Dense"}])
    )

    with pytest.raises(LoadError, match=r"modules\.json: the module Dense"):
        load_embedding_config(tmp_path, {}, is_decoder=False)


def test_positions_of_roberta_begin_behind_the_padding_token() -> None:
    bert = parse_encoder_config({**BERT, "max_position_embeddings": 512})
    roberta = parse_encoder_config({**BERT, "architectures": ["XLMRobertaModel"], "max_position_embeddings": 514})

    assert (bert.max_length, roberta.max_length, roberta.padding_id) == (512, 512, 1)


@pytest.mark.parametrize(
    ("fields", "is_sigmoid"),
    [
        ({}, True),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, False),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "5"}}, False),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}}, True),
    ],
)
def test_scores_are_sigmoids_unless_the_file_says_otherwise(fields: dict[str, Any], is_sigmoid: bool) -> None:
    raw = {**BERT, "architectures": ["BertForSequenceClassification"], "id2label": {"0": "LABEL_0"}, **fields}

    head = parse_encoder_config(raw).score_head

    assert head is not None
    assert head.is_sigmoid is is_sigmoid


def test_an_activation_of_scores_that_is_not_built_is_refused() -> None:
    raw = {
        **BERT,
        "architectures": ["BertForSequenceClassification"],
        "num_labels": 1,
        "sbert_ce_default_activation_function": "torch.nn.Tanh",
    }

    with pytest.raises(LoadError, match="sbert_ce_default_activation_function"):
        parse_encoder_config(raw)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    sentence_transformers_files(tmp_path, "mean_tokens")
    (tmp_path / "sentence_bert_config.json").write_text("{}")
    edit_json(tmp_path / "sentence_bert_config.json", max_seq_length="many")
    (tmp_path / "1_Pooling" / "config.json").write_text("not json")

    with pytest.raises(LoadError, match=r"1_Pooling.config\.json: cannot be read"):
        load_embedding_config(tmp_path, {}, is_decoder=False)
    assert load_embedding_config(tmp_path, {}, is_decoder=False, pooling="mean").max_length is None
