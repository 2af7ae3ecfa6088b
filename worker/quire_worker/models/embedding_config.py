"""What a model is served for, and how its hidden states become one vector: from the architecture, from the files that
sentence-transformers puts beside a checkpoint, and from flags.

    modules.json                  the steps: a transformer, pooling, perhaps normalisation; any other step is refused
    1_Pooling/config.json         which pooling
    sentence_bert_config.json     max_seq_length

Torch-free. Reads small files only. Format: https://sbert.net, sentence_transformers.models.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from quire_worker.errors import LoadError
from quire_worker.models.config import SUPPORTED_ARCHITECTURES
from quire_worker.models.encoder_config import CROSS_ENCODER_ARCHITECTURES, ENCODER_ARCHITECTURES

Task = Literal["generate", "embed", "score"]
Pooling = Literal["mean", "last", "cls"]

_BASES = {name.replace("ForCausalLM", "Model"): name for name in SUPPORTED_ARCHITECTURES}
"""Decoders saved without their output head, by the class whose configuration they share."""
_POOLINGS: dict[str, Pooling] = {
    "mean": "mean",
    "mean_tokens": "mean",
    "cls": "cls",
    "cls_token": "cls",
    "lasttoken": "last",
}
_MODULES = ("Transformer", "Pooling", "Normalize")


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """How hidden states become a vector."""

    pooling: Pooling
    normalises: bool
    """Vectors have length 1."""
    max_length: int | None
    """Tokens of an input that the model's authors intend; None: they do not say."""
    matryoshka: tuple[int, ...] | bool
    """Sizes to which a vector may be cut; True: any, False: none."""


def resolve_task(raw: dict[str, Any], model_dir: Path, wanted: str) -> Task:
    """What the model with config.json `raw` is served for; `wanted` is auto or a task. Raises LoadError if it cannot be served so."""
    names = raw.get("architectures")
    found = set(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else set()
    if found & CROSS_ENCODER_ARCHITECTURES:
        return _only("score", wanted, found, "scores pairs of texts")
    if found & ENCODER_ARCHITECTURES:
        return _only("embed", wanted, found, "makes embeddings")
    if wanted == "score":
        raise LoadError(
            f"--task score: {_shown(found)} has no head that scores pairs; supported: "
            f"{', '.join(sorted(CROSS_ENCODER_ARCHITECTURES))} with one label. "
            "With --task embed, /v1/score and /v1/rerank compare embeddings"
        )
    if wanted == "embed" or (wanted == "auto" and (found & _BASES.keys() or (model_dir / "modules.json").is_file())):
        return "embed"
    return "generate"


def _only(task: Task, wanted: str, found: set[str], what: str) -> Task:
    if wanted not in ("auto", task):
        raise LoadError(f"--task {wanted}: {_shown(found)} {what}: use --task {task} or auto")
    return task


def _shown(found: set[str]) -> str:
    return ", ".join(sorted(found)) or "the model"


def is_encoder(raw: dict[str, Any]) -> bool:
    """Whether config.json `raw` is an encoder's, with a head that scores or without."""
    names = raw.get("architectures")
    return isinstance(names, list) and any(
        name in ENCODER_ARCHITECTURES or name in CROSS_ENCODER_ARCHITECTURES for name in names if isinstance(name, str)
    )


def decoder_raw(raw: dict[str, Any]) -> dict[str, Any]:
    """`raw` with the name of the class that generates in place of its base class's, whose configuration is the same."""
    names = raw.get("architectures")
    if not isinstance(names, list):
        return raw
    return {**raw, "architectures": [_BASES.get(name, name) if isinstance(name, str) else name for name in names]}


def load_embedding_config(
    model_dir: Path, raw: dict[str, Any], *, is_decoder: bool, pooling: Pooling | None = None
) -> EmbeddingConfig:
    """`pooling` is the flag's; None: the files', else mean for encoders and the last token for decoders.

    Without modules.json vectors are normalised. Raises LoadError naming the file and what is supported.
    """
    default: Pooling = "last" if is_decoder else "mean"
    path = model_dir / "modules.json"
    modules = _read_json(path, list[dict[str, Any]]) if path.is_file() else None
    steps: list[tuple[str, str]] = []
    for module in modules or ():
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind not in _MODULES:
            raise LoadError(f"{path}: the module {kind} is not supported; supported: {', '.join(_MODULES)}")
        steps.append((kind, str(module.get("path", ""))))
    folders = [model_dir / where for kind, where in steps if kind == "Pooling"]
    # A flag overrides what the file says, also where that is not supported.
    stored = _stored_pooling(folders[0] / "config.json") if folders and pooling is None else None
    return EmbeddingConfig(
        pooling=pooling or stored or default,
        normalises=modules is None or any(kind == "Normalize" for kind, _ in steps),
        max_length=_max_length(model_dir / "sentence_bert_config.json"),
        matryoshka=_matryoshka(raw, model_dir / "config.json"),
    )


def _stored_pooling(path: Path) -> Pooling:
    raw = _read_json(path, dict[str, Any])
    mode = raw.get("pooling_mode")
    modes = [mode] if isinstance(mode, str) else list(mode) if isinstance(mode, list) else []
    modes = modes or [
        name.removeprefix("pooling_mode_")
        for name, on in raw.items()
        if name.startswith("pooling_mode_") and on is True
    ]
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        shown = " and ".join(str(name) for name in modes) or "none"
        raise LoadError(
            f"{path}: the pooling {shown} is not supported; supported: mean, cls or lasttoken (--pooling overrides it)"
        )
    return _POOLINGS[modes[0]]


def _max_length(path: Path) -> int | None:
    if not path.is_file():
        return None
    value = _read_json(path, dict[str, Any]).get("max_seq_length")
    return value if isinstance(value, int) and value > 0 else None


def _matryoshka(raw: dict[str, Any], path: Path) -> tuple[int, ...] | bool:
    """As vLLM reads it."""
    sizes = raw.get("matryoshka_dimensions")
    if sizes is None:
        return raw.get("is_matryoshka") is True
    if not isinstance(sizes, list) or not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise LoadError(f"{path}: matryoshka_dimensions must be a list of positive sizes")
    return tuple(sorted(sizes))


def _read_json(path: Path, kind: Any) -> Any:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise LoadError(f"{path}: cannot be read ({error}): download it again") from error
