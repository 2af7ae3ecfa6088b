#include "api.h"
#include "attention.h"
#include "pool.h"
#include "rotary_store.h"

using namespace quire;

QUIRE_API int64_t quire_attention_plan_bytes(int64_t num_rows, int64_t num_queries, int64_t num_heads, int64_t num_kv_heads) {
    return attention_plan_bytes(num_rows, num_queries, num_heads, num_kv_heads);
}

QUIRE_API int64_t quire_attention_scratch_bytes(int64_t head_dim) { return attention_scratch_bytes(head_dim); }

QUIRE_API void quire_plan_attention(const AttentionArgs* args, void* plan) { plan_attention(*args, Team::instance().size(), plan); }

QUIRE_API void quire_attend_f32(const AttentionArgs* args) {
    Team& team = Team::instance();
    team.run([&](int) { attend<float>(team, *args); });
}

QUIRE_API void quire_attend_bf16(const AttentionArgs* args) {
    Team& team = Team::instance();
    team.run([&](int) { attend<bf16>(team, *args); });
}

QUIRE_API void quire_rotate_and_store_f32(const RotateStoreArgs* args) {
    Team& team = Team::instance();
    team.run([&](int) { rotate_and_store<float>(team, *args); });
}

QUIRE_API void quire_rotate_and_store_bf16(const RotateStoreArgs* args) {
    Team& team = Team::instance();
    team.run([&](int) { rotate_and_store<bf16>(team, *args); });
}
