#include "elementwise.h"

#include <algorithm>
#include <cmath>

#include "silu.h"

namespace quire {

namespace {

// As T would hold it.
inline F16 rounded(F16 x, const float*) { return x; }
inline F16 rounded(F16 x, const bf16*) {
    bf16 lanes[16];
    store(lanes, x);
    return load(lanes);
}

// body(first, lanes) for each sixteen of the width; the last may be fewer.
template <class Body>
inline void for_each_lanes(int64_t width, Body&& body) {
    int64_t i = 0;
    for (; i + 16 <= width; i += 16) body(i, 16);
    if (i < width) body(i, int(width - i));
}

template <class T>
inline F16 load_lanes(const T* p, int lanes) {
    return lanes == 16 ? load(p) : load_first(p, lanes);
}

template <class T>
inline void store_lanes(T* p, F16 x, int lanes) {
    if (lanes == 16) store(p, x);
    else store_first(p, x, lanes);
}

// Rows that one thread takes at a time: enough to be worth the handing out.
int64_t grain_of(int64_t width) { return std::max<int64_t>(1, 4096 / std::max<int64_t>(1, width)); }

}  // namespace

template <class T>
void rms_norm_row(const T* x, const T* residual_in, T* residual_out, const T* weight, float eps, T* out, int64_t width) {
    // The sum, or where it was written down: to out if nowhere else, which is overwritten below as it is read.
    const T* sums = x ? x : residual_in;
    T* sums_out = residual_out ? residual_out : x && residual_in ? out : nullptr;
    F16 squares = zero();
    for_each_lanes(width, [&](int64_t i, int lanes) {
        F16 value = load_lanes(sums + i, lanes);
        if (x && residual_in) value = rounded(load_lanes(residual_in + i, lanes) + value, out);
        if (sums_out) store_lanes(sums_out + i, value, lanes);
        squares = fma(value, value, squares);
    });
    if (sums_out) sums = sums_out;
    F16 scale = set1(1.0f / std::sqrt(sum(squares) / float(width) + eps));
    for_each_lanes(width, [&](int64_t i, int lanes) {
        F16 normed = rounded(load_lanes(sums + i, lanes) * scale, out);
        store_lanes(out + i, normed * load_lanes(weight + i, lanes), lanes);
    });
}

template <class T>
void rms_norm_rows(Team& team, const T* x, int64_t x_stride, const T* residual_in, T* residual_out, const T* weight, float eps, T* out,
                   int64_t num_rows, int64_t width) {
    team.for_each(num_rows, grain_of(width), [&](int64_t row) {
        int64_t start = row * width;
        rms_norm_row(x ? x + row * x_stride : nullptr, residual_in ? residual_in + start : nullptr,
                     residual_out ? residual_out + start : nullptr, weight, eps, out + start, width);
    });
}

template <class T>
void silu_mul_rows(Team& team, const T* gate_up, int64_t stride, T* out, int64_t num_rows, int64_t width) {
    team.for_each(num_rows, grain_of(2 * width), [&](int64_t row) {
        const T* gate = gate_up + row * stride;
        for_each_lanes(width, [&](int64_t i, int lanes) {
            F16 activated = rounded(silu(load_lanes(gate + i, lanes)), out);
            store_lanes(out + row * width + i, activated * load_lanes(gate + width + i, lanes), lanes);
        });
    });
}

template void rms_norm_row<float>(const float*, const float*, float*, const float*, float, float*, int64_t);
template void rms_norm_row<bf16>(const bf16*, const bf16*, bf16*, const bf16*, float, bf16*, int64_t);
template void rms_norm_rows<float>(Team&, const float*, int64_t, const float*, float*, const float*, float, float*, int64_t, int64_t);
template void rms_norm_rows<bf16>(Team&, const bf16*, int64_t, const bf16*, bf16*, const bf16*, float, bf16*, int64_t, int64_t);
template void silu_mul_rows<float>(Team&, const float*, int64_t, float*, int64_t, int64_t);
template void silu_mul_rows<bf16>(Team&, const bf16*, int64_t, bf16*, int64_t, int64_t);

}  // namespace quire
