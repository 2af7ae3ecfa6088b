// The inner loop of gemm.cpp: R rows times P panels, held in registers over all inputs.
//
//   Kernel<float, W>           one input a step: a multiply-add
//   Kernel<bf16, W>            two: VDPBF16PS
//   Kernel<uint8_t, int8_t>    four: VPDPBUSD, exact in int32
//
// W is what the panels hold: the inputs' type, or int8_t, which becomes that in registers.
// A row's inputs are read one step at a time and broadcast; panels stream from memory, each element once per tile.
#pragma once

#include <type_traits>

#include "gemm.h"

namespace quire {

constexpr int kPanelVectors = kPanel / 16;

// kDepth: inputs a step; kMaxRows: rows whose sums fit into the registers beside a step's operands. kConverts: Weight is not what is
// multiplied; `keep` writes sixteen columns of a step as what Kernel<Input, Input> reads.
template <class X, class W>
struct Kernel;

template <class W>
struct Kernel<float, W> {
    using Input = float;
    using Weight = W;
    using Sum = F16;
    static constexpr bool kConverts = !std::is_same_v<W, float>;
    static constexpr int kDepth = 1;
    static constexpr int kMaxRows = kRegisters == 32 ? 12 : 2;
    static F16 none() { return zero(); }
    static F16 weights(const W* p) { return load(p); }
    static F16 inputs(const float* p) { return set1(*p); }
    static F16 dot(F16 sum, F16 x, F16 w) { return fma(x, w, sum); }
    static void keep(float* to, F16 w) { store(to, w); }
};

template <class W>
struct Kernel<bf16, W> {
    using Input = bf16;
    using Weight = W;
    using Sum = F16;
    static constexpr bool kConverts = !std::is_same_v<W, bf16>;
    static constexpr int kDepth = 2;
    static constexpr int kMaxRows = kRegisters == 32 ? 12 : 2;
    static F16 none() { return zero(); }
    static auto weights(const W* p) { return load_pairs(p); }
    static B32 inputs(const bf16* p) { return set1_pair(p); }
    static F16 dot(F16 sum, B32 x, decltype(load_pairs((const W*)nullptr)) w) { return dot_pairs(sum, x, w); }
    static void keep(bf16* to, decltype(load_pairs((const W*)nullptr)) w) { store_pairs(to, w); }
};

template <>
struct Kernel<uint8_t, int8_t> {
    using Input = uint8_t;
    using Weight = int8_t;
    using Sum = I16;
    static constexpr bool kConverts = false;
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

// What a tile does beside its products: ask for `ahead`, or leave its one panel's converted weights in `kept` for the tiles that follow.
enum class Also { kNothing, kAsk, kKeep };

// sums[r][c] += row r of the tile, sixteen columns from c * 16 on. Rows are `row_stride` elements apart, a row's steps `step_stride`;
// panels `panel_stride`.
template <class K, int R, int P, Also kAlso>
inline void multiply_tile(
    const typename K::Input* x,
    int64_t row_stride,
    int64_t step_stride,
    int64_t num_steps,
    const typename K::Weight* panels,
    int64_t panel_stride,
    Ahead ahead,
    typename K::Input* kept,
    typename K::Sum (&sums)[R][P * kPanelVectors]) {
    constexpr int kVectors = P * kPanelVectors;
    constexpr int kVectorBytes = 16 * K::kDepth * sizeof(typename K::Weight);
    typename K::Sum sum[R][kVectors];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
#pragma GCC unroll 16
        for (int c = 0; c < kVectors; c++) sum[r][c] = sums[r][c];
    }
    for (int64_t step = 0; step < num_steps; step++) {
        if constexpr (kAlso == Also::kAsk) {
            _mm_prefetch(ahead.from, _MM_HINT_T1);
            _mm_prefetch(ahead.from + ahead.second, _MM_HINT_T1);
            ahead.from += ahead.step_bytes;
        }
        decltype(K::weights(panels)) w[kVectors];
#pragma GCC unroll 16
        for (int c = 0; c < kVectors; c++) {
            const auto* p = panels + (c / kPanelVectors) * panel_stride + (c % kPanelVectors) * 16 * K::kDepth;
            if (c % kPanelVectors * kVectorBytes % 64 == 0) _mm_prefetch((const char*)p + kPrefetch, _MM_HINT_T0);
            w[c] = K::weights(p);
            if constexpr (kAlso == Also::kKeep) K::keep(kept + c * 16 * K::kDepth, w[c]);
        }
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            auto in = K::inputs(x + r * row_stride);
#pragma GCC unroll 16
            for (int c = 0; c < kVectors; c++) sum[r][c] = K::dot(sum[r][c], in, w[c]);
        }
        panels += kPanel * K::kDepth;
        x += step_stride;
        if constexpr (kAlso == Also::kKeep) kept += kPanel * K::kDepth;
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
#pragma GCC unroll 16
        for (int c = 0; c < kVectors; c++) sums[r][c] = sum[r][c];
    }
}

}  // namespace quire
