#include "api.h"
#include "gemm.h"
#include "gemm_pack.h"
#include "pool.h"

using quire::bf16;
using quire::Packed;
using quire::Team;

QUIRE_API int64_t quire_packed_data_bytes(int32_t dtype, int64_t out_features, int64_t in_features, int32_t gate_up) {
    return quire::packed_data_bytes(quire::DType(dtype), out_features, in_features, gate_up);
}

QUIRE_API int64_t quire_packed_columns(int64_t out_features, int32_t gate_up) { return quire::packed_columns(out_features, gate_up); }

// weight: float32 or bfloat16 [num_rows, in], rows `stride` elements apart.
QUIRE_API void quire_pack_rows(const Packed* w, const void* weight, int32_t is_bf16, int64_t stride, int64_t first, int64_t num_rows) {
    Team& team = Team::instance();
    team.run([&](int) {
        if (is_bf16) quire::pack_rows(team, static_cast<const bf16*>(weight), stride, first, num_rows, *w);
        else quire::pack_rows(team, static_cast<const float*>(weight), stride, first, num_rows, *w);
    });
}

QUIRE_API void quire_pack_bias(const Packed* w, const float* bias, int64_t first, int64_t count) {
    quire::pack_bias(bias, first, count, *w);
}

QUIRE_API int64_t quire_linear_scratch_bytes(const Packed* w, int64_t num_rows) { return quire::multiply_scratch_bytes(*w, num_rows); }

// x and out: float32, or bfloat16 with is_bf16; out is float32 all the same with f32_out.
QUIRE_API void quire_linear(const Packed* w, const void* x, int64_t x_stride, int64_t num_rows, void* out, int64_t out_stride,
                            int32_t is_bf16, int32_t f32_out, void* scratch) {
    Team& team = Team::instance();
    auto floats_in = quire::Rows<const float>::apart(static_cast<const float*>(x), x_stride);
    auto floats_out = quire::Rows<float>::apart(static_cast<float*>(out), out_stride);
    auto halves_in = quire::Rows<const bf16>::apart(static_cast<const bf16*>(x), x_stride);
    auto halves_out = quire::Rows<bf16>::apart(static_cast<bf16*>(out), out_stride);
    team.run([&](int) {
        if (!is_bf16) quire::multiply<float>(team, floats_in, num_rows, *w, floats_out, scratch);
        else if (f32_out) quire::multiply_f32out<bf16>(team, halves_in, num_rows, *w, floats_out, scratch);
        else quire::multiply<bf16>(team, halves_in, num_rows, *w, halves_out, scratch);
    });
}
