// The two register-tiled products of attention and the weights between them, for rows of one tile against keys of one piece.
//
//   scores   R rows x 16 NV keys    one accumulator per (row, vector of keys), a chain over the units of D
//   weights  in place of the scores' rows: largest, 2^x, sums by lane
//   values   R rows x 16 NV dims    one accumulator per (row, vector of dims), a chain over the piece's keys
//
// A unit is 4 bytes: two bfloat16 or one float; a vector is sixteen units.
#pragma once

#include "attention_plan.h"
#include "simd.h"

namespace quire {

#define QUIRE_UNROLL _Pragma("GCC unroll 16")

// Rows and vectors of a register tile: their product, a row of vectors and a broadcast fill the registers.
constexpr int kMaxRows = kRegisters == 32 ? 6 : 2;
constexpr int kMaxVectors = kRegisters == 32 ? 4 : 2;
constexpr int kGroups = kPieceKeys / 16;
constexpr float kNoScore = -1e30f;

inline F16 multiply_unit(F16 acc, const bf16* unit, B32 vector) { return dot_pairs(acc, set1_pair(unit), vector); }
inline F16 multiply_unit(F16 acc, const float* unit, F16 vector) { return fma(set1(*unit), vector, acc); }
inline B32 load_units(const bf16* p) { return load_pairs(p); }
inline F16 load_units(const float* p) { return load(p); }

template <class T>
constexpr int64_t kPerUnit = 4 / sizeof(T);

// Into the second-level cache. Blocks lie anywhere, so the processor guesses none; and requests that go no further than the second level
// are not held up by the first one's few outstanding misses (measured: 18 GB/s of one core against 11).
inline void fetch_line(const void* p) { __builtin_prefetch(p, 0, 2); }

// Calls body(constant) with n as a constant, 1 <= n <= Most.
template <int Most, class Body>
inline __attribute__((always_inline)) void with_constant(int n, Body&& body) {
    if constexpr (Most > 1) {
        if (n < Most) return with_constant<Most - 1>(n, body);
    }
    body(std::integral_constant<int, Most>());
}

// q: [units][R]; k[v]: vector v of the first unit, the next unit's `k_step` elements on; scores: R rows, kPieceKeys apart.
// ahead[v], which is fetched meanwhile, advances like k[v].
template <class T, int R, int NV, bool Fetches>
void score_rows(const T* q, const T* const* k, int64_t k_step, int64_t units, const T* const* ahead, float* scores) {
    F16 acc[R][NV];
    const T *key[NV], *next[NV];
    QUIRE_UNROLL for (int v = 0; v < NV; v++) {
        key[v] = k[v];
        if (Fetches) next[v] = ahead[v];
        QUIRE_UNROLL for (int r = 0; r < R; r++) acc[r][v] = zero();
    }
    for (int64_t u = 0; u < units; u++, q += R * kPerUnit<T>) {
        decltype(load_units(q)) vector[NV];
        QUIRE_UNROLL for (int v = 0; v < NV; v++) {
            vector[v] = load_units(key[v]);
            key[v] += k_step;
            if (Fetches) {
                fetch_line(next[v]);
                next[v] += k_step;
            }
        }
        QUIRE_UNROLL for (int r = 0; r < R; r++) {
            QUIRE_UNROLL for (int v = 0; v < NV; v++) acc[r][v] = multiply_unit(acc[r][v], q + r * kPerUnit<T>, vector[v]);
        }
    }
    QUIRE_UNROLL for (int r = 0; r < R; r++) {
        QUIRE_UNROLL for (int v = 0; v < NV; v++) store(scores + r * kPieceKeys + v * 16, acc[r][v]);
    }
}

// sums[r] = sums[r] * decay[r] + weights[r] . v over groups of sixteen keys. weights: R rows, kPieceKeys apart; v[g]: this tile of dims
// in the first unit of keys of group g, the next unit's `v_step` elements on; ahead[g], fetched meanwhile, likewise; sums: R rows,
// `sums_stride` apart.
template <class T, int R, int NV, bool Fetches>
void add_values(const T* weights, const T* const* v, int begin_group, int end_group, int64_t v_step, const T* const* ahead,
                const float* decay, float* sums, int64_t sums_stride) {
    constexpr int kUnits = 16 / kPerUnit<T>;
    F16 acc[R][NV];
    QUIRE_UNROLL for (int r = 0; r < R; r++) {
        F16 factor = set1(decay[r]);
        QUIRE_UNROLL for (int n = 0; n < NV; n++) acc[r][n] = load(sums + r * sums_stride + n * 16) * factor;
    }
    for (int g = begin_group; g < end_group; g++) {
        const T *value = v[g], *weight = weights + g * 16, *next = Fetches ? ahead[g] : nullptr;
        for (int u = 0; u < kUnits; u++, value += v_step, weight += kPerUnit<T>) {
            decltype(load_units(value)) vector[NV];
            QUIRE_UNROLL for (int n = 0; n < NV; n++) {
                vector[n] = load_units(value + n * 16 * kPerUnit<T>);
                if (Fetches) fetch_line(next + n * 16 * kPerUnit<T>);
            }
            if (Fetches) next += v_step;
            QUIRE_UNROLL for (int r = 0; r < R; r++) {
                QUIRE_UNROLL for (int n = 0; n < NV; n++)
                    acc[r][n] = multiply_unit(acc[r][n], weight + r * kPieceKeys, vector[n]);
            }
        }
    }
    QUIRE_UNROLL for (int r = 0; r < R; r++) {
        QUIRE_UNROLL for (int n = 0; n < NV; n++) store(sums + r * sums_stride + n * 16, acc[r][n]);
    }
}

// The keys of a piece that a row sees: low <= key < high, both within [0, kPieceKeys] but for high <= 0: none.
struct Visible {
    int32_t low, high;
};

inline int clamp_lanes(int n) { return n < 0 ? 0 : n > 16 ? 16 : n; }

// Raises largest[r] (in units of log2) to the piece's visible scores, and leaves old - new of it in decay[r].
template <bool Masked>
void raise_largest(const float* scores, int64_t num_rows, const Visible* visible, int begin_group, int end_group, float factor,
                   float* largest_score, float* decay) {
    for (int64_t r = 0; r < num_rows; r++) {
        const float* row = scores + r * kPieceKeys;
        F16 best = set1(kNoScore);
        for (int g = begin_group; g < end_group; g++) {
            F16 score = load(row + g * 16);
            if (Masked) {
                int low = clamp_lanes(visible[r].low - g * 16), high = clamp_lanes(visible[r].high - g * 16);
                score = keep_lanes(score, low, high, set1(kNoScore));
            }
            best = max(best, score);
        }
        float piece = largest(best);
        float old = largest_score[r], raised = piece == kNoScore ? old : piece * factor;
        raised = raised > old ? raised : old;
        largest_score[r] = raised;
        decay[r] = old - raised;
    }
    for (int64_t r = 0; r < num_rows; r += 16) store(decay + r, exp2(load(decay + r)));
}

// weights = 2^(score * factor - largest), 0 where not visible; totals by lane.
template <class T, bool Masked>
void weigh(const float* scores, int64_t num_rows, const Visible* visible, int begin_group, int end_group, float factor,
           const float* largest_score, const float* decay, T* weights, float* totals) {
    for (int64_t r = 0; r < num_rows; r++) {
        F16 scale = set1(factor), offset = set1(-largest_score[r]);
        F16 total = load(totals + r * 16) * set1(decay[r]);
        for (int g = begin_group; g < end_group; g++) {
            F16 weight = exp2(fma(load(scores + r * kPieceKeys + g * 16), scale, offset));
            if (Masked) {
                int low = clamp_lanes(visible[r].low - g * 16), high = clamp_lanes(visible[r].high - g * 16);
                weight = keep_lanes(weight, low, high, zero());
            }
            total = total + weight;
            store(weights + r * kPieceKeys + g * 16, weight);
        }
        store(totals + r * 16, total);
    }
}

}  // namespace quire
