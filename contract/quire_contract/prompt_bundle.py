"""The prompt bundle: everything that turns a request into token ids and block hashes, in one digest-named file.

A worker makes it from its model folder and serves it; a router fetches it once per digest and hashes for an endpoint only with that
endpoint's bundle, so it never needs model files. `prompt.PromptRenderer` uses it.
"""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from quire_contract import model_folder
from quire_contract.block_hash import SCHEME
from quire_contract.wire import WireError


class PromptBundle(msgspec.Struct, frozen=True, kw_only=True):
    """What render, tokenise and hash need. A msgpack map; readers ignore fields that they do not know."""

    tokenizer_json: bytes
    """A complete tokenizer.json: added tokens included, its post-processor says which special tokens text gets."""
    chat_templates: dict[str, str] = {}
    """Jinja2 sources by name; "default", and "tool_use" where a model has one for requests with tools."""
    special_tokens: dict[str, str] = {}
    """bos_token, eos_token, unk_token, pad_token, ...: variables of the templates."""
    vocab_size: int
    """Rows of the model's embedding; ids in requests must be below it. The tokenizer may know fewer."""
    eos_token_ids: list[int] = []
    """Tokens that end an answer."""
    default_sampling: dict[str, float] = {}
    """What the model's authors recommend where a request says nothing: temperature, top_p, top_k, min_p, repetition_penalty,
    max_tokens (of output). All as floats."""
    served_model_names: list[str] = []
    block_size: int
    """Tokens in a block."""
    max_model_len: int
    """Tokens of prompt and output at most."""
    scheme: str = SCHEME
    """How blocks are hashed."""

    @classmethod
    def from_model_dir(
        cls,
        path: Path,
        *,
        block_size: int,
        max_model_len: int,
        served_model_names: Sequence[str],
        generation_config: str = "auto",
        chat_template: str | None = None,
    ) -> "PromptBundle":
        """Bundle of the Hugging Face folder at `path`.

        `generation_config` is "auto" (the model's own), "vllm" or "none" (no defaults) or another folder that has the file.
        `chat_template` is a Jinja2 source that replaces the model's. ModelFolderError names the file that is missing or wrong.
        """
        files = model_folder.read_prompt_files(path, generation_config)
        return cls(
            tokenizer_json=files.tokenizer_json,
            chat_templates=files.chat_templates if chat_template is None else {"default": chat_template},
            special_tokens=files.special_tokens,
            vocab_size=files.vocab_size,
            eos_token_ids=files.eos_token_ids,
            default_sampling=files.default_sampling,
            served_model_names=list(served_model_names),
            block_size=block_size,
            max_model_len=max_model_len,
        )

    def to_bytes(self) -> bytes:
        """The bundle as bytes; the same bundle gives the same bytes."""
        return msgspec.msgpack.encode(self, order="deterministic")

    @classmethod
    def from_bytes(cls, data: bytes) -> "PromptBundle":
        """The bundle in `data`. WireError if it is none."""
        try:
            return msgspec.msgpack.decode(data, type=cls)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise WireError(f"prompt bundle: {error}") from None

    def digest(self) -> str:
        """SHA-256 of the bytes, hexadecimal: the bundle's name. Takes milliseconds for a large tokenizer; keep it."""
        return digest_of(self.to_bytes())

    def replace(self, **changes: Any) -> "PromptBundle":
        """A copy with other values, for example max_model_len once the KV pool is known."""
        return msgspec.structs.replace(self, **changes)


def digest_of(data: bytes) -> str:
    """Digest of a bundle's bytes: a reader checks that it got what it asked for."""
    return sha256(data).hexdigest()
