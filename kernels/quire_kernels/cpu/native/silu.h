// The gated activation of an MLP.
#pragma once

#include "simd.h"

namespace quire {

// x / (1 + e^-x); NaN stays NaN.
inline F16 silu(F16 x) { return x / (set1(1.0f) + exp(zero() - x)); }

}  // namespace quire
