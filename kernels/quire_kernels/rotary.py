"""Rotary position embedding: its table of angles (default, linear, llama3 and yarn scaling) and its application.

    q          [T, H, D]     queries; any stride over T and H, D contiguous
    k          [T, Hkv, D]   keys, likewise
    positions  [T] int64     position of each token in its request
    cos_sin    [P, R]        R = rotary dim <= D, even; cosines in the first R/2 columns, sines in the others

Half-split ("neox") style: dim i pairs with dim i + R/2; dims from R on pass through. Rounding follows Hugging Face's Llama: the
table is rounded to q's dtype, each product is rounded to it, then their sum. q and k are consumed: the launcher may rotate them in place
and return them, or return new tensors and leave the old ones as they were. Callers use what is returned.

Formulas of the scalings: linear, https://kaiokendev.github.io/til; yarn, arXiv 2309.00071; llama3, the Llama 3.1 model card's code.
"""

import math

import torch
from torch import Tensor

from quire_kernels.rotary_config import LinearScaling, Llama3Scaling, RotaryConfig, YarnScaling

__all__ = [
    "LinearScaling",
    "Llama3Scaling",
    "RotaryConfig",
    "YarnScaling",
    "apply_rotary_reference",
    "rotary_cos_sin",
]


def rotary_cos_sin(config: RotaryConfig, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    """The table [max_position, rotary_dim]: computed in float32 as transformers does, then cast to `dtype`.

    Raises ValueError when rotary_dim is odd or exceeds head_dim.
    """
    if config.rotary_dim % 2 or not 0 < config.rotary_dim <= config.head_dim:
        raise ValueError(f"rotary_dim={config.rotary_dim} must be even and in (0, head_dim={config.head_dim}]")
    inv_freq, attention_factor = _inverse_frequencies(config)
    angles = torch.arange(config.max_position).float()[:, None] * inv_freq
    table = torch.cat((angles.cos() * attention_factor, angles.sin() * attention_factor), dim=-1)
    return table.to(device=device, dtype=dtype)


def apply_rotary_reference(q_THD: Tensor, k_THD: Tensor, positions: Tensor, cos_sin: Tensor) -> tuple[Tensor, Tensor]:
    """q and k rotated to their positions, in new tensors."""
    cos, sin = cos_sin[positions].to(q_THD.dtype).chunk(2, dim=-1)
    cos, sin = torch.cat((cos, cos), dim=-1)[:, None], torch.cat((sin, sin), dim=-1)[:, None]
    return _rotate(q_THD, cos, sin), _rotate(k_THD, cos, sin)


def _rotate(x_THD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    rotary_dim = cos.shape[-1]
    turned, passed = x_THD[..., :rotary_dim], x_THD[..., rotary_dim:]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((turned, passed), dim=-1)


def _inverse_frequencies(config: RotaryConfig) -> tuple[Tensor, float]:
    powers = config.theta ** (torch.arange(0, config.rotary_dim, 2).float() / config.rotary_dim)
    match config.scaling:
        case None:
            return 1.0 / powers, 1.0
        case LinearScaling(factor=factor):
            return 1.0 / powers / factor, 1.0
        case Llama3Scaling() as scaling:
            return _llama3_frequencies(1.0 / powers, scaling), 1.0
        case YarnScaling() as scaling:
            return _yarn_frequencies(powers, config, scaling)


def _llama3_frequencies(inv_freq: Tensor, scaling: Llama3Scaling) -> Tensor:
    original = scaling.original_max_position
    wavelength = 2 * math.pi / inv_freq
    is_long = wavelength > original / scaling.low_freq_factor
    is_short = wavelength < original / scaling.high_freq_factor
    kept = torch.where(is_long, inv_freq / scaling.factor, inv_freq)
    ramp = (original / wavelength - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    smoothed = (1 - ramp) * kept / scaling.factor + ramp * kept
    return torch.where(is_long | is_short, kept, smoothed)


def _yarn_frequencies(powers: Tensor, config: RotaryConfig, scaling: YarnScaling) -> tuple[Tensor, float]:
    dim, factor = config.rotary_dim, scaling.factor
    if factor is None:
        factor = config.max_position / scaling.original_max_position
    low, high = _yarn_ramp_range(config, scaling)
    ramp = torch.clamp((torch.arange(dim // 2).float() - low) / (high - low), 0, 1)
    kept = 1 - ramp
    inv_freq = 1.0 / (factor * powers) * (1 - kept) + 1.0 / powers * kept
    return inv_freq, _yarn_attention_factor(factor, scaling)


def _yarn_ramp_range(config: RotaryConfig, scaling: YarnScaling) -> tuple[float, float]:
    """First and last frequency index of the ramp between kept and interpolated frequencies."""

    def index_of(rotations: float) -> float:
        turns = scaling.original_max_position / (rotations * 2 * math.pi)
        return config.rotary_dim * math.log(turns) / (2 * math.log(config.theta))

    low, high = index_of(scaling.beta_fast), index_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.rotary_dim - 1)
    return low, high + 0.001 if low == high else high


def _yarn_attention_factor(factor: float, scaling: YarnScaling) -> float:
    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return mscale(scaling.mscale) / mscale(scaling.mscale_all_dim)
    return mscale(1.0)
