"""Which of a repository's files a worker reads: configuration, tokenizer, chat templates and safetensors; never pickles, never code.

Names come from outside and are checked here, once. This module must not know where they come from.
"""

import posixpath
import re
from collections.abc import Iterable

import msgspec

from quire_worker.fetch.errors import FetchError, Reason
from quire_worker.models.safetensors_files import INDEX_NAME, SINGLE_NAME

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
OPTIONAL = (
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "modules.json",
)
"""Asked for by name where a source cannot be listed."""
MODULES = "modules.json"
"""Says that sentence-transformers made the folder."""
OF_MODULES = ("sentence_bert_config.json", "1_Pooling/config.json")
"""Asked for beside MODULES: how long inputs are, and how they become a vector."""
MAX_FILES = 2000
MAX_INDEX_BYTES = 64 * 1024 * 1024
_TEXT_SUFFIXES = (".json", ".jinja", ".txt", ".model", ".tiktoken")
_TEMPLATE_FOLDER = "additional_chat_templates"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9 _.+=@,()\[\]-]*")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack", ".gguf")
_WEIGHTS = ".safetensors"
_OF_MODULE = re.compile(r"[0-9]{1,3}_[A-Za-z]{1,50}/config\.json")
"""The settings of one step of MODULES."""


def check_name(name: str) -> str:
    """`name` if it stays inside the model's folder. FetchError else: whoever lists such names means no good."""
    parts = name.split("/")
    if len(name) > 512 or any(part in {"", ".", ".."} or "\\" in part or "\0" in part for part in parts):
        raise FetchError(
            Reason.INVALID_MODEL, f"the source lists the file {name[:200]!r}, which leads out of the model's folder"
        )
    return name


def needed(listed: Iterable[str], index: bytes | None) -> list[str]:
    """Names of the files to fetch, sorted. `index` is the content of INDEX_NAME where that is listed.

    Raises FetchError if the files are no model that a worker can load.
    """
    found = {check_name(name) for name in listed}
    texts = {name for name in found if _is_wanted_text(name)}
    weights = _weights(found, index)
    missing = [name for name in (CONFIG, TOKENIZER) if name not in texts]
    if missing:
        raise FetchError(Reason.INVALID_MODEL, _without(missing[0]))
    return sorted(texts | weights)


def shards(index: bytes) -> list[str]:
    """The weight files that an index names, sorted."""

    class Index(msgspec.Struct):
        weight_map: dict[str, str]

    try:
        names = sorted(set(msgspec.json.decode(index, type=Index).weight_map.values()))
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FetchError(Reason.INVALID_MODEL, f"{INDEX_NAME} of the source is corrupt: {error}") from None
    for name in names:
        if posixpath.basename(check_name(name)) != name or not name.endswith(_WEIGHTS):
            raise FetchError(
                Reason.INVALID_MODEL, f"{INDEX_NAME} names the shard {name[:200]!r}, which is no plain safetensors file"
            )
    if not names or len(names) > MAX_FILES:
        raise FetchError(Reason.INVALID_MODEL, f"{INDEX_NAME} names {len(names)} shards; a model has 1 to {MAX_FILES}")
    return names


def _weights(found: set[str], index: bytes | None) -> set[str]:
    """What the index names, else the single file: other safetensors of a repository are the same weights once more."""
    if index is not None:
        named = set(shards(index))
        absent = sorted(named - found)
        if absent:
            raise FetchError(
                Reason.INVALID_MODEL,
                f"the source lacks {len(absent)} shards that {INDEX_NAME} names, such as {absent[0]}",
            )
        return named
    if SINGLE_NAME in found:
        return {SINGLE_NAME}
    pickled = sorted(name for name in found if name.endswith(_PICKLES))
    if pickled:
        raise FetchError(
            Reason.INVALID_MODEL,
            f"the source has weights only as {pickled[0]}, and such files can run code or are not read by the engine; "
            "convert them to safetensors (transformers: model.save_pretrained(folder)), or name a repository that has them",
        )
    raise FetchError(
        Reason.INVALID_MODEL,
        f"the source has neither {SINGLE_NAME} nor {INDEX_NAME}; it must be a model in Hugging Face format",
    )


def _is_wanted_text(name: str) -> bool:
    if _OF_MODULE.fullmatch(name):
        return True
    folder, base = posixpath.split(name)
    if not _NAME.fullmatch(base):
        return False
    return base.endswith(_TEXT_SUFFIXES) if not folder else folder == _TEMPLATE_FOLDER and base.endswith(".jinja")


def _without(name: str) -> str:
    if name == TOKENIZER:
        return (
            f"the source has no {TOKENIZER}; save the model's tokenizer in the fast format "
            "(transformers: AutoTokenizer.from_pretrained(...).save_pretrained(folder))"
        )
    return f"the source has no {CONFIG}; it must be a model in Hugging Face format"
