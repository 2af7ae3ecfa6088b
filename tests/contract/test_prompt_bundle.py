"""A bundle holds what the folder says, survives the wire and is named by its bytes."""

import json
from pathlib import Path
from typing import Any

import pytest

from quire_contract.model_folder import ModelFolderError, load_tokenizer
from quire_contract.prompt_bundle import PromptBundle, digest_of
from quire_contract.wire import WireError


def bundle_of(folder: Path, **options: Any) -> PromptBundle:
    return PromptBundle.from_model_dir(folder, block_size=16, max_model_len=512, served_model_names=["demo"], **options)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_bundle_holds_what_the_folder_says(model_dir: Path) -> None:
    bundle = bundle_of(model_dir)

    assert bundle.tokenizer_json == (model_dir / "tokenizer.json").read_bytes()
    assert bundle.special_tokens == {"bos_token": "<|bos|>", "eos_token": "<|im_end|>"}
    assert (bundle.vocab_size, bundle.eos_token_ids) == (512, [2, 0])
    assert bundle.default_sampling == {"temperature": 0.6, "top_k": 20, "max_tokens": 64}
    assert (bundle.scheme, bundle.block_size, bundle.max_model_len) == ("quire-sha256-v1", 16, 512)


def test_a_bundle_survives_the_wire_under_its_name(model_dir: Path) -> None:
    bundle = bundle_of(model_dir)

    data = bundle.to_bytes()

    assert PromptBundle.from_bytes(data) == bundle
    assert digest_of(data) == bundle.digest() == PromptBundle.from_bytes(data).digest()
    assert bundle.replace(max_model_len=256).digest() != bundle.digest()


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x81\xa1a\x01"])
def test_anything_else_is_no_bundle(data: bytes) -> None:
    with pytest.raises(WireError, match="prompt bundle"):
        PromptBundle.from_bytes(data)


def test_a_template_file_wins_over_the_configuration(model_dir: Path) -> None:
    (model_dir / "chat_template.jinja").write_text("file")

    assert bundle_of(model_dir).chat_templates == {"default": "file"}


def test_named_templates_are_kept_apart(model_dir: Path) -> None:
    named = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    edit(model_dir / "tokenizer_config.json", chat_template=named)

    assert bundle_of(model_dir).chat_templates == {"default": "a", "tool_use": "b"}


def test_a_given_template_replaces_the_models(model_dir: Path) -> None:
    assert bundle_of(model_dir, chat_template="mine").chat_templates == {"default": "mine"}


def test_special_tokens_come_from_the_map_if_the_configuration_has_none(model_dir: Path) -> None:
    (model_dir / "tokenizer_config.json").unlink()
    (model_dir / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|im_end|>"}, "additional": ["x"]}')

    bundle = bundle_of(model_dir)

    assert bundle.special_tokens == {"eos_token": "<|im_end|>"}
    assert bundle.chat_templates == {}


@pytest.mark.parametrize(
    ("generation", "config", "ids"),
    [
        ({"eos_token_id": 5}, {"eos_token_id": 7}, [5, 2]),
        ({}, {"eos_token_id": [7, 8]}, [7, 8, 2]),
        ({}, {}, [2]),
    ],
)
def test_ends_are_the_first_source_and_the_tokenizers_own(
    model_dir: Path, generation: dict[str, Any], config: dict[str, Any], ids: list[int]
) -> None:
    (model_dir / "generation_config.json").write_text(json.dumps(generation))
    (model_dir / "config.json").write_text(json.dumps(config))

    assert bundle_of(model_dir).eos_token_ids == ids


@pytest.mark.parametrize("choice", ["vllm", "none"])
def test_sampling_defaults_can_be_left_out_but_ends_stay(model_dir: Path, choice: str) -> None:
    bundle = bundle_of(model_dir, generation_config=choice)

    assert bundle.default_sampling == {}
    assert bundle.eos_token_ids == [2, 0]


def test_sampling_defaults_can_come_from_another_folder(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"top_p": 0.25}')

    assert bundle_of(model_dir, generation_config=str(tmp_path)).default_sampling == {"top_p": 0.25}


def test_tokens_that_only_the_configuration_knows_are_added(model_dir: Path) -> None:
    edit(
        model_dir / "tokenizer_config.json",
        pad_token="<|pad|>",
        added_tokens_decoder={"500": {"content": "<|new|>", "special": True}},
    )

    tokenizer = load_tokenizer(bundle_of(model_dir).tokenizer_json)

    ids = tokenizer.encode("a<|new|><|pad|>", add_special_tokens=False).ids
    assert [tokenizer.id_to_token(token) for token in ids] == ["a", "<|new|>", "<|pad|>"]


def test_the_vocabulary_is_the_tokenizers_if_the_configuration_says_nothing(model_dir: Path) -> None:
    (model_dir / "config.json").write_text('{"text_config": {"hidden_size": 8}}')

    bundle = bundle_of(model_dir)

    assert bundle.vocab_size == load_tokenizer(bundle.tokenizer_json).get_vocab_size()


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("tokenizer.json", None, "tokenizer.json: missing"),
        ("tokenizer.json", "{}", "tokenizer.json: is not a tokenizer"),
        ("tokenizer.json", "garbage", "tokenizer.json: is not a tokenizer"),
        ("tokenizer_config.json", "{", "tokenizer_config.json: is not a JSON object"),
        ("config.json", "[]", "config.json: is not a JSON object"),
        ("generation_config.json", '{"temperature": "hot"}', "temperature must be a number"),
    ],
)
def test_a_broken_folder_is_refused_by_file(model_dir: Path, file: str, content: str | None, words: str) -> None:
    (model_dir / file).unlink()
    if content is not None:
        (model_dir / file).write_text(content)

    with pytest.raises(ModelFolderError, match=words):
        bundle_of(model_dir)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="is not a folder"):
        bundle_of(tmp_path / "absent")
