// What happens to a projection before attention: norms of query and key heads, rotary embedding, keys and values into the cache.
//
// Rounding follows quire_kernels.rms_norm and quire_kernels.rotary: the norm in float32, rounded, times the weight, rounded; the table
// rounded to T, each product rounded, then their sum. The native order of the cache is drawn in attention.h.
#pragma once

#include <cstdint>

#include "pool.h"
#include "simd.h"

namespace quire {

struct RotateStoreArgs {
    void* q;  // [T, H, D], normalised and rotated in place; may be null with num_heads = 0
    void* k;  // [T, Hkv, D]; written in place only where k_cache is null
    const void* v;
    int64_t q_token_stride, q_head_stride;  // in elements, as all strides here
    int64_t k_token_stride, k_head_stride;
    int64_t v_token_stride, v_head_stride;
    int64_t num_tokens, num_heads, num_kv_heads, head_dim;
    const int64_t* positions;  // [T]; null: nothing rotates
    const void* cos_sin;  // [P, rotary_dim], contiguous: cosines, then sines
    int64_t rotary_dim;  // even, at most head_dim
    int64_t table_is_float;  // whether cos_sin is float32 rather than T
    const void* q_norm;  // [D] weights of the norms per head, or null
    const void* k_norm;
    float eps;
    void* k_cache;  // this layer's first run of keys in block 0, or null: nothing is stored
    void* v_cache;
    int64_t block_stride, block_size;
    const int64_t* slots;  // [T]; block * block_size + offset; negative: not stored
};

// One token's queries of one kv head, its key and its value. num_heads is a multiple of num_kv_heads. T = float | bf16.
template <class T>
void rotate_and_store_group(const RotateStoreArgs& args, int64_t token, int64_t kv_head);

// Every token. Inside a run, by every thread alike; ends with a wait for all.
template <class T>
void rotate_and_store(Team& team, const RotateStoreArgs& args);

}  // namespace quire
