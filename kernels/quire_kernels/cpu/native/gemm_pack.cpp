#include "gemm_pack.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

namespace quire {

namespace {

// Where a row of the weight goes, counted over all panels' columns.
int64_t column_of(int64_t row, const Packed& w) {
    if (!w.gate_up) return row;
    constexpr int64_t half = kPanel / 2;
    int64_t outputs = w.num_outputs();
    int64_t output = row < outputs ? row : row - outputs;
    return output / half * kPanel + (row < outputs ? 0 : half) + output % half;
}

// A row into its column of a panel: kDepth elements together, then the next kDepth kPanel of them on.
template <int kDepth, class T>
void scatter(const T* row, int64_t in_features, T* column) {
    int64_t step = 0;
    for (; (step + 1) * kDepth <= in_features; step++)
        std::memcpy(column + step * kPanel * kDepth, row + step * kDepth, sizeof(T) * kDepth);
    for (int64_t k = step * kDepth; k < in_features; k++) column[step * kPanel * kDepth + k % kDepth] = row[k];
}

// Symmetric: the largest becomes 127. A row that is not finite gets a scale of NaN, as its outputs would be. Returns the sum of the column.
template <class T>
int32_t quantise_column(const T* row, int64_t in_features, int64_t depth, int8_t* column, float& scale) {
    float largest = 0;
    bool is_finite = true;
    for (int64_t k = 0; k < in_features; k++) {
        float x = std::fabs(to_float(row[k]));
        is_finite &= x <= 3.4028235e38f;
        largest = std::max(largest, x);
    }
    float inverse = largest > 0 && is_finite ? 127.0f / largest : 0.0f;
    int32_t total = 0;
    for (int64_t k = 0; k < in_features; k++) {
        int32_t q = is_finite ? int32_t(std::nearbyint(to_float(row[k]) * inverse)) : 0;
        q = std::min(127, std::max(-127, q));
        total += q;
        column[k / depth * kPanel * depth + k % depth] = int8_t(q);
    }
    scale = is_finite ? largest / 127.0f : NAN;
    return total;
}

}  // namespace

int64_t packed_columns(int64_t out_features, bool gate_up) {
    Packed w{};
    w.out_features = out_features;
    w.gate_up = gate_up;
    return w.num_panels() * kPanel;
}

int64_t packed_data_bytes(DType dtype, int64_t out_features, int64_t in_features, bool gate_up) {
    int64_t depth = depth_of(dtype);
    return packed_columns(out_features, gate_up) * ((in_features + depth - 1) / depth * depth) * item_of(dtype);
}

template <class T>
void pack_rows(Team& team, const T* weight, int64_t stride, int64_t first, int64_t num_rows, const Packed& w) {
    int64_t depth = depth_of(w.dtype);
    int64_t panel_size = (w.in_features + depth - 1) / depth * depth * kPanel;
    // Sixteen rows share the panel's cache lines.
    team.for_each((num_rows + 15) / 16, 1, [&](int64_t piece) {
        int64_t last = std::min(num_rows, (piece + 1) * 16);
        for (int64_t i = piece * 16; i < last; i++) {
            int64_t column = column_of(first + i, w);
            int64_t place = column / kPanel * panel_size + column % kPanel * depth;
            const T* row = weight + i * stride;
            if (is_int8(w.dtype)) {
                int8_t* to = static_cast<int8_t*>(const_cast<void*>(w.data)) + place;
                int32_t sum = quantise_column(row, w.in_features, depth, to, const_cast<float*>(w.scales)[column]);
                if (w.sums) const_cast<int32_t*>(w.sums)[column] = 128 * sum;
            } else {
                scatter<std::is_same_v<T, float> ? 1 : 2>(row, w.in_features, static_cast<T*>(const_cast<void*>(w.data)) + place);
            }
        }
    });
}

template void pack_rows<float>(Team&, const float*, int64_t, int64_t, int64_t, const Packed&);
template void pack_rows<bf16>(Team&, const bf16*, int64_t, int64_t, int64_t, const Packed&);

void pack_bias(const float* bias, int64_t first, int64_t count, const Packed& w) {
    for (int64_t i = 0; i < count; i++) const_cast<float*>(w.bias)[column_of(first + i, w)] = bias[i];
}

}  // namespace quire
