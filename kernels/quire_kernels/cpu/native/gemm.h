// out [rows, outputs] = x [rows, in] * weight [out, in]^T + bias, on weights packed once.
//
// Each output is one chain of additions over the inputs, in their order, whatever the number of rows, the thread or the place
// in a tile: a row's bits do not depend on its company.
//
// A packed weight is a row of panels of kPanel columns; within a panel, all inputs one after the other:
//
//   float32    [panel][in]             [kPanel]
//   bfloat16   [panel][in / 2 rounded up][kPanel][2]
//   int8       [panel][in / 4 rounded up][kPanel][4]      symmetric per output, scales beside it; inputs become int8 too (W8A8)
//   int8 weights only: as float32 or bfloat16, whichever the inputs are, each element a byte; within a step as int8_floats.h has it
//
// Columns and inputs that are missing at the ends are zeros. Of a gate_up weight each panel's first half is gates, its second half
// their ups, so that a piece of the work has both in its registers.
#pragma once

#include <cstdint>

#include "pool.h"
#include "simd.h"

namespace quire {

// kI8: inputs are quantised per row when they come. kI8ForF32, kI8ForBF16: int8 weights that become floats in registers, which hold them
// exactly; inputs stay as they are, and the sums are scaled.
enum class DType : int32_t { kF32 = 0, kBF16 = 1, kI8 = 2, kI8ForF32 = 3, kI8ForBF16 = 4 };

inline bool is_int8(DType dtype) { return dtype != DType::kF32 && dtype != DType::kBF16; }

// Bytes of a packed element, and inputs that lie together.
inline int64_t item_of(DType dtype) { return is_int8(dtype) ? 1 : dtype == DType::kF32 ? 4 : 2; }
inline int64_t depth_of(DType dtype) {
    return dtype == DType::kI8 ? 4 : dtype == DType::kBF16 || dtype == DType::kI8ForBF16 ? 2 : 1;
}

constexpr int kPanel = 32;

// A packed weight. Python lays this out too (native_linear.py): keep both alike. It owns nothing.
struct Packed {
    DType dtype;
    int32_t gate_up;        // 1: the weight is 2F gates then ups, and F columns silu(gate) * up come out
    int64_t out_features;   // rows of the weight
    int64_t in_features;
    const void* data;       // aligned to 64 bytes
    const float* bias;      // in the panels' order and padded like them, or null
    const float* scales;    // of int8, like bias: value = int8 * scale; else null
    const int32_t* sums;    // kI8, like bias: 128 * the sum of the column, which is what u8 = s8 + 128 adds to a product

    int64_t num_outputs() const { return gate_up ? out_features / 2 : out_features; }
    int64_t outputs_per_panel() const { return gate_up ? kPanel / 2 : kPanel; }
    int64_t num_panels() const { return (num_outputs() + outputs_per_panel() - 1) / outputs_per_panel(); }
};

// Rows of inputs or outputs: `stride` elements apart, or staged (gemm_tiles.h), which is how many of them are read.
template <class T>
struct Rows {
    T* data;
    int64_t stride;  // of rows that are not staged
    bool is_staged;

    static Rows apart(T* data, int64_t stride) { return {data, stride, false}; }
    static Rows staged(T* data) { return {data, 0, true}; }
};

// Whether `multiply` would stage so many rows of T for w. Whoever computes them may leave them so: it saves a pass over them, and a wait.
template <class T>
bool reads_staged(const Packed& w, int64_t num_rows);

// Whether `multiply` by w can leave its outputs staged for `reader`.
template <class T>
bool stages_for(const Packed& w, const Packed& reader, int64_t num_rows);

// In a run, by every thread alike. T is float (kF32, kI8, kI8ForF32) or bf16 (kBF16, kI8, kI8ForBF16).
// `scratch` is aligned to 64 bytes and holds `multiply_scratch_bytes`; it is free again on return, and staged inputs may lie in it. Writes
// out[:, :num_outputs] and nothing else; ends with a wait. Inputs of a kI8 weight that are not finite make their whole row NaN.
template <class T>
void multiply(Team& team, Rows<const T> x, int64_t num_rows, const Packed& w, Rows<T> out, void* scratch);

// The same, not rounded to T: for logits. `out` is not staged.
template <class T>
void multiply_f32out(Team& team, Rows<const T> x, int64_t num_rows, const Packed& w, Rows<float> out, void* scratch);

int64_t multiply_scratch_bytes(const Packed& w, int64_t num_rows);

}  // namespace quire
