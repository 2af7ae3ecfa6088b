"""The shape of a BERT-like encoder, read from the `config.json` of a Hugging Face checkpoint.

Whatever would change the model's output and is not built here is refused by name. Torch-free: the task of a model is decided with this.
"""

from dataclasses import dataclass
from typing import Any, Literal

from quire_worker.models.config import parse_dtype
from quire_worker.models.fields import Fields

Family = Literal["bert", "roberta", "distilbert"]
Activation = Literal["gelu", "gelu_tanh", "relu"]

_FAMILIES: dict[str, Family] = {
    "Bert": "bert",
    "Roberta": "roberta",
    "XLMRoberta": "roberta",
    "Camembert": "roberta",
    "DistilBert": "distilbert",
}
_ENCODERS = {f"{name}{kind}": family for name, family in _FAMILIES.items() for kind in ("Model", "ForMaskedLM")}
_CROSS_ENCODERS = {f"{name}ForSequenceClassification": family for name, family in _FAMILIES.items()}
ENCODER_ARCHITECTURES = frozenset(_ENCODERS)
"""Models of which embeddings are made; a head that predicts masked words is left out."""
CROSS_ENCODER_ARCHITECTURES = frozenset(_CROSS_ENCODERS)
"""Models that read two texts and say how well they go together."""
_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
_DISTILBERT_EPS = 1e-12


@dataclass(frozen=True, kw_only=True)
class ScoreHead:
    """What turns a pair's first token into its score."""

    is_sigmoid: bool
    """The score is sigmoid(logit), 0 to 1; otherwise the logit itself."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """One encoder. Sizes are element counts."""

    architecture: str
    family: Family
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    head_dim: int
    layer_norm_eps: float
    activation: Activation
    num_positions: int
    """Rows of the position table."""
    padding_id: int | None
    """RoBERTa counts positions from padding_id + 1, and gives this token itself the position padding_id. None: positions begin at 0."""
    num_token_types: int
    """Rows of the table of token types; 0: there is none."""
    dtype: str | None
    score_head: ScoreHead | None

    @property
    def max_length(self) -> int:
        """Tokens of the longest input."""
        return self.num_positions - (0 if self.padding_id is None else self.padding_id + 1)


def parse_encoder_config(raw: dict[str, Any], source: str = "config.json") -> EncoderConfig:
    """The encoder's shape; `raw` names an architecture of the sets above. Raises LoadError naming the field."""
    fields = Fields(raw, source)
    architecture = next(name for name in raw["architectures"] if name in _ENCODERS or name in _CROSS_ENCODERS)
    family = _ENCODERS.get(architecture) or _CROSS_ENCODERS[architecture]
    _refuse_unsupported(fields)
    is_distilled = family == "distilbert"
    hidden_size = fields.positive_int("dim" if is_distilled else "hidden_size")
    num_heads = fields.positive_int("n_heads" if is_distilled else "num_attention_heads")
    if hidden_size % num_heads:
        raise fields.error("num_attention_heads", f"must divide the hidden size ({hidden_size})")
    padding_id = fields.integer("pad_token_id", default=1) if family == "roberta" else None
    return EncoderConfig(
        architecture=architecture,
        family=family,
        vocab_size=fields.positive_int("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.positive_int("hidden_dim" if is_distilled else "intermediate_size"),
        num_layers=fields.positive_int("n_layers" if is_distilled else "num_hidden_layers"),
        num_heads=num_heads,
        head_dim=hidden_size // num_heads,
        layer_norm_eps=_DISTILBERT_EPS if is_distilled else fields.number("layer_norm_eps", default=1e-12),
        activation=_activation(fields, "activation" if is_distilled else "hidden_act"),
        num_positions=fields.positive_int("max_position_embeddings", default=512),
        padding_id=padding_id,
        num_token_types=0 if is_distilled else fields.positive_int("type_vocab_size", default=2),
        dtype=parse_dtype(fields),
        score_head=_score_head(fields) if architecture in _CROSS_ENCODERS else None,
    )


def _refuse_unsupported(fields: Fields) -> None:
    if fields.raw.get("position_embedding_type", "absolute") != "absolute":
        raise fields.error("position_embedding_type", "is not supported; supported: absolute")
    for name in ("is_decoder", "add_cross_attention", "is_encoder_decoder"):
        if fields.boolean(name, default=False):
            raise fields.error(name, "is not supported; supported: encoders")
    if fields.raw.get("quantization_config") is not None:
        raise fields.error("quantization_config", "is not supported for encoders; serve a checkpoint in floats")


def _activation(fields: Fields, name: str) -> Activation:
    value = fields.raw.get(name, "gelu")
    if value not in _ACTIVATIONS:
        raise fields.error(name, f"is not supported; supported: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[value]


def _score_head(fields: Fields) -> ScoreHead:
    """As sentence-transformers' CrossEncoder: one label, and sigmoid unless the file says otherwise."""
    labels = fields.raw.get("id2label")
    count = fields.raw.get("num_labels", len(labels) if isinstance(labels, dict) else 2)
    if count != 1:
        name = "num_labels" if "num_labels" in fields.raw else "id2label"
        raise fields.error(name, "must have one label: only models that give a pair one score are supported")
    return ScoreHead(is_sigmoid=_is_sigmoid(fields))


def _is_sigmoid(fields: Fields) -> bool:
    theirs = fields.raw.get("sentence_transformers")
    name, value = "sbert_ce_default_activation_function", fields.raw.get("sbert_ce_default_activation_function")
    if isinstance(theirs, dict) and "activation_fn" in theirs:
        name, value = "sentence_transformers", theirs["activation_fn"]
    match str(value).rpartition(".")[2]:
        case "Sigmoid" | "None":
            return True
        case "Identity":
            return False
    raise fields.error(name, "is not supported; supported: torch.nn.Sigmoid and torch.nn.Identity")
