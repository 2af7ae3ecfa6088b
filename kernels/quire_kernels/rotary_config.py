"""What a checkpoint says about rotary embedding, as plain values. No torch: configurations are read and checked without it."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """All frequencies divided by `factor`."""

    factor: float


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Long wavelengths divided by `factor`, short ones kept, a smooth ramp between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """Frequencies interpolated below, kept above, a ramp between; cosines and sines times an attention factor.

    `factor` None means max_position / original_max_position. `attention_factor` None derives it from `mscale` and `mscale_all_dim`
    (both or neither), or from `factor`.
    """

    factor: float | None
    original_max_position: int
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


@dataclass(frozen=True, kw_only=True)
class RotaryConfig:
    """What a checkpoint's config says about rotary embedding."""

    head_dim: int
    rotary_dim: int
    """Dims that rotate: head_dim times `partial_rotary_factor`. Even."""
    theta: float
    max_position: int
    """Rows of the table."""
    scaling: LinearScaling | Llama3Scaling | YarnScaling | None = None
    """None for the default (unscaled) type."""
