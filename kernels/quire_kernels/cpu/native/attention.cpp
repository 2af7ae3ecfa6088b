#include "attention.h"

#include <algorithm>
#include <type_traits>

#include "attention_plan.h"
#include "attention_tile.h"

namespace quire {

namespace {

// Tiles for each thread from which on a thread takes whole ones.
constexpr int64_t kManyTiles = 4;

// Keys and values of one request and kv head.
template <class T>
struct Source {
    const AttentionArgs& args;
    const int32_t* table;
    int64_t kv_head;

    Source(const AttentionArgs& args, const Tile& tile, int64_t kv_head)
        : args(args), table(args.block_tables + tile.row * args.table_stride), kv_head(kv_head) {}

    // Where keys first .. first + 15 begin: `first` is a multiple of 16, and so is a block.
    int64_t run_of(int64_t first) const {
        return table[first / args.block_size] * args.block_stride + kv_head * args.block_size * args.head_dim;
    }
    const T* keys(int64_t first) const { return (const T*)args.k_cache + run_of(first) + first % args.block_size * kPerUnit<T>; }
    const T* values(int64_t first) const { return (const T*)args.v_cache + run_of(first) + first % args.block_size * args.head_dim; }
};

// The groups of sixteen keys, of 64 at a fixed position, that some query of a tile sees.
template <class T>
struct Piece {
    int64_t first = 0;
    int begin_group = 0, end_group = 0;
    const T *keys[kGroups], *values[kGroups];

    void find(const Source<T>& source, int64_t index, int64_t begin, int64_t last_position) {
        first = index * kPieceKeys;
        begin_group = int(std::max<int64_t>(0, begin - first) / 16);
        end_group = int(std::min<int64_t>(kPieceKeys, last_position + 1 - first + 15) / 16);
        for (int g = begin_group; g < end_group; g++) {
            keys[g] = source.keys(first + g * 16);
            values[g] = source.values(first + g * 16);
        }
    }

    // Nothing more to read: pointers that may be fetched in vain.
    void end(const Piece& last) {
        *this = last;
        begin_group = end_group = 0;
    }
};

// What an item reads first and last.
struct Range {
    int64_t begin, last_position, first_piece, last_piece;

    Range(const AttentionArgs& args, const Tile& tile) {
        begin = first_key(tile.position, args.window);
        last_position = tile.position + tile.num_queries - 1;
        bool is_whole = tile.split < 0;
        first_piece = (is_whole ? begin : std::max(begin, tile.split * kSplitKeys)) / kPieceKeys;
        last_piece = (is_whole ? last_position : std::min((tile.split + 1) * kSplitKeys - 1, last_position)) / kPieceKeys;
    }
};

struct Item {
    const Tile* tile;
    int64_t kv_head, chunk;
};

// One work item: `rows` = queries x heads of a chunk of a kv group, all against the same keys.
template <class T>
class TileWork {
   public:
    // `next`: the item that this thread probably takes next, whose first piece is fetched; may be the same.
    TileWork(const AttentionArgs& args, const Item& item, const Item& next)
        : args_(args),
          tile_(*item.tile),
          range_(args, tile_),
          source_(args, tile_, item.kv_head),
          next_(next),
          kv_head_(item.kv_head),
          group_(args.num_heads / args.num_kv_heads) {
        first_head_ = item.chunk * heads_at_once(group_);
        num_heads_ = std::min(heads_at_once(group_), group_ - first_head_);
        num_rows_ = tile_.num_queries * num_heads_;
        num_blocks_of_rows_ = (num_rows_ + kMaxRows - 1) / kMaxRows;
        units_ = args.head_dim / kPerUnit<T>;
        factor_ = args.scale * 1.44269504088896341f;
    }

    void run() {
        pack_queries();
        constexpr int64_t pieces_of_split = kSplitKeys / kPieceKeys;
        int64_t num_splits = 0;
        Piece<T> pieces[2];
        pieces[0].find(source_, range_.first_piece, range_.begin, range_.last_position);
        begin_split();
        for (int64_t index = range_.first_piece; index <= range_.last_piece; index++) {
            Piece<T>&piece = pieces[(index - range_.first_piece) & 1], &ahead = pieces[(index - range_.first_piece + 1) & 1];
            find_ahead(ahead, piece, index + 1);
            score(piece, ahead);
            turn_into_weights(piece);
            add(piece, ahead);
            if (tile_.split < 0 && index < range_.last_piece && (index + 1) % pieces_of_split == 0) {
                num_splits++ ? merge() : keep_as_merged();
                begin_split();
            }
        }
        if (tile_.split >= 0) return write_partials();
        if (num_splits) merge();
        write_out();
    }

   private:
    // Rows of block b, and its first row: blocks differ by one row at most.
    int64_t rows_of(int64_t b) const { return num_rows_ / num_blocks_of_rows_ + (b < num_rows_ % num_blocks_of_rows_); }

    template <class Body>
    void for_each_row_block(Body&& body) const {
        for (int64_t b = 0, first = 0; b < num_blocks_of_rows_; first += rows_of(b), b++) body(first, int(rows_of(b)));
    }

    // Row r is query r / heads, head r % heads. Within a block of R rows: [units][R].
    void pack_queries() {
        for_each_row_block([&](int64_t first, int rows) {
            for (int64_t r = 0; r < rows; r++) {
                int64_t token = tile_.first_query + (first + r) / num_heads_;
                int64_t head = kv_head_ * group_ + first_head_ + (first + r) % num_heads_;
                const T* q = (const T*)args_.q + token * args_.q_token_stride + head * args_.q_head_stride;
                T* packed = queries_ + first * args_.head_dim + r * kPerUnit<T>;
                for (int64_t u = 0; u < units_; u++) std::memcpy(packed + u * rows * kPerUnit<T>, q + u * kPerUnit<T>, 4);
            }
        });
    }

    void begin_split() {
        std::fill(largest_, largest_ + num_rows_, kNoScore);
        std::fill(totals_, totals_ + num_rows_ * 16, 0.0f);
        std::fill(sums_, sums_ + num_rows_ * args_.head_dim, 0.0f);
    }

    void find_ahead(Piece<T>& ahead, const Piece<T>& piece, int64_t index) const {
        ahead.end(piece);
        if (index <= range_.last_piece) {
            ahead.find(source_, index, range_.begin, range_.last_position);
        } else if (next_.tile != &tile_ || next_.kv_head != kv_head_) {
            Range range(args_, *next_.tile);
            ahead.find(Source<T>(args_, *next_.tile, next_.kv_head), range.first_piece, range.begin, range.last_position);
        }
    }

    // Fetches the keys of the piece ahead meanwhile.
    void score(const Piece<T>& piece, const Piece<T>& ahead) {
        int64_t step = args_.block_size * kPerUnit<T>;
        for (int g = ahead.begin_group; g < ahead.end_group; g++) {
            if (piece.begin_group <= g && g < piece.end_group) continue;
            for (int64_t u = 0; u < units_; u++) fetch_line(ahead.keys[g] + u * step);
        }
        for (int g = piece.begin_group; g < piece.end_group; g += kMaxVectors) {
            int vectors = std::min(kMaxVectors, piece.end_group - g);
            for_each_row_block([&](int64_t first, int rows) {
                with_constant<kMaxVectors>(vectors, [&](auto nv) {
                    with_constant<kMaxRows>(rows, [&](auto r) {
                        const T* q = queries_ + first * args_.head_dim;
                        float* scores = scores_ + first * kPieceKeys + g * 16;
                        if (first == 0)
                            score_rows<T, r, nv, true>(q, piece.keys + g, step, units_, ahead.keys + g, scores);
                        else
                            score_rows<T, r, nv, false>(q, piece.keys + g, step, units_, nullptr, scores);
                    });
                });
            });
        }
    }

    void turn_into_weights(const Piece<T>& piece) {
        int begin = piece.begin_group, end = piece.end_group;
        bool is_whole = piece.first + kPieceKeys - 1 <= tile_.position && piece.first >= first_key(range_.last_position, args_.window);
        if (is_whole) {
            raise_largest<false>(scores_, num_rows_, nullptr, begin, end, factor_, largest_, decay_);
            weigh<T, false>(scores_, num_rows_, nullptr, begin, end, factor_, largest_, decay_, weights_, totals_);
            return;
        }
        Visible visible[kTileRows];
        for (int64_t r = 0; r < num_rows_; r++) {
            int64_t position = tile_.position + r / num_heads_;
            int64_t low = std::clamp<int64_t>(first_key(position, args_.window) - piece.first, 0, kPieceKeys);
            int64_t high = std::clamp<int64_t>(position + 1 - piece.first, 0, kPieceKeys);
            visible[r] = {int32_t(low), int32_t(high)};
        }
        raise_largest<true>(scores_, num_rows_, visible, begin, end, factor_, largest_, decay_);
        weigh<T, true>(scores_, num_rows_, visible, begin, end, factor_, largest_, decay_, weights_, totals_);
    }

    // Fetches the values of the piece ahead meanwhile.
    void add(const Piece<T>& piece, const Piece<T>& ahead) {
        int64_t vectors = args_.head_dim / 16, step = args_.head_dim * kPerUnit<T>;
        for (int g = ahead.begin_group; g < ahead.end_group; g++) {
            if (piece.begin_group <= g && g < piece.end_group) continue;
            for (int64_t i = 0; i < units_; i++) fetch_line(ahead.values[g] + i * 16 * kPerUnit<T>);
        }
        for (int64_t n = 0; n < vectors; n += kMaxVectors) {
            const T *values[kGroups], *values_ahead[kGroups];
            for (int g = piece.begin_group; g < piece.end_group; g++) {
                values[g] = piece.values[g] + n * 16 * kPerUnit<T>;
                values_ahead[g] = ahead.values[g] + n * 16 * kPerUnit<T>;
            }
            for_each_row_block([&](int64_t first, int rows) {
                with_constant<kMaxVectors>(int(std::min<int64_t>(kMaxVectors, vectors - n)), [&](auto nv) {
                    with_constant<kMaxRows>(rows, [&](auto r) {
                        const T* weights = weights_ + first * kPieceKeys;
                        float* sums = sums_ + first * args_.head_dim + n * 16;
                        if (first == 0)
                            add_values<T, r, nv, true>(weights, values, piece.begin_group, piece.end_group, step, values_ahead,
                                                       decay_ + first, sums, args_.head_dim);
                        else
                            add_values<T, r, nv, false>(weights, values, piece.begin_group, piece.end_group, step, nullptr,
                                                        decay_ + first, sums, args_.head_dim);
                    });
                });
            });
        }
    }

    void write_partials() const {
        int64_t stride = partial_stride(args_.head_dim);
        for (int64_t r = 0; r < num_rows_; r++) {
            int64_t query = r / num_heads_, head = kv_head_ * group_ + first_head_ + r % num_heads_;
            float* partial = (float*)args_.scratch + (tile_.partial + query * args_.num_heads + head) * stride;
            std::copy_n(sums_ + r * args_.head_dim, args_.head_dim, partial);
            partial[args_.head_dim] = largest_[r];
            partial[args_.head_dim + 1] = sum(load(totals_ + r * 16));
        }
    }

    void keep_as_merged() {
        std::copy_n(sums_, num_rows_ * args_.head_dim, merged_sums_);
        std::copy_n(largest_, num_rows_, merged_largest_);
        for (int64_t r = 0; r < num_rows_; r++) merged_total_[r] = sum(load(totals_ + r * 16));
        is_merged_ = true;
    }

    void merge();
    void write_out() const;

    const AttentionArgs& args_;
    const Tile& tile_;
    const Range range_;
    const Source<T> source_;
    const Item next_;
    int64_t kv_head_, group_, first_head_, num_heads_, num_rows_, num_blocks_of_rows_, units_;
    float factor_;
    bool is_merged_ = false;
    alignas(64) T queries_[kTileRows * kMaxHeadDim];
    alignas(64) float scores_[kTileRows * kPieceKeys];
    alignas(64) T weights_[kTileRows * kPieceKeys];
    alignas(64) float totals_[kTileRows * 16];
    alignas(64) float largest_[(kTileRows + 15) / 16 * 16];
    alignas(64) float decay_[(kTileRows + 15) / 16 * 16] = {};
    alignas(64) float sums_[kTileRows * kMaxHeadDim];
    alignas(64) float merged_sums_[kTileRows * kMaxHeadDim];
    float merged_largest_[kTileRows], merged_total_[kTileRows];
};

// Adds the results of a later split to those of the earlier ones. The only place that does: bits depend on it.
inline void merge_results(float* sums, float& largest_score, float& total, const float* more, float more_largest, float more_total,
                          int64_t head_dim) {
    float raised = more_largest > largest_score ? more_largest : largest_score;
    F16 keep = exp2(set1(largest_score - raised)), take = exp2(set1(more_largest - raised));
    for (int64_t d = 0; d < head_dim; d += 16) store(sums + d, fma(load(more + d), take, load(sums + d) * keep));
    float both[16];
    store(both, fma(set1(more_total), take, set1(total) * keep));
    total = both[0];
    largest_score = raised;
}

template <class T>
void write_row(const float* sums, float total, int64_t head_dim, T* out) {
    F16 factor = set1(1.0f / total);
    for (int64_t d = 0; d < head_dim; d += 16) store(out + d, load(sums + d) * factor);
}

template <class T>
void TileWork<T>::merge() {
    for (int64_t r = 0; r < num_rows_; r++)
        merge_results(merged_sums_ + r * args_.head_dim, merged_largest_[r], merged_total_[r], sums_ + r * args_.head_dim, largest_[r],
                      sum(load(totals_ + r * 16)), args_.head_dim);
}

template <class T>
void TileWork<T>::write_out() const {
    for (int64_t r = 0; r < num_rows_; r++) {
        int64_t token = tile_.first_query + r / num_heads_, head = kv_head_ * group_ + first_head_ + r % num_heads_;
        T* out = (T*)args_.out + (token * args_.num_heads + head) * args_.head_dim;
        float total = is_merged_ ? merged_total_[r] : sum(load(totals_ + r * 16));
        write_row(is_merged_ ? merged_sums_ + r * args_.head_dim : sums_ + r * args_.head_dim, total, args_.head_dim, out);
    }
}

// Query and head `i` of a merge, its splits in order.
template <class T>
void merge_row(const AttentionArgs& args, const Merge& merge, int64_t i) {
    int64_t stride = partial_stride(args.head_dim), num_rows = merge.num_queries * args.num_heads;
    float* sums = (float*)args.scratch + (merge.partial + i) * stride;
    float largest_score = sums[args.head_dim], total = sums[args.head_dim + 1];
    for (int64_t split = 1; split < merge.num_splits; split++) {
        const float* more = sums + split * num_rows * stride;
        merge_results(sums, largest_score, total, more, more[args.head_dim], more[args.head_dim + 1], args.head_dim);
    }
    write_row(sums, total, args.head_dim, (T*)args.out + (merge.first_query * args.num_heads + i) * args.head_dim);
}

}  // namespace

template <class T>
void attend(Team& team, const AttentionArgs& args) {
    const Plan& plan = *(const Plan*)args.plan;
    const Tile* tiles = tiles_of(args.plan);
    int64_t chunks = head_chunks(args.num_heads / args.num_kv_heads), per_tile = args.num_kv_heads * chunks;
    int64_t num_items = plan.num_tiles * per_tile;
    auto item_at = [&](int64_t i) { return Item{tiles + i / per_tile, i % per_tile / chunks, i % chunks}; };
    // The heads of a block are neighbours in memory: with tiles enough for all, a thread takes a tile's heads one after the other.
    int64_t grain = plan.num_tiles >= kManyTiles * team.size() ? per_tile : 1;
    team.for_each(num_items, grain, [&](int64_t i) {
        int64_t next = i + 1 + ((i + 1) % grain ? 0 : grain * (team.size() - 1));
        TileWork<T> work(args, item_at(i), item_at(next < num_items ? next : i));
        work.run();
    });
    if (!plan.num_merges) return;
    const Merge* merges = merges_of(args.plan);
    // A tile has at most kTileRows queries: items past a smaller tile's rows find nothing to do.
    int64_t most = queries_of_tile(args.num_heads / args.num_kv_heads) * args.num_heads;
    team.for_each(plan.num_merges * most, 8, [&](int64_t i) {
        const Merge& merge = merges[i / most];
        if (i % most < merge.num_queries * args.num_heads) merge_row<T>(args, merge, i % most);
    });
}

template void attend<float>(Team&, const AttentionArgs&);
template void attend<bf16>(Team&, const AttentionArgs&);

}  // namespace quire
