#include "gemm.h"

#include <algorithm>
#include <type_traits>

#include "gemm_tile.h"
#include "silu.h"

namespace quire {

namespace {

// Rows that are read where they lie; more are first copied into tiles, whose rows lie side by side.
constexpr int kDirectRows = kRegisters == 32 ? 6 : 2;
// Tiles and panels of a piece of the work, and pieces for each thread: one that is taken off its core holds up no more than a piece.
constexpr int kBlockTiles = 8;
constexpr int kPiecePanels = 4;
constexpr int kPiecesPerThread = 16;
// Steps of a slice: of a panel that is 64 KB.
constexpr int64_t kSliceSteps = 512;

int64_t round_up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

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

template <class K>
Tiles tiles_of(int64_t num_rows) {
    return Tiles(num_rows, num_rows <= kDirectRows ? kDirectRows : K::kMaxRows);
}

// The rows of x as the kernel reads them. Staged: tile after tile, [step][row of the tile][kDepth].
template <class X>
struct Rows {
    const X* data;
    int64_t row_stride;   // of rows that were not staged
    const float* scales;  // of quantised rows, else null
    bool is_staged;
};

template <class K, class Out>
struct Product {
    const Packed& w;
    Rows<typename K::Input> rows;
    Tiles tiles;
    int64_t num_steps;
    Out* out;
    int64_t out_stride;

    const typename K::Weight* panel(int64_t p) const { return static_cast<const typename K::Weight*>(w.data) + p * panel_size(); }
    int64_t panel_size() const { return num_steps * kPanel * K::kDepth; }
};

template <class Out>
inline void store_up_to(Out* p, F16 x, int64_t left) {
    if (left >= 16) store(p, x);
    else if (left > 0) store_first(p, x, int(left));
}

// Sixteen sums of a row, of the panels' columns from `column` on, as the floats that they stand for.
inline F16 finish(F16 sum, const Packed& w, const float*, int64_t, int64_t column) {
    if (w.scales) sum = sum * load(w.scales + column);
    return w.bias ? sum + load(w.bias + column) : sum;
}

inline F16 finish(I16 sum, const Packed& w, const float* scales, int64_t row, int64_t column) {
    F16 x = to_floats(sum - load(w.sums + column)) * set1(scales[row]) * load(w.scales + column);
    return w.bias ? x + load(w.bias + column) : x;
}

template <class K, class Out, int R, int P>
void store_tile(
    const Product<K, Out>& product, int64_t first_row, int64_t first_panel, const typename K::Sum (&sums)[R][P * kPanelVectors]) {
    const Packed& w = product.w;
    const Rows<typename K::Input>& rows = product.rows;
    int64_t num_outputs = w.num_outputs();
    for (int r = 0; r < R; r++) {
        Out* out = product.out + (first_row + r) * product.out_stride;
        for (int p = 0; p < P; p++) {
            int64_t column = (first_panel + p) * kPanel, output = (first_panel + p) * w.outputs_per_panel();
            F16 left = finish(sums[r][2 * p], w, rows.scales, first_row + r, column);
            F16 right = finish(sums[r][2 * p + 1], w, rows.scales, first_row + r, column + 16);
            if (w.gate_up) {
                store_up_to(out + output, silu(left) * right, num_outputs - output);
            } else {
                store_up_to(out + output, left, num_outputs - output);
                store_up_to(out + output + 16, right, num_outputs - output - 16);
            }
        }
    }
}

template <class K, class Out, int R, int P, bool kStaged>
void compute_tile(const Product<K, Out>& product, int64_t first_row, int64_t first_panel) {
    const Rows<typename K::Input>& rows = product.rows;
    int64_t row_length = product.num_steps * K::kDepth;
    typename K::Sum sums[R][P * kPanelVectors];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
#pragma GCC unroll 16
        for (int c = 0; c < P * kPanelVectors; c++) sums[r][c] = K::none();
    }
    multiply_tile<K, R, P, Also::kNothing>(
        rows.data + first_row * (kStaged ? row_length : rows.row_stride), kStaged ? K::kDepth : rows.row_stride,
        kStaged ? R * K::kDepth : K::kDepth, product.num_steps, product.panel(first_panel), product.panel_size(), Ahead(), nullptr,
        sums);
    store_tile<K, Out, R, P>(product, first_row, first_panel, sums);
}

// Calls f with the number as a type: 1 to kMax.
template <int kMax, class F>
inline void with_constant(int number, F&& f) {
    if constexpr (kMax > 1) {
        if (number < kMax) return with_constant<kMax - 1>(number, f);
    }
    f(std::integral_constant<int, kMax>());
}

// Panels [first, last) for the tiles [first_tile, last_tile).
template <class K, class Out, bool kStaged, int kMaxRows, int P>
void compute_piece(const Product<K, Out>& product, int64_t first, int64_t last, int64_t first_tile, int64_t last_tile) {
    for (int64_t tile = first_tile; tile < last_tile; tile++) {
        with_constant<kMaxRows>(product.tiles.rows(tile), [&](auto rows) {
            int64_t panel = first, row = product.tiles.start(tile);
            for (; panel + P <= last; panel += P) compute_tile<K, Out, rows(), P, kStaged>(product, row, panel);
            if constexpr (P > 1) {
                for (; panel < last; panel++) compute_tile<K, Out, rows(), 1, kStaged>(product, row, panel);
            }
        });
    }
}

// Few rows: bound by the stream of weights, and pieces are panels. Two of them at once have enough sums under way.
template <class K, class Out, bool kStaged>
void compute_few(Team& team, const Product<K, Out>& product) {
    constexpr int kPanels = kRegisters == 32 ? 2 : 1;
    int64_t num_panels = product.w.num_panels();
    team.for_each((num_panels + kPanels - 1) / kPanels, 1, [&](int64_t i) {
        int64_t first = i * kPanels, last = std::min(first + kPanels, num_panels);
        compute_piece<K, Out, kStaged, kDirectRows, kPanels>(product, first, last, 0, product.tiles.count);
    });
}

// A slice of some panels, converted by the first tile of a block for the others. Where nothing is converted, nothing.
template <class K>
struct KeptSlice {
    static constexpr int64_t kSize = K::kConverts ? kSliceSteps * kPanel * K::kDepth : 1;
    alignas(64) typename K::Input panels[K::kConverts ? kPiecePanels : 1][kSize];
};

// A slice of a panel for one tile: `weights`, or what the block's first tile made of them.
template <class K, int R>
void multiply_slice(
    const typename K::Input* x, int64_t num_steps, const typename K::Weight* weights, typename K::Input* kept, bool is_first, bool is_only,
    const Ahead* ahead, typename K::Sum (&sums)[R][kPanelVectors]) {
    auto multiply = [&]<class Reads, Also kAlso>(const typename Reads::Weight* panel) {
        multiply_tile<Reads, R, 1, kAlso>(
            x, K::kDepth, R * K::kDepth, num_steps, panel, 0, kAlso == Also::kAsk ? *ahead : Ahead(), kept, sums);
    };
    if constexpr (K::kConverts) {
        using Converted = Kernel<typename K::Input, typename K::Input>;
        if (is_only) return multiply.template operator()<K, Also::kNothing>(weights);
        if (is_first) return multiply.template operator()<K, Also::kKeep>(weights);
        if (ahead) return multiply.template operator()<Converted, Also::kAsk>(kept);
        return multiply.template operator()<Converted, Also::kNothing>(kept);
    } else {
        if (ahead) return multiply.template operator()<K, Also::kAsk>(weights);
        multiply.template operator()<K, Also::kNothing>(weights);
    }
}

// Panels [first, last) for the tiles [first_tile, last_tile), a slice of the inputs after the other: a slice of the panels is read from
// memory by the first tile and from the cache by the others, which meanwhile ask for the next slice. After the last slice that is the
// first one of the panels from `later` on, which the thread is likely to compute next.
template <class K, class Out>
void compute_block(
    const Product<K, Out>& product, int64_t first, int64_t last, int64_t first_tile, int64_t last_tile, int64_t later) {
    constexpr int kStepBytes = kPanel * K::kDepth * sizeof(typename K::Weight), kStepLines = std::max(1, kStepBytes / 64);
    alignas(64) typename K::Sum sums[kBlockTiles][kPiecePanels][K::kMaxRows * kPanelVectors];
    KeptSlice<K> kept;
    int64_t num_slices = (product.num_steps + kSliceSteps - 1) / kSliceSteps, row_length = product.num_steps * K::kDepth;
    int num_asking = int(std::min<int64_t>(last_tile - first_tile - 1, kStepLines));
    for (int64_t slice = 0; slice < num_slices; slice++) {
        int64_t start = product.num_steps * slice / num_slices, end = product.num_steps * (slice + 1) / num_slices;
        bool is_last = slice + 1 == num_slices;
        int64_t next_panel = is_last ? later : first, next_start = is_last ? 0 : end;
        int64_t next_steps = product.num_steps * (is_last ? 1 : slice + 2) / num_slices - next_start;
        for (int64_t tile = first_tile; tile < last_tile; tile++) {
            int turn = int(tile - first_tile) - 1;
            with_constant<K::kMaxRows>(product.tiles.rows(tile), [&](auto rows) {
                constexpr int R = rows();
                int64_t row = product.tiles.start(tile);
                const auto* x = product.rows.data + row * row_length + start * R * K::kDepth;
                for (int64_t panel = first; panel < last; panel++) {
                    auto& sum = reinterpret_cast<typename K::Sum(&)[R][kPanelVectors]>(sums[tile - first_tile][panel - first]);
                    if (slice == 0) {
#pragma GCC unroll 16
                        for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = K::none();
                    }
                    int64_t asked_panel = next_panel + panel - first;
                    bool asks = turn >= 0 && turn < num_asking && asked_panel < product.w.num_panels();
                    Ahead ahead{};
                    if (asks) {
                        const char* from = (const char*)(product.panel(asked_panel) + next_start * kPanel * K::kDepth);
                        int64_t bytes = kStepBytes / num_asking;
                        ahead = {from + turn * next_steps * bytes, bytes, bytes > 64 ? 64 : 0};
                    }
                    multiply_slice<K, R>(
                        x, end - start, product.panel(panel) + start * kPanel * K::kDepth, kept.panels[K::kConverts ? panel - first : 0],
                        turn < 0, last_tile - first_tile == 1, asks ? &ahead : nullptr, sum);
                    if (is_last) store_tile<K, Out, R, 1>(product, row, panel, sum);
                }
            });
        }
    }
}

// How panels are handed out: in groups, so that a block of rows is read for several at once, but one by one at the end, where a thread may
// have to wait for the other's last piece.
struct Groups {
    int64_t num_panels, size, num_whole;

    Groups(int64_t num_panels, int64_t size, int num_threads)
        : num_panels(num_panels), size(size), num_whole(size > 1 ? std::max<int64_t>(0, num_panels / size - 2 * num_threads) : 0) {}
    int64_t count() const { return num_whole + num_panels - num_whole * size; }
    int64_t first(int64_t group) const { return std::min(group <= num_whole ? group * size : num_whole * (size - 1) + group, num_panels); }
};

// Blocks of rows times some panels, so that both stay in the thread's cache; all blocks of the same panels one after the other: weights
// come from memory once. Fewer panels when that leaves too few pieces.
template <class K, class Out>
void compute_many(Team& team, const Product<K, Out>& product) {
    int64_t num_panels = product.w.num_panels(), num_blocks = (product.tiles.count + kBlockTiles - 1) / kBlockTiles;
    int64_t wanted_pieces = int64_t(team.size()) * kPiecesPerThread;
    Groups groups(num_panels, std::clamp<int64_t>(num_panels * num_blocks / wanted_pieces, 1, kPiecePanels), team.size());
    team.for_each(groups.count() * num_blocks, 1, [&](int64_t i) {
        int64_t group = i / num_blocks, tile = i % num_blocks * kBlockTiles, later = (i + team.size()) / num_blocks;
        compute_block(
            product, groups.first(group), groups.first(group + 1), tile, std::min(tile + kBlockTiles, product.tiles.count),
            later == group ? num_panels : groups.first(later));
    });
}

template <class K, class Out>
void compute(
    Team& team, const Packed& w, const Rows<typename K::Input>& rows, int64_t num_rows, Out* out, int64_t out_stride) {
    Product<K, Out> product{w, rows, tiles_of<K>(num_rows), (w.in_features + K::kDepth - 1) / K::kDepth, out, out_stride};
    if (num_rows > kDirectRows) compute_many(team, product);
    else if (rows.is_staged) compute_few<K, Out, true>(team, product);
    else compute_few<K, Out, false>(team, product);
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

// Copies some inputs of the rows of a tile to `to`, [step][row][kDepth], the missing ones 0.
template <class X>
void stage_tile(const X* x, int64_t x_stride, int num_rows, int64_t in_features, X* to) {
    constexpr int kDepth = Kernel<X, X>::kDepth;
    int64_t whole_steps = in_features / kDepth;
    int r = 0;
    if constexpr (sizeof(X) * kDepth == 4) {
        for (; r + 4 <= num_rows; r += 4) transpose_four(x + r * x_stride, x_stride, whole_steps, num_rows, to + r * kDepth);
    }
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

// The row's bytes, [step][kRows][4], as round(x / scale) + 128, and that scale. Missing inputs become whatever is cheap: their weights are 0.
template <class T>
float quantise_row(const T* x, int64_t in_features, int64_t num_rows, uint8_t* to) {
    F16 most = zero(), poison = zero();
    int64_t whole = in_features / 16 * 16;
    int left = int(in_features - whole);
    for (int64_t k = 0; k < in_features; k += 16) {
        F16 values = k < whole ? load(x + k) : load_first(x + k, left);
        most = max(most, max(values, zero() - values));
        poison = fma(values, zero(), poison);
    }
    float largest_value = largest(most);
    float is_finite = sum(poison);  // 0, else NaN
    F16 inverse = set1(largest_value > 0 ? 127.0f / largest_value : 0.0f);
    for (int64_t k = 0; k < in_features; k += 16) {
        F16 values = k < whole ? load(x + k) : load_first(x + k, left);
        alignas(16) uint8_t bytes[16];
        store_bytes(bytes, round_nearest(values * inverse) + set1(128.0f));
        int num_quads = int(std::min<int64_t>(4, (in_features - k + 3) / 4));
        for (int quad = 0; quad < num_quads; quad++) std::memcpy(to + (k / 4 + quad) * num_rows * 4, bytes + quad * 4, 4);
    }
    return largest_value / 127.0f + is_finite;
}

template <class T>
Rows<T> prepare(Team& team, const T* x, int64_t x_stride, int64_t num_rows, int64_t in_features, void* scratch) {
    constexpr int kDepth = Kernel<T, T>::kDepth;
    if (num_rows <= kDirectRows && in_features % kDepth == 0) return {x, x_stride, nullptr, false};
    T* staged = static_cast<T*>(scratch);
    int64_t row_length = round_up(in_features, kDepth);
    Tiles tiles = tiles_of<Kernel<T, T>>(num_rows);
    constexpr int64_t kInputs = kSliceSteps * kDepth;
    int64_t num_slices = (in_features + kInputs - 1) / kInputs;
    team.for_each(tiles.count * num_slices, 1, [&](int64_t i) {
        int64_t tile = i / num_slices, row = tiles.start(tile), first = i % num_slices * kInputs;
        int num = tiles.rows(tile);
        stage_tile(
            x + row * x_stride + first, x_stride, num, std::min(kInputs, in_features - first), staged + row * row_length + first * num);
    });
    return {staged, 0, nullptr, true};
}

template <class T>
Rows<uint8_t> quantise(Team& team, const T* x, int64_t x_stride, int64_t num_rows, int64_t in_features, void* scratch) {
    float* scales = static_cast<float*>(scratch);
    uint8_t* staged = static_cast<uint8_t*>(scratch) + round_up(num_rows * 4, 64);
    int64_t row_length = round_up(in_features, 4);
    Tiles tiles = tiles_of<Kernel<uint8_t, int8_t>>(num_rows);
    team.for_each(tiles.count, 1, [&](int64_t tile) {
        int64_t first = tiles.start(tile);
        int rows = tiles.rows(tile);
        for (int r = 0; r < rows; r++) {
            const T* row = x + (first + r) * x_stride;
            scales[first + r] = quantise_row(row, in_features, rows, staged + first * row_length + r * 4);
        }
    });
    return {staged, 0, scales, true};
}

template <class T, class Out>
void multiply_to(Team& team, const T* x, int64_t x_stride, int64_t num_rows, const Packed& w, Out* out, int64_t out_stride,
                 void* scratch) {
    if (num_rows == 0) return;
    if (w.dtype == DType::kI8) {
        Rows<uint8_t> rows = quantise(team, x, x_stride, num_rows, w.in_features, scratch);
        return compute<Kernel<uint8_t, int8_t>>(team, w, rows, num_rows, out, out_stride);
    }
    Rows<T> rows = prepare(team, x, x_stride, num_rows, w.in_features, scratch);
    if (is_int8(w.dtype)) compute<Kernel<T, int8_t>>(team, w, rows, num_rows, out, out_stride);
    else compute<Kernel<T, T>>(team, w, rows, num_rows, out, out_stride);
}

}  // namespace

template <class T>
void multiply(Team& team, const T* x, int64_t x_stride, int64_t num_rows, const Packed& w, T* out, int64_t out_stride, void* scratch) {
    multiply_to(team, x, x_stride, num_rows, w, out, out_stride, scratch);
}

template <class T>
void multiply_f32out(
    Team& team, const T* x, int64_t x_stride, int64_t num_rows, const Packed& w, float* out, int64_t out_stride, void* scratch) {
    multiply_to(team, x, x_stride, num_rows, w, out, out_stride, scratch);
}

int64_t multiply_scratch_bytes(const Packed& w, int64_t num_rows) {
    int64_t item = 4 / depth_of(w.dtype);
    return round_up(num_rows * 4, 64) + num_rows * round_up(w.in_features, 4) * item;
}

template void multiply<float>(Team&, const float*, int64_t, int64_t, const Packed&, float*, int64_t, void*);
template void multiply<bf16>(Team&, const bf16*, int64_t, int64_t, const Packed&, bf16*, int64_t, void*);
template void multiply_f32out<float>(Team&, const float*, int64_t, int64_t, const Packed&, float*, int64_t, void*);
template void multiply_f32out<bf16>(Team&, const bf16*, int64_t, int64_t, const Packed&, float*, int64_t, void*);

}  // namespace quire
