// How `multiply` reads many rows: staged, tile after tile, a step's inputs of all rows of a tile side by side.
//
//   rows    0 ... 12        13 ... 25       ...
//           tile 0          tile 1          ...      a tile: [in / depth][row of the tile][depth], a step of the kernel after the other
//
// A tile's sums fit into registers. Few rows are read where they lie instead.
#pragma once

#include <algorithm>
#include <cstring>

#include <immintrin.h>

#include "gemm.h"

namespace quire {

// Rows that are read where they lie; more are staged.
constexpr int kDirectRows = kRegisters == 32 ? 6 : 2;

// Rows whose sums fit into the registers beside a step's operands. 13 of bfloat16 are five tiles of 64 rows, where 12 are six: 1 to 3 %
// faster. Weights that are converted need the registers.
constexpr int most_tile_rows(DType dtype) { return kRegisters != 32 ? 2 : dtype == DType::kBF16 ? 13 : 12; }

// Rows [start(i), start(i + 1)) are tile i; sizes differ by one row at most.
struct Tiles {
    int64_t count, size, num_larger;

    Tiles(int64_t num_rows, int64_t max_rows) {
        count = (num_rows + max_rows - 1) / max_rows;
        size = count ? num_rows / count : 0;
        num_larger = num_rows - count * size;
    }
    int64_t start(int64_t tile) const { return tile * size + std::min(tile, num_larger); }
    int rows(int64_t tile) const { return int(size + (tile < num_larger)); }
};

inline Tiles tiles_of(DType dtype, int64_t num_rows) {
    return Tiles(num_rows, num_rows <= kDirectRows ? kDirectRows : most_tile_rows(dtype));
}

// The steps, of 4 bytes, of four rows of a tile of num_rows, four by four.
template <class X>
void transpose_four(const X* x, int64_t x_stride, int64_t num_steps, int num_rows, X* to) {
    constexpr int kDepth = 4 / sizeof(X);
    int64_t step = 0;
    for (; step + 4 <= num_steps; step += 4) {
        __m128 rows[4];
        for (int r = 0; r < 4; r++) rows[r] = _mm_loadu_ps((const float*)(x + r * x_stride + step * kDepth));
        _MM_TRANSPOSE4_PS(rows[0], rows[1], rows[2], rows[3]);
        for (int s = 0; s < 4; s++) _mm_storeu_ps((float*)(to + (step + s) * num_rows * kDepth), rows[s]);
    }
    for (; step < num_steps; step++) {
        for (int r = 0; r < 4; r++) std::memcpy(to + (step * num_rows + r) * kDepth, x + r * x_stride + step * kDepth, 4);
    }
}

// Copies some inputs of the rows of a tile to `to`, where the first of them belongs; missing ones of the last step become 0. X: float or bf16.
template <class X>
void stage_tile(const X* x, int64_t x_stride, int num_rows, int64_t in_features, X* to) {
    constexpr int kDepth = 4 / sizeof(X);
    int64_t whole_steps = in_features / kDepth;
    int r = 0;
    for (; r + 4 <= num_rows; r += 4) transpose_four(x + r * x_stride, x_stride, whole_steps, num_rows, to + r * kDepth);
    for (; r < num_rows; r++) {
        for (int64_t step = 0; step < whole_steps; step++)
            std::memcpy(to + (step * num_rows + r) * kDepth, x + r * x_stride + step * kDepth, sizeof(X) * kDepth);
    }
    if (in_features % kDepth == 0) return;
    for (r = 0; r < num_rows; r++) {
        X last[kDepth] = {x[r * x_stride + in_features - 1]};
        std::memcpy(to + (whole_steps * num_rows + r) * kDepth, last, sizeof(X) * kDepth);
    }
}

}  // namespace quire
