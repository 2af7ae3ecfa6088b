"""Names that a checkpoint's tensors have, made those that the model's parts declare.

A model saved as one class and read as another keeps its tensors and changes their prefix: `bert.encoder.layer.0...` of a model with a head
is `encoder.layer.0...` of one without, and sentence-transformers saves decoders without `model.`. Must not know what the tensors mean.
"""

import dataclasses
from collections.abc import Callable

from quire_worker.models.safetensors_reader import Checkpoint

_MASKED_WORD_HEADS = ("cls.", "lm_head.", "vocab_transform.", "vocab_layer_norm.", "vocab_projector.")
_OLD_NORMS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


def encoder_checkpoint(checkpoint: Checkpoint, prefix: str) -> Checkpoint:
    """Of an encoder whose base class is called `prefix` inside other classes. Heads that predict masked words are left out."""

    def rename(name: str) -> str | None:
        if name.startswith(_MASKED_WORD_HEADS):
            return None
        name = name.removeprefix(f"{prefix}.")
        for old, new in _OLD_NORMS.items():
            if name.endswith(old):
                return name.removesuffix(old) + new
        return name

    return _renamed(checkpoint, rename)


def decoder_checkpoint(checkpoint: Checkpoint) -> Checkpoint:
    """Of a decoder, with the prefix `model.` if its base class was saved alone. An output head is left out."""
    has_prefix = any(name.startswith("model.") for name in checkpoint.entries)

    def rename(name: str) -> str | None:
        if name.startswith("lm_head."):
            return None
        return name if has_prefix else f"model.{name}"

    return _renamed(checkpoint, rename)


def _renamed(checkpoint: Checkpoint, rename: Callable[[str], str | None]) -> Checkpoint:
    names = {name: rename(name) for name in checkpoint.entries}
    return Checkpoint(
        {new: dataclasses.replace(checkpoint.entries[old], name=new) for old, new in names.items() if new is not None}
    )
