// How the rows of a step are cut for `attend`. See attention.h for splits and pieces.
#pragma once

#include <cstdint>

#include "attention.h"

namespace quire {

constexpr int64_t kPieceKeys = 64;
constexpr int64_t kSplitKeys = 512;
// Query heads that share one pass over keys and values: their scores, weights and sums stay in the first-level cache.
constexpr int64_t kTileRows = 24;

// Adjacent queries of one row, for every kv head. Work item i is tile i / (Hkv * chunks).
struct Tile {
    int32_t row, first_query, num_queries;
    int32_t position;  // of the first query in its request
    int32_t split;  // the only split of this item, whose partial results go to scratch; -1: all of them, to `out`
    int32_t partial;  // scratch row of that split's first result
};

// The splits of one tile, to be merged: they lie Hkv * num_queries * G scratch rows apart, from `partial` on.
struct Merge {
    int32_t first_query, num_queries;
    int32_t partial, num_splits;
};

struct Plan {
    int64_t num_tiles, num_merges;
    int64_t first_merge;  // offset in bytes
};

inline const Tile* tiles_of(const void* plan) { return (const Tile*)((const char*)plan + 64); }
inline const Merge* merges_of(const void* plan) {
    return (const Merge*)((const char*)plan + ((const Plan*)plan)->first_merge);
}

// Heads of a kv group are taken so many at once; only groups of more than kTileRows need a second chunk.
inline int64_t heads_at_once(int64_t group) { return group < kTileRows ? group : kTileRows; }
inline int64_t head_chunks(int64_t group) { return (group + kTileRows - 1) / kTileRows; }
inline int64_t queries_of_tile(int64_t group) { return kTileRows / heads_at_once(group); }

// The first key that a query at `position` sees.
inline int64_t first_key(int64_t position, int64_t window) {
    return window < 0 || position < window ? 0 : position - window + 1;
}

// Floats of one partial result: head_dim sums, the largest score, the total of weights.
inline int64_t partial_stride(int64_t head_dim) { return head_dim + 16; }

}  // namespace quire
