#include "gemm_pack.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "int8_floats.h"

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

// Symmetric: the largest becomes 127. A row that is not finite gets a scale of NaN, as its outputs would be. put(k, int8) takes the values.
template <class T, class Put>
void quantise_row(const T* row, int64_t in_features, float& scale, Put&& put) {
    float largest = 0;
    bool is_finite = true;
    for (int64_t k = 0; k < in_features; k++) {
        float x = std::fabs(to_float(row[k]));
        is_finite &= x <= 3.4028235e38f;
        largest = std::max(largest, x);
    }
    float inverse = largest > 0 && is_finite ? 127.0f / largest : 0.0f;
    for (int64_t k = 0; k < in_features; k++) {
        int32_t q = is_finite ? int32_t(std::nearbyint(to_float(row[k]) * inverse)) : 0;
        put(k, std::min(127, std::max(-127, q)));
    }
    scale = is_finite ? largest / 127.0f : NAN;
}

// A row of the weight into its column, counted within the panel.
template <class T>
void pack_int8(const T* row, const Packed& w, int8_t* panel, int64_t column, float& scale, int32_t* sum) {
    if (w.dtype == DType::kI8) {
        int32_t total = 0;
        quantise_row(row, w.in_features, scale, [&](int64_t k, int32_t q) {
            panel[(k / 4 * kPanel + column) * 4 + k % 4] = int8_t(q);
            total += q;
        });
        *sum = 128 * total;
    } else if (w.dtype == DType::kI8ForF32) {
        quantise_row(row, w.in_features, scale, [&](int64_t k, int32_t q) { panel[k * kPanel + column] = int8_t(q); });
    } else {
        quantise_row(row, w.in_features, scale, [&](int64_t k, int32_t q) {
            panel[k / 2 * kPanel * 2 + place_in_step(column, k % 2)] = coded(q);
        });
    }
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
            const T* row = weight + i * stride;
            void* data = const_cast<void*>(w.data);
            if (is_int8(w.dtype)) {
                pack_int8(row, w, static_cast<int8_t*>(data) + column / kPanel * panel_size, column % kPanel,
                          const_cast<float*>(w.scales)[column], w.sums ? const_cast<int32_t*>(w.sums) + column : nullptr);
            } else {
                T* to = static_cast<T*>(data) + column / kPanel * panel_size + column % kPanel * depth;
                scatter<std::is_same_v<T, float> ? 1 : 2>(row, w.in_features, to);
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
