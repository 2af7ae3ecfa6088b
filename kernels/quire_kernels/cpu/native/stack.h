// A whole decoder in one run of the team: from token ids to logits, with no Python between layers.
//
//   residual = embedding[token]
//   each layer   x = norm(residual)        qkv = x * Wqkv     rotate, store     attend     x = attended * Wout
//                x = norm(residual += x)   f = silu_mul(x * Wgate_up)           x = f * Wdown, added by the next norm
//   logits = norm(residual + x) * head
//
// Dense layers only. Of the last layer's queries, and of what follows them, only the sampled tokens are computed.
// Shapes: T tokens, R rows, S sampled tokens, E hidden, H heads, K kv heads, D head dim, F width of the MLP, V vocabulary.
#pragma once

#include <cstdint>

#include "gemm.h"

namespace quire {

// Python lays these out too (native_stack.py): keep both alike. They own nothing.
struct LayerArgs {
    const void* input_norm;  // [E], in the model's dtype, like all norms
    const void* mlp_norm;    // [E]
    const void* q_norm;      // [D] or null
    const void* k_norm;
    const Packed* qkv;       // [(H + 2K) * D, E]
    const Packed* out;       // [E, H * D]
    const Packed* gate_up;   // [2F, E], packed as gate_up
    const Packed* down;      // [E, F]
    void* k_cache;           // this layer's first run in block 0
    void* v_cache;
    int64_t group;
};

struct StackArgs {
    const LayerArgs* layers;
    int64_t num_layers;
    const void* embedding;   // [V, E]
    const void* final_norm;  // [E]
    const Packed* head;      // [V, E]
    int64_t hidden_size, num_heads, num_kv_heads, head_dim, rotary_dim;
    const void* cos_sin;     // [P, rotary_dim], in the model's dtype
    int64_t block_stride;    // elements between two blocks of the cache
    int64_t block_size;
    float eps, scale;
};

struct GroupArgs {
    const int32_t* block_tables;  // [R, *]
    int64_t table_stride;
    const int32_t* sampled_tables;  // [Q, *]
    int64_t sampled_table_stride;
    const int64_t* slots;  // [T]
    int64_t window;        // -1: none
};

struct StepArgs {
    int64_t num_tokens, num_rows, num_sampled, num_groups;
    const GroupArgs* groups;
    const int32_t* token_ids;       // [T]
    const int64_t* positions;       // [T]
    const int32_t* query_starts;    // [R + 1]
    const int32_t* seq_lens;        // [R]
    const int64_t* sampled_tokens;  // [S] index of each sampled token; null: all T are
    const int32_t* sampled_starts;  // [Q + 1] where each row's sampled tokens begin, which are its last ones
    const int32_t* sampled_lens;    // [Q]
    float* logits;                  // [S, V]
    void* workspace;                // aligned to 64 bytes
    int64_t num_sampled_rows;       // Q
    void* hidden;                   // [S, E] in the model's dtype: what the head reads, in place of logits; null: logits
};

// Bytes of workspace for a step of so many tokens, rows, sampled tokens and groups. T = float | bf16.
template <class T>
int64_t stack_workspace_bytes(const StackArgs& stack, const StepArgs& step);

template <class T>
void run_stack(const StackArgs& stack, const StepArgs& step);

}  // namespace quire
