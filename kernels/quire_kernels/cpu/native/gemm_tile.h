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
#include "gemm_tiles.h"
#include "int8_floats.h"

namespace quire {

constexpr int kPanelVectors = kPanel / 16;
static_assert(kPanelVectors == 2);

inline void load_step(const float* p, F16 (&columns)[2]) { columns[0] = load(p), columns[1] = load(p + 16); }
inline void load_step(const bf16* p, B32 (&columns)[2]) { columns[0] = load_pairs(p), columns[1] = load_pairs(p + 32); }
inline void load_step(const int8_t* p, I8x64 (&columns)[2]) { columns[0] = load_quads(p), columns[1] = load_quads(p + 64); }

// kDepth: inputs a step; Operand: sixteen columns of a step, which `load_step` makes of Weight; kMaxRows: rows whose sums fit into the
// registers beside a step's operands. kConverts: Weight is not what is multiplied; `keep` writes an operand as Kernel<Input, Input> reads it.
template <class X, class W>
struct Kernel;

template <class W>
struct Kernel<float, W> {
    using Input = float;
    using Weight = W;
    using Operand = F16;
    using Sum = F16;
    static constexpr bool kConverts = !std::is_same_v<W, float>;
    static constexpr int kDepth = 1;
    static constexpr int kMaxRows = most_tile_rows(kConverts ? DType::kI8ForF32 : DType::kF32);
    static F16 none() { return zero(); }
    static F16 inputs(const float* p) { return set1(*p); }
    static F16 dot(F16 sum, F16 x, F16 w) { return fma(x, w, sum); }
    static void keep(float* to, F16 w) { store(to, w); }
};

template <class W>
struct Kernel<bf16, W> {
    using Input = bf16;
    using Weight = W;
    using Operand = std::conditional_t<std::is_same_v<W, bf16>, B32, Pairs>;
    using Sum = F16;
    static constexpr bool kConverts = !std::is_same_v<W, bf16>;
    static constexpr int kDepth = 2;
    static constexpr int kMaxRows = most_tile_rows(kConverts ? DType::kI8ForBF16 : DType::kBF16);
    static F16 none() { return zero(); }
    static B32 inputs(const bf16* p) { return set1_pair(p); }
    static F16 dot(F16 sum, B32 x, Operand w) { return dot_pairs(sum, x, w); }
    static void keep(bf16* to, Operand w) { store_pairs(to, w); }
};

template <>
struct Kernel<uint8_t, int8_t> {
    using Input = uint8_t;
    using Weight = int8_t;
    using Operand = I8x64;
    using Sum = I16;
    static constexpr bool kConverts = false;
    static constexpr int kDepth = 4;
    static constexpr int kMaxRows = most_tile_rows(DType::kI8);
    static I16 none() { return zero_int(); }
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
    constexpr int kStepBytes = kPanel * K::kDepth * sizeof(typename K::Weight);
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
        typename K::Operand w[P][kPanelVectors];
#pragma GCC unroll 16
        for (int p = 0; p < P; p++) {
            const auto* panel = panels + p * panel_stride;
#pragma GCC unroll 16
            for (int at = 0; at < kStepBytes; at += 64) _mm_prefetch((const char*)panel + at + kPrefetch, _MM_HINT_T0);
            load_step(panel, w[p]);
            if constexpr (kAlso == Also::kKeep) {
                for (int c = 0; c < kPanelVectors; c++) K::keep(kept + c * 16 * K::kDepth, w[p][c]);
            }
        }
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            auto in = K::inputs(x + r * row_stride);
#pragma GCC unroll 16
            for (int c = 0; c < kVectors; c++) sum[r][c] = K::dot(sum[r][c], in, w[c / kPanelVectors][c % kPanelVectors]);
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
