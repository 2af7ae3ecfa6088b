// Weights into panels: see gemm.h for the order.
#pragma once

#include "gemm.h"

namespace quire {

// What a packed weight's tensors must hold. `data_bytes` and `columns` (elements of bias, scales and sums) include the padding.
int64_t packed_data_bytes(DType dtype, int64_t out_features, int64_t in_features, bool gate_up);
int64_t packed_columns(int64_t out_features, bool gate_up);

// In a run, by every thread alike: rows [first, first + num_rows) of the weight into the panels, which were zeros. `w` has its sizes and
// pointers. float to kF32, bf16 to kBF16, either to int8, which also writes the rows' scales and, of kI8, sums. Ends with a wait.
template <class T>
void pack_rows(Team& team, const T* weight, int64_t stride, int64_t first, int64_t num_rows, const Packed& w);

// Elements [first, first + count) of the bias into its place.
void pack_bias(const float* bias, int64_t first, int64_t count, const Packed& w);

}  // namespace quire
