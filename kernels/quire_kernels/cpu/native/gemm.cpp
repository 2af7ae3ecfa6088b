#include "gemm.h"

#include <algorithm>
#include <type_traits>

#include "gemm_tile.h"
#include "gemm_tiles.h"
#include "silu.h"

namespace quire {

namespace {

// Tiles and panels of a piece of the work, and pieces for each thread: one that is taken off its core holds up no more than a piece.
constexpr int kBlockTiles = 8;
constexpr int kPiecePanels = 4;
constexpr int kPiecesPerThread = 16;
// Steps of a slice: of a panel that is 64 KB.
constexpr int64_t kSliceSteps = 512;

int64_t round_up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

template <class K, class Out>
struct Product {
    const Packed& w;
    Rows<const typename K::Input> x;
    const float* x_scales;  // of quantised rows, else null
    Rows<Out> out;
    Tiles tiles;
    int64_t num_steps;

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

// A row's sums of a panel, as the outputs that they stand for, from `out` on; `left` outputs are still to come.
template <class Out, class Sum>
inline void store_outputs(const Packed& w, const float* x_scales, int64_t row, int64_t panel, const Sum* sums, Out* out, int64_t left) {
    F16 first = finish(sums[0], w, x_scales, row, panel * kPanel);
    F16 second = finish(sums[1], w, x_scales, row, panel * kPanel + 16);
    if (w.gate_up) {
        store_up_to(out, silu(first) * second, left);
    } else {
        store_up_to(out, first, left);
        store_up_to(out + 16, second, left - 16);
    }
}

template <class K, class Out, int R, int P>
void store_tile(
    const Product<K, Out>& product, int64_t first_row, int64_t first_panel, const typename K::Sum (&sums)[R][P * kPanelVectors]) {
    const Packed& w = product.w;
    for (int p = 0; p < P; p++) {
        int64_t panel = first_panel + p, output = panel * w.outputs_per_panel(), left = w.num_outputs() - output;
        if (product.out.is_staged) {
            alignas(64) Out outputs[R][kPanel];
            for (int r = 0; r < R; r++)
                store_outputs(w, product.x_scales, first_row + r, panel, sums[r] + p * kPanelVectors, outputs[r], left);
            stage_tile(
                outputs[0], kPanel, R, std::min(left, w.outputs_per_panel()), product.out.data + first_row * w.num_outputs() + output * R);
            continue;
        }
        for (int r = 0; r < R; r++) {
            Out* out = product.out.data + (first_row + r) * product.out.stride + output;
            store_outputs(w, product.x_scales, first_row + r, panel, sums[r] + p * kPanelVectors, out, left);
        }
    }
}

template <class K, class Out, int R, int P, bool kStaged>
void compute_tile(const Product<K, Out>& product, int64_t first_row, int64_t first_panel) {
    const Rows<const typename K::Input>& x = product.x;
    int64_t row_length = product.num_steps * K::kDepth;
    typename K::Sum sums[R][P * kPanelVectors];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
#pragma GCC unroll 16
        for (int c = 0; c < P * kPanelVectors; c++) sums[r][c] = K::none();
    }
    multiply_tile<K, R, P, Also::kNothing>(
        x.data + first_row * (kStaged ? row_length : x.stride), kStaged ? K::kDepth : x.stride,
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
                const auto* x = product.x.data + row * row_length + start * R * K::kDepth;
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
void compute(Team& team, const Packed& w, Rows<const typename K::Input> x, const float* x_scales, int64_t num_rows, Rows<Out> out) {
    Product<K, Out> product{w, x, x_scales, out, tiles_of(w.dtype, num_rows), (w.in_features + K::kDepth - 1) / K::kDepth};
    if (num_rows > kDirectRows) compute_many(team, product);
    else if (x.is_staged) compute_few<K, Out, true>(team, product);
    else compute_few<K, Out, false>(team, product);
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
Rows<const T> prepare(Team& team, Rows<const T> x, int64_t num_rows, const Packed& w, void* scratch) {
    constexpr int kDepth = 4 / sizeof(T);
    int64_t in_features = w.in_features;
    if (x.is_staged || (num_rows <= kDirectRows && in_features % kDepth == 0)) return x;
    T* staged = static_cast<T*>(scratch);
    int64_t row_length = round_up(in_features, kDepth);
    Tiles tiles = tiles_of(w.dtype, num_rows);
    constexpr int64_t kInputs = kSliceSteps * kDepth;
    int64_t num_slices = (in_features + kInputs - 1) / kInputs;
    team.for_each(tiles.count * num_slices, 1, [&](int64_t i) {
        int64_t tile = i / num_slices, row = tiles.start(tile), first = i % num_slices * kInputs;
        int num = tiles.rows(tile);
        int64_t num_inputs = std::min(kInputs, in_features - first);
        stage_tile(x.data + row * x.stride + first, x.stride, num, num_inputs, staged + row * row_length + first * num);
    });
    return Rows<const T>::staged(staged);
}

// Into scratch: the rows' scales, then their bytes.
template <class T>
Rows<const uint8_t> quantise(Team& team, Rows<const T> x, int64_t num_rows, const Packed& w, void* scratch) {
    float* scales = static_cast<float*>(scratch);
    uint8_t* staged = static_cast<uint8_t*>(scratch) + round_up(num_rows * 4, 64);
    int64_t row_length = round_up(w.in_features, 4);
    Tiles tiles = tiles_of(w.dtype, num_rows);
    team.for_each(tiles.count, 1, [&](int64_t tile) {
        int64_t first = tiles.start(tile);
        int rows = tiles.rows(tile);
        for (int r = 0; r < rows; r++) {
            const T* row = x.data + (first + r) * x.stride;
            scales[first + r] = quantise_row(row, w.in_features, rows, staged + first * row_length + r * 4);
        }
    });
    return Rows<const uint8_t>::staged(staged);
}

template <class T, class Out>
void multiply_to(Team& team, Rows<const T> x, int64_t num_rows, const Packed& w, Rows<Out> out, void* scratch) {
    if (num_rows == 0) return;
    if (w.dtype == DType::kI8) {
        Rows<const uint8_t> bytes = quantise(team, x, num_rows, w, scratch);
        return compute<Kernel<uint8_t, int8_t>>(team, w, bytes, static_cast<const float*>(scratch), num_rows, out);
    }
    Rows<const T> ready = prepare(team, x, num_rows, w, scratch);
    if (is_int8(w.dtype)) compute<Kernel<T, int8_t>>(team, w, ready, nullptr, num_rows, out);
    else compute<Kernel<T, T>>(team, w, ready, nullptr, num_rows, out);
}

}  // namespace

template <class T>
bool reads_staged(const Packed& w, int64_t num_rows) {
    return num_rows > kDirectRows && w.dtype != DType::kI8 && w.in_features % (4 / sizeof(T)) == 0;
}

template <class T>
bool stages_for(const Packed& w, const Packed& reader, int64_t num_rows) {
    return reads_staged<T>(reader, num_rows) && most_tile_rows(w.dtype) == most_tile_rows(reader.dtype);
}

template <class T>
void multiply(Team& team, Rows<const T> x, int64_t num_rows, const Packed& w, Rows<T> out, void* scratch) {
    multiply_to(team, x, num_rows, w, out, scratch);
}

template <class T>
void multiply_f32out(Team& team, Rows<const T> x, int64_t num_rows, const Packed& w, Rows<float> out, void* scratch) {
    multiply_to(team, x, num_rows, w, out, scratch);
}

int64_t multiply_scratch_bytes(const Packed& w, int64_t num_rows) {
    int64_t item = 4 / depth_of(w.dtype);
    return round_up(num_rows * 4, 64) + num_rows * round_up(w.in_features, 4) * item;
}

template bool reads_staged<float>(const Packed&, int64_t);
template bool reads_staged<bf16>(const Packed&, int64_t);
template bool stages_for<float>(const Packed&, const Packed&, int64_t);
template bool stages_for<bf16>(const Packed&, const Packed&, int64_t);
template void multiply<float>(Team&, Rows<const float>, int64_t, const Packed&, Rows<float>, void*);
template void multiply<bf16>(Team&, Rows<const bf16>, int64_t, const Packed&, Rows<bf16>, void*);
template void multiply_f32out<float>(Team&, Rows<const float>, int64_t, const Packed&, Rows<float>, void*);
template void multiply_f32out<bf16>(Team&, Rows<const bf16>, int64_t, const Packed&, Rows<float>, void*);

}  // namespace quire
