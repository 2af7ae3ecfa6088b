"""The rotary embedding a checkpoint asks for, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (4).

Knows the spellings; the formulas are quire_kernels.rotary's. Torch-free.
"""

from dataclasses import dataclass
from typing import Any

from quire_kernels.rotary_config import LinearScaling, Llama3Scaling, RotaryConfig, YarnScaling
from quire_worker.models.fields import Fields

Scaling = LinearScaling | Llama3Scaling | YarnScaling
_TYPES = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Base and scaling of the rotary embedding; the whole head turns."""

    theta: float
    scaling: Scaling | None

    def table_config(self, head_dim: int, num_positions: int) -> RotaryConfig:
        """For a table of `num_positions` rows."""
        return RotaryConfig(
            head_dim=head_dim,
            rotary_dim=head_dim,
            theta=self.theta,
            max_position=num_positions,
            scaling=self.scaling,
        )


def parse_rope(fields: Fields, default_theta: float, max_position: int) -> RopeConfig:
    """Raises LoadError naming the field for a type or a value that is not supported."""
    name = "rope_scaling" if fields.raw.get("rope_scaling") else "rope_parameters"
    value: Any = fields.raw.get(name)
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise fields.error(name, "must be an object")
    if any(isinstance(entry, dict) for entry in value.values()):
        raise fields.error(name, "differs by layer type, which is not supported: one rotary embedding for all layers")
    rope = Fields(value, f"{fields.source}: {name}")
    _refuse_partial(fields)
    _refuse_partial(rope)
    theta = rope.number("rope_theta", default=fields.number("rope_theta", default=default_theta))
    return RopeConfig(theta=theta, scaling=_scaling(rope, fields, max_position))


def _refuse_partial(fields: Fields) -> None:
    if fields.number("partial_rotary_factor", default=1.0) != 1.0:
        raise fields.error("partial_rotary_factor", "is not supported; supported: 1.0")


def _scaling(rope: Fields, fields: Fields, max_position: int) -> Scaling | None:
    key = "rope_type" if rope.raw.get("rope_type") is not None else "type"
    kind = rope.raw.get(key, "default")
    original = _original_max_position(rope, fields, max_position)
    match kind:
        case "default" | None:
            return None
        case "linear":
            return LinearScaling(factor=rope.number("factor"))
        case "llama3":
            return Llama3Scaling(
                factor=rope.number("factor"),
                low_freq_factor=rope.number("low_freq_factor"),
                high_freq_factor=rope.number("high_freq_factor"),
                original_max_position=original,
            )
        case "yarn":
            return _yarn(rope, original, max_position)
    raise rope.error(key, f"is not supported; supported: {', '.join(_TYPES)}")


def _original_max_position(rope: Fields, fields: Fields, max_position: int) -> int:
    name = "original_max_position_embeddings"
    return fields.positive_int(name, default=rope.positive_int(name, default=max_position))


def _yarn(rope: Fields, original: int, max_position: int) -> YarnScaling:
    def optional(name: str) -> float | None:
        return None if rope.raw.get(name) is None else rope.number(name)

    return YarnScaling(
        factor=rope.number("factor", default=max_position / original),
        original_max_position=original,
        attention_factor=optional("attention_factor"),
        beta_fast=optional("beta_fast") or 32.0,
        beta_slow=optional("beta_slow") or 1.0,
        mscale=optional("mscale"),
        mscale_all_dim=optional("mscale_all_dim"),
        truncate=rope.boolean("truncate", default=True),
    )
