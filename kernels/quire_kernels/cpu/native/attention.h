// Causal attention over the paged cache, in the native order of keys and values.
//
// One run of the cache is B slots of one (block, layer, K | V, kv head), B * D elements, B and D multiples of 16. Inside it:
//
//     K   [D * size / 4][B]   4-byte units: dims 2i and 2i + 1 of bfloat16, or one float. Sixteen keys are one vector.
//     V   bfloat16 [B / 2][D][2 slots];  float [B][D]
//
// A query's result is a function of its own keys alone, to the bit: pieces of 64 keys and splits of 512 keys lie at fixed positions of
// the request, each score is one chain over the units of D, each output one chain over keys, splits are merged in order. How queries
// come together in tiles, who computes a split, decode or prefill, one thread or many: none of it changes a bit.
//
//     split        |            512 keys           |            512 keys ..
//     piece        |  64  |  64  |  64  |  64  | ..|
//     visible            |<------ window ------ query|
#pragma once

#include <cstdint>

#include "pool.h"
#include "simd.h"

namespace quire {

constexpr int64_t kMaxHeadDim = 256;

struct AttentionArgs {
    const void* q;  // [T, H, D], rotated
    int64_t q_token_stride, q_head_stride;  // in elements, as all strides here
    const void* k_cache;  // this layer's first run of keys in block 0; a block's runs of different kv heads are adjacent
    const void* v_cache;
    int64_t block_stride;
    const int32_t* block_tables;  // [R, *]
    int64_t table_stride;
    const int32_t* query_starts;  // [R + 1]
    const int32_t* seq_lens;  // [R]; 0 for a row to skip
    int64_t num_rows;
    int64_t num_heads, num_kv_heads, head_dim, block_size;
    float scale;  // > 0
    int64_t window;  // -1: none
    void* out;  // [T, H, D] contiguous
    const void* plan;  // of `plan_attention`, with the same rows, shapes and window
    void* scratch;
};

// Bytes of a plan for at most so many rows and queries, 64-aligned.
int64_t attention_plan_bytes(int64_t num_rows, int64_t num_queries, int64_t num_heads, int64_t num_kv_heads);

// Bytes of scratch that `attend` needs, whatever the rows; most of it is touched only by long contexts.
int64_t attention_scratch_bytes(int64_t head_dim);

// Cuts the rows into tiles, the longest first, for a team of so many threads. Once a step for all layers of one window; by one thread.
// Reads of `args`: query_starts, seq_lens, num_rows, num_heads, num_kv_heads, window.
void plan_attention(const AttentionArgs& args, int num_threads, void* plan);

// Inside a run, by every thread alike; ends with a wait for all. T = float | bf16.
template <class T>
void attend(Team& team, const AttentionArgs& args);

}  // namespace quire
