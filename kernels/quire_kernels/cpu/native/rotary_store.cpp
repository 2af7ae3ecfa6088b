#include "rotary_store.h"

#include <cmath>

#include "attention.h"

namespace quire {

namespace {

// n <= 16 elements of a row as float32.
template <class T>
F16 load_some(const T* p, int64_t n) {
    return n >= 16 ? load(p) : load_first(p, int(n));
}
template <class T>
void store_some(T* p, F16 x, int64_t n) {
    n >= 16 ? store(p, x) : store_first(p, x, int(n));
}

// x * weight / rms(x), as rms_norm.py rounds it. In place.
template <class T>
void normalise(T* x, const T* weight, int64_t head_dim, float eps) {
    F16 squares = zero();
    for (int64_t d = 0; d < head_dim; d += 16) squares = fma(load(x + d), load(x + d), squares);
    F16 scale = set1(1.0f / std::sqrt(sum(squares) / float(head_dim) + eps));
    for (int64_t d = 0; d < head_dim; d += 16) store(x + d, rounded<T>(load(x + d) * scale) * load(weight + d));
}

// cos, sin: half rows of the table, rounded to T. In place.
template <class T>
void rotate(T* x, const float* cosines, const float* sines, int64_t half) {
    for (int64_t d = 0; d < half; d += 16) {
        int64_t n = half - d;
        F16 first = load_some(x + d, n), second = load_some(x + half + d, n);
        F16 cos = load(cosines + d), sin = load(sines + d);
        store_some(x + d, rounded<T>(first * cos) - rounded<T>(second * sin), n);
        store_some(x + half + d, rounded<T>(second * cos) + rounded<T>(first * sin), n);
    }
}

template <class T>
void read_table(const RotateStoreArgs& args, int64_t position, float* cosines, float* sines) {
    int64_t half = args.rotary_dim / 2;
    for (int64_t d = 0; d < half; d += 16) {
        int64_t n = half - d;
        if (args.table_is_float) {
            const float* row = (const float*)args.cos_sin + position * args.rotary_dim + d;
            store(cosines + d, rounded<T>(load_some(row, n)));
            store(sines + d, rounded<T>(load_some(row + half, n)));
        } else {
            const T* row = (const T*)args.cos_sin + position * args.rotary_dim + d;
            store(cosines + d, load_some(row, n));
            store(sines + d, load_some(row + half, n));
        }
    }
}

// Where a slot's key and value lie: a key's units are `block_size` units apart, a value's elements `step` apart.
template <class T>
struct SlotPlace {
    uint32_t* key;
    T* value;
};

template <class T>
SlotPlace<T> place_of(const RotateStoreArgs& args, int64_t slot, int64_t kv_head) {
    constexpr int64_t kPerUnit = 4 / sizeof(T);
    int64_t offset = slot % args.block_size, head_dim = args.head_dim;
    int64_t run = slot / args.block_size * args.block_stride + kv_head * args.block_size * head_dim;
    T* value = (T*)args.v_cache + run + offset / kPerUnit * kPerUnit * head_dim + offset % kPerUnit;
    return {(uint32_t*)((T*)args.k_cache + run) + offset, value};
}

// Asks for every line that the slot's key and value touch: a key alone touches one for each of its units.
template <class T>
void fetch(const RotateStoreArgs& args, SlotPlace<T> place) {
    for (int64_t u = 0; u < args.head_dim * int64_t(sizeof(T)) / 4; u++) __builtin_prefetch(place.key + u * args.block_size, 1);
    for (int64_t d = 0; d < args.head_dim; d += 16) __builtin_prefetch(place.value + d * (4 / int64_t(sizeof(T))), 1);
}

template <class T>
void store_key_and_value(const RotateStoreArgs& args, SlotPlace<T> place, const T* key, const T* value) {
    constexpr int64_t kPerUnit = 4 / sizeof(T);
    for (int64_t u = 0; u < args.head_dim / kPerUnit; u++)
        std::memcpy(place.key + u * args.block_size, key + u * kPerUnit, 4);
    // One by one: the neighbouring slot, between these elements, may be written by another thread.
    for (int64_t d = 0; d < args.head_dim; d++) place.value[d * kPerUnit] = value[d];
}

}  // namespace

template <class T>
void rotate_and_store_group(const RotateStoreArgs& args, int64_t token, int64_t kv_head) {
    int64_t slot = args.k_cache ? args.slots[token] : -1;
    SlotPlace<T> place{};
    if (slot >= 0) {
        place = place_of<T>(args, slot, kv_head);
        fetch(args, place);
    }
    alignas(64) float cosines[kMaxHeadDim / 2 + 16], sines[kMaxHeadDim / 2 + 16];
    if (args.positions) read_table<T>(args, args.positions[token], cosines, sines);
    auto turn = [&](T* x, const void* norm) {
        if (norm) normalise(x, (const T*)norm, args.head_dim, args.eps);
        if (args.positions) rotate(x, cosines, sines, args.rotary_dim / 2);
    };
    int64_t group = args.num_heads / args.num_kv_heads;
    T* q = (T*)args.q + token * args.q_token_stride + kv_head * group * args.q_head_stride;
    for (int64_t h = 0; h < group; h++) turn(q + h * args.q_head_stride, args.q_norm);
    T* k = (T*)args.k + token * args.k_token_stride + kv_head * args.k_head_stride;
    if (!args.k_cache) {
        turn(k, args.k_norm);
    } else if (slot >= 0) {
        alignas(64) T turned[kMaxHeadDim];
        std::memcpy(turned, k, size_t(args.head_dim) * sizeof(T));
        turn(turned, args.k_norm);
        const T* v = (const T*)args.v + token * args.v_token_stride + kv_head * args.v_head_stride;
        store_key_and_value(args, place, turned, v);
    }
}

template <class T>
void rotate_and_store(Team& team, const RotateStoreArgs& args) {
    int64_t items = args.num_tokens * args.num_kv_heads;
    int64_t grain = items < 64 * team.size() ? 1 : 16;
    team.for_each(items, grain, [&](int64_t i) {
        rotate_and_store_group<T>(args, i / args.num_kv_heads, i % args.num_kv_heads);
    });
}

template void rotate_and_store_group<float>(const RotateStoreArgs&, int64_t, int64_t);
template void rotate_and_store_group<bf16>(const RotateStoreArgs&, int64_t, int64_t);
template void rotate_and_store<float>(Team&, const RotateStoreArgs&);
template void rotate_and_store<bf16>(Team&, const RotateStoreArgs&);

}  // namespace quire
