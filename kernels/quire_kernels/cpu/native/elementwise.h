// What stands between the matrix products: norms with their residual, and the gated activation on its own.
//
// T is float or bf16. In a run, by every thread alike, unless a row is in the name; ends with a wait.
#pragma once

#include "pool.h"
#include "simd.h"

namespace quire {

// One row, by one thread: sum = T(x + residual_in), out = T(T(sum / rms(sum)) * weight). x or residual_in may be null (not both): the other is
// the sum. residual_out receives the sum, null: nobody wants it. It may be residual_in; out may be x. The order of the additions depends on the
// width alone.
template <class T>
void rms_norm_row(const T* x, const T* residual_in, T* residual_out, const T* weight, float eps, T* out, int64_t width);

// Rows of x lie `x_stride` elements apart; those of the others are contiguous.
template <class T>
void rms_norm_rows(Team& team, const T* x, int64_t x_stride, const T* residual_in, T* residual_out, const T* weight, float eps, T* out,
                   int64_t num_rows, int64_t width);

// out [rows, width] = T(T(silu(gate)) * up) of [rows, 2 * width], gates first.
template <class T>
void silu_mul_rows(Team& team, const T* gate_up, int64_t stride, T* out, int64_t num_rows, int64_t width);

}  // namespace quire
