// The inner loop of gemm.cpp: R rows times P panels, held in registers over all inputs.
//
//   Kernel<float>      one input a step: a multiply-add
//   Kernel<bf16>       two: VDPBF16PS
//   Kernel<uint8_t>    four: VPDPBUSD, exact in int32
//
// A row's inputs are read one step at a time and broadcast; panels stream from memory, each element once per tile.
#pragma once

#include "gemm.h"

namespace quire {

constexpr int kPanelVectors = kPanel / 16;

// kDepth: inputs a step; Weight: what a panel holds; kMaxRows: rows whose sums fit into the registers beside a step's operands.
template <class X>
struct Kernel;

template <>
struct Kernel<float> {
    using Weight = float;
    using Sum = F16;
    static constexpr int kDepth = 1;
    static constexpr int kMaxRows = kRegisters == 32 ? 12 : 2;
    static F16 none() { return zero(); }
    static F16 weights(const float* p) { return load(p); }
    static F16 inputs(const float* p) { return set1(*p); }
    static F16 dot(F16 sum, F16 x, F16 w) { return fma(x, w, sum); }
};

template <>
struct Kernel<bf16> {
    using Weight = bf16;
    using Sum = F16;
    static constexpr int kDepth = 2;
    static constexpr int kMaxRows = kRegisters == 32 ? 12 : 2;
    static F16 none() { return zero(); }
    static B32 weights(const bf16* p) { return load_pairs(p); }
    static B32 inputs(const bf16* p) { return set1_pair(p); }
    static F16 dot(F16 sum, B32 x, B32 w) { return dot_pairs(sum, x, w); }
};

template <>
struct Kernel<uint8_t> {
    using Weight = int8_t;
    using Sum = I16;
    static constexpr int kDepth = 4;
    static constexpr int kMaxRows = kRegisters == 32 ? 12 : 2;
    static I16 none() { return zero_int(); }
    static I8x64 weights(const int8_t* p) { return load_quads(p); }
    static I8x64 inputs(const uint8_t* p) { return set1_quad(p); }
    static I16 dot(I16 sum, I8x64 x, I8x64 w) { return dot_quads(sum, x, w); }
};

// Bytes ahead of the reads at which a panel's lines are asked for. Measured: 4 % at 64 rows, where the first tile waits for memory.
constexpr int64_t kPrefetch = 2048;

// What is asked for while something else is computed: at each step a line of 64 bytes, `step_bytes` after the last one.
struct Ahead {
    const char* from;
    int64_t step_bytes;
    int64_t second;  // 64: the line behind it as well
};

// sums[r][c] += row r of the tile, sixteen columns from c * 16 on. Rows are `row_stride` elements apart, a row's steps `step_stride`;
// panels `panel_stride`.
template <class X, int R, int P, bool kAhead>
inline void multiply_tile(
    const X* x,
    int64_t row_stride,
    int64_t step_stride,
    int64_t num_steps,
    const typename Kernel<X>::Weight* panels,
    int64_t panel_stride,
    Ahead ahead,
    typename Kernel<X>::Sum (&sums)[R][P * kPanelVectors]) {
    using K = Kernel<X>;
    constexpr int kVectors = P * kPanelVectors;
    typename K::Sum sum[R][kVectors];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
#pragma GCC unroll 16
        for (int c = 0; c < kVectors; c++) sum[r][c] = sums[r][c];
    }
    for (int64_t step = 0; step < num_steps; step++) {
        if constexpr (kAhead) {
            _mm_prefetch(ahead.from, _MM_HINT_T1);
            _mm_prefetch(ahead.from + ahead.second, _MM_HINT_T1);
            ahead.from += ahead.step_bytes;
        }
        decltype(K::weights(panels)) w[kVectors];
#pragma GCC unroll 16
        for (int c = 0; c < kVectors; c++) {
            const auto* p = panels + (c / kPanelVectors) * panel_stride + (c % kPanelVectors) * 16 * K::kDepth;
            _mm_prefetch((const char*)p + kPrefetch, _MM_HINT_T0);
            w[c] = K::weights(p);
        }
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            auto in = K::inputs(x + r * row_stride);
#pragma GCC unroll 16
            for (int c = 0; c < kVectors; c++) sum[r][c] = K::dot(sum[r][c], in, w[c]);
        }
        panels += kPanel * K::kDepth;
        x += step_stride;
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
#pragma GCC unroll 16
        for (int c = 0; c < kVectors; c++) sums[r][c] = sum[r][c];
    }
}

}  // namespace quire
