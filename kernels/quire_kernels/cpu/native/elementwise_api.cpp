#include "api.h"
#include "elementwise.h"

using quire::bf16;
using quire::Team;

namespace {

template <class T>
void rms_norm(const void* x, int64_t x_stride, const void* residual_in, void* residual_out, const void* weight, float eps, void* out,
              int64_t num_rows, int64_t width) {
    Team& team = Team::instance();
    team.run([&](int) {
        quire::rms_norm_rows(team, static_cast<const T*>(x), x_stride, static_cast<const T*>(residual_in), static_cast<T*>(residual_out),
                             static_cast<const T*>(weight), eps, static_cast<T*>(out), num_rows, width);
    });
}

template <class T>
void silu_mul(const void* gate_up, int64_t stride, void* out, int64_t num_rows, int64_t width) {
    Team& team = Team::instance();
    team.run([&](int) {
        quire::silu_mul_rows(team, static_cast<const T*>(gate_up), stride, static_cast<T*>(out), num_rows, width);
    });
}

}  // namespace

QUIRE_API void quire_rms_norm(const void* x, int64_t x_stride, const void* residual_in, void* residual_out, const void* weight, float eps,
                              void* out, int64_t num_rows, int64_t width, int32_t is_bf16) {
    (is_bf16 ? rms_norm<bf16> : rms_norm<float>)(x, x_stride, residual_in, residual_out, weight, eps, out, num_rows, width);
}

QUIRE_API void quire_silu_mul(const void* gate_up, int64_t stride, void* out, int64_t num_rows, int64_t width, int32_t is_bf16) {
    (is_bf16 ? silu_mul<bf16> : silu_mul<float>)(gate_up, stride, out, num_rows, width);
}
