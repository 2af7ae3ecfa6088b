#include "attention_plan.h"

#include <algorithm>
#include <bit>

namespace quire {

namespace {

// A bound on what splitting may take: past it, tiles are left whole, which costs balance and nothing else.
constexpr int64_t kMaxSplitItems = 4096;
constexpr int64_t kMaxPartials = 32768;
// An item longer than its thread's share by this factor's inverse is split.
constexpr int64_t kItemsPerThread = 4;
constexpr int kBuckets = 160;

struct Cut {
    int64_t num_splits, cost;
};

Cut measure(const Tile& tile, int64_t window) {
    int64_t begin = first_key(tile.position, window), last = tile.position + tile.num_queries - 1;
    int64_t pieces = last / kPieceKeys - begin / kPieceKeys + 1;
    // Two pieces' worth of overhead; so many queries cost what one does while loads dominate.
    return {last / kSplitKeys - begin / kSplitKeys + 1, (pieces + 2) * (tile.num_queries + 2)};
}

template <class Visit>
void for_each_tile(const AttentionArgs& args, Visit&& visit) {
    int64_t step = queries_of_tile(args.num_heads / args.num_kv_heads);
    for (int64_t row = 0; row < args.num_rows; row++) {
        int64_t start = args.query_starts[row], end = args.query_starts[row + 1], seq_len = args.seq_lens[row];
        if (start >= end || seq_len < end - start) continue;
        for (int64_t first = start; first < end; first += step) {
            Tile tile{};
            tile.row = int32_t(row);
            tile.first_query = int32_t(first);
            tile.num_queries = int32_t(std::min(step, end - first));
            tile.position = int32_t(seq_len - (end - first));
            tile.split = -1;
            visit(tile);
        }
    }
}

// Quarter octaves, the largest cost first.
int bucket_of(int64_t cost) {
    int octave = 63 - std::countl_zero(uint64_t(cost));
    int quarter = octave < 2 ? 0 : int((cost >> (octave - 2)) & 3);
    return std::max(0, kBuckets - 1 - (octave * 4 + quarter));
}

}  // namespace

int64_t attention_plan_bytes(int64_t num_rows, int64_t num_queries, int64_t num_heads, int64_t num_kv_heads) {
    int64_t tiles = num_rows + num_queries / queries_of_tile(num_heads / num_kv_heads) + kMaxSplitItems;
    return (64 + tiles * int64_t(sizeof(Tile)) + kMaxSplitItems * int64_t(sizeof(Merge)) + 63) / 64 * 64;
}

int64_t attention_scratch_bytes(int64_t head_dim) { return kMaxPartials * partial_stride(head_dim) * 4; }

void plan_attention(const AttentionArgs& args, int num_threads, void* memory) {
    Plan* plan = (Plan*)memory;
    Tile* tiles = (Tile*)((char*)memory + 64);
    int64_t counts[kBuckets] = {}, total = 0, num_items = 0;
    for_each_tile(args, [&](const Tile& tile) { total += measure(tile, args.window).cost * args.num_kv_heads; });

    // The same walk decides twice: first to count each bucket, then to fill it.
    auto visit_items = [&](auto&& item_found, auto&& merge_found) {
        int64_t num_split_items = 0, num_partials = 0;
        for_each_tile(args, [&](Tile tile) {
            Cut cut = measure(tile, args.window);
            int64_t partials = cut.num_splits * args.num_heads * tile.num_queries;
            bool is_long = cut.cost * kItemsPerThread * num_threads > total;
            bool fits = num_split_items + cut.num_splits <= kMaxSplitItems && num_partials + partials <= kMaxPartials;
            if (num_threads == 1 || cut.num_splits == 1 || !is_long || !fits) {
                item_found(tile, cut.cost);
                return;
            }
            merge_found(Merge{tile.first_query, tile.num_queries, int32_t(num_partials), int32_t(cut.num_splits)});
            int64_t first_split = first_key(tile.position, args.window) / kSplitKeys;
            for (int64_t i = 0; i < cut.num_splits; i++) {
                tile.split = int32_t(first_split + i);
                tile.partial = int32_t(num_partials + i * args.num_heads * tile.num_queries);
                item_found(tile, (kSplitKeys / kPieceKeys + 2) * (tile.num_queries + 2));
            }
            num_split_items += cut.num_splits;
            num_partials += partials;
        });
    };
    visit_items([&](const Tile&, int64_t cost) { counts[bucket_of(cost)]++; }, [](const Merge&) {});
    for (int64_t& count : counts) num_items += std::exchange(count, num_items);
    plan->num_tiles = num_items;
    plan->first_merge = 64 + num_items * int64_t(sizeof(Tile));
    plan->num_merges = 0;
    Merge* merges = (Merge*)((char*)memory + plan->first_merge);
    visit_items([&](const Tile& tile, int64_t cost) { tiles[counts[bucket_of(cost)]++] = tile; },
                [&](const Merge& merge) { merges[plan->num_merges++] = merge; });
}

}  // namespace quire
