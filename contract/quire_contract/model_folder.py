"""Reads from a Hugging Face model folder what a prompt bundle needs: tokenizer, chat templates, special tokens, ends, sampling defaults.

Never reads weights and never runs code from the folder. Errors name the file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import AddedToken, Tokenizer

TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_SAMPLING_NAMES = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}
_NO_DEFAULTS = ("vllm", "none")


class ModelFolderError(ValueError):
    """The folder cannot be used. The message names the file and the fix."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptFiles:
    """What the folder says about prompts."""

    tokenizer_json: bytes
    chat_templates: dict[str, str]
    special_tokens: dict[str, str]
    vocab_size: int
    eos_token_ids: list[int]
    default_sampling: dict[str, float]


class _AddedTokens(msgspec.Struct):
    """The part of tokenizer.json that lists added tokens."""

    added_tokens: list[dict[str, Any]] = []


def read_prompt_files(folder: Path, generation_config: str = "auto") -> PromptFiles:
    """Everything above, from the folder. ModelFolderError if a file is missing or wrong."""
    if not folder.is_dir():
        raise ModelFolderError(f"{folder}: is not a folder; give the path of a Hugging Face model folder")
    original_json = _read_tokenizer(folder)
    original = load_tokenizer(original_json, str(folder / "tokenizer.json"))
    tokenizer_config = _read_object(folder / "tokenizer_config.json")
    special_tokens = _special_tokens(tokenizer_config, _read_object(folder / "special_tokens_map.json"))
    tokenizer_json = with_missing_tokens(original_json, tokenizer_config, special_tokens)
    tokenizer = original if tokenizer_json is original_json else load_tokenizer(tokenizer_json)
    config = _read_object(folder / "config.json")
    generation = _read_generation_config(folder, generation_config)
    own_generation = _read_object(folder / "generation_config.json")
    return PromptFiles(
        tokenizer_json=tokenizer_json,
        chat_templates=_chat_templates(folder, tokenizer_config),
        special_tokens=special_tokens,
        vocab_size=_vocab_size(config, tokenizer),
        eos_token_ids=_eos_token_ids((own_generation, config), special_tokens.get("eos_token"), tokenizer),
        default_sampling=_sampling(generation, folder / "generation_config.json"),
    )


def load_tokenizer(tokenizer_json: bytes, source: str = "tokenizer.json") -> Tokenizer:
    """A tokenizer that neither truncates nor pads. ModelFolderError if the bytes are no tokenizer."""
    try:
        tokenizer = Tokenizer.from_buffer(tokenizer_json)
    except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
        raise ModelFolderError(f"{source}: is not a tokenizer: {str(error)[:300]}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def with_missing_tokens(
    tokenizer_json: bytes, tokenizer_config: Mapping[str, Any], special_tokens: Mapping[str, str]
) -> bytes:
    """A valid tokenizer.json with the tokens that only tokenizer_config.json knows; the same object, as nearly always, if none."""
    known = {str(token.get("content")) for token in msgspec.json.decode(tokenizer_json, type=_AddedTokens).added_tokens}
    declared = tokenizer_config.get("added_tokens_decoder") or {}
    missing = [
        AddedToken(
            str(entry.get("content")),
            single_word=bool(entry.get("single_word", False)),
            lstrip=bool(entry.get("lstrip", False)),
            rstrip=bool(entry.get("rstrip", False)),
            normalized=bool(entry.get("normalized", True)),
            special=bool(entry.get("special", False)) or entry.get("content") in special_tokens.values(),
        )
        for _, entry in sorted(declared.items(), key=lambda item: int(item[0]))
        if isinstance(entry, dict) and entry.get("content") not in known
    ]
    known |= {token.content for token in missing}
    named = dict.fromkeys(token for token in special_tokens.values() if token not in known)
    missing += [AddedToken(token, special=True, normalized=False) for token in named]
    if not missing:
        return tokenizer_json
    tokenizer = load_tokenizer(tokenizer_json)
    tokenizer.add_tokens(missing)
    return tokenizer.to_str().encode()


def _read_tokenizer(folder: Path) -> bytes:
    path = folder / "tokenizer.json"
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ModelFolderError(
            f"{path}: missing; save the model's tokenizer in the fast format (transformers: AutoTokenizer...save_pretrained)"
        ) from None
    except OSError as error:
        raise ModelFolderError(f"{path}: cannot be read: {error.strerror}") from None


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; {} if there is no such file."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ModelFolderError(f"{path}: cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelFolderError(f"{path}: is not a JSON object: {error}") from None


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFolderError(f"{path}: cannot be read as text: {error}") from None


def _token_text(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _special_tokens(tokenizer_config: Mapping[str, Any], special_map: Mapping[str, Any]) -> dict[str, str]:
    found = {
        name: _token_text(tokenizer_config.get(name)) or _token_text(special_map.get(name)) for name in TOKEN_NAMES
    }
    return {name: text for name, text in found.items() if text is not None}


def _chat_templates(folder: Path, tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """Template files win over what tokenizer_config.json holds: a string, or a list of {"name", "template"}."""
    files = {path.stem: _read_text(path) for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    single = folder / "chat_template.jinja"
    if single.is_file():
        files["default"] = _read_text(single)
    if files:
        return files
    held = tokenizer_config.get("chat_template")
    if isinstance(held, str):
        return {"default": held}
    if not isinstance(held, list):
        return {}
    return {
        str(entry["name"]): str(entry["template"]) for entry in held if isinstance(entry, dict) and "template" in entry
    }


def _vocab_size(config: Mapping[str, Any], tokenizer: Tokenizer) -> int:
    text_config = config.get("text_config")
    nested = text_config.get("vocab_size") if isinstance(text_config, dict) else None
    size = config.get("vocab_size", nested)
    return size if isinstance(size, int) and size > 0 else int(tokenizer.get_vocab_size())


def _eos_token_ids(sources: Sequence[Mapping[str, Any]], eos_token: str | None, tokenizer: Tokenizer) -> list[int]:
    """Ends that the first source with any names, and the tokenizer's own: fine-tuned chat models often set only the latter."""
    ids: list[int] = []
    for source in sources:
        value = source.get("eos_token_id")
        ids = [value] if isinstance(value, int) else [item for item in value or [] if isinstance(item, int)]
        if ids:
            break
    own = None if eos_token is None else tokenizer.token_to_id(eos_token)
    return ids if own is None or own in ids else [*ids, own]


def _read_generation_config(folder: Path, choice: str) -> dict[str, Any]:
    if choice in _NO_DEFAULTS:
        return {}
    if choice == "auto":
        return _read_object(folder / "generation_config.json")
    path = Path(choice) / "generation_config.json"
    if not path.is_file():
        raise ModelFolderError(f"{path}: missing; --generation-config takes auto, vllm or a folder that has this file")
    return _read_object(path)


def _sampling(generation: Mapping[str, Any], path: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    for theirs, ours in _SAMPLING_NAMES.items():
        value = generation.get(theirs)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ModelFolderError(f"{path}: {theirs} must be a number, not {value!r}")
        found[ours] = float(value)
    return found
