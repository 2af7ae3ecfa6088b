#include "sampling.h"

#include <algorithm>
#include <limits>

#include "api.h"
#include "lanes.h"
#include "select.h"

namespace quire {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Tokens of an uncut row that one thread looks at in one go: a single row of a large vocabulary is shared.
constexpr int64_t kPiece = 16384;
// No noise exceeds 22.8739: a token that far below the best sum cannot win.
constexpr float kReach = -22.9f;

// A piece's, or a row's, winner. What of two is better does not depend on the order in which they are seen.
struct Best {
    float sum = -kInfinity;
    bool has_nan = false;
    int64_t id = 0;

    void take(float other, int64_t other_id) {
        if (other > sum || (other == sum && other_id < id)) {
            sum = other;
            id = other_id;
        }
    }
};

template <class T>
Best argmax(const T* logits, int64_t start, int64_t end) {
    constexpr int64_t kBlock = 512;
    Best best;
    best.id = start;
    int64_t found = start;
    Mask nan = 0;
    for (int64_t block = start; block < end; block += kBlock) {
        int64_t stop = std::min(block + kBlock, end), i = block;
        F16 a = set1(-kInfinity), b = a;
        for (; i + 32 <= stop; i += 32) {
            F16 x = load(logits + i), y = load(logits + i + 16);
            nan |= is_nan(x) | is_nan(y);
            a = max(x, a);  // NaN in the first operand gives the second
            b = max(y, b);
        }
        for (; i < stop; i += 16) {
            int64_t n = std::min<int64_t>(16, stop - i);
            F16 x = load_first(logits + i, int(n));
            nan |= is_nan(x);
            a = max(pick(first_bits(n), x, set1(-kInfinity)), a);
        }
        float top = largest(max(a, b));
        if (top > best.sum) {
            best.sum = top;
            found = block;
        }
    }
    best.has_nan = nan != 0;
    if (best.sum > -kInfinity) {
        while (to_float(logits[found]) != best.sum) found++;
        best.id = found;
    }
    return best;
}

// Everything that decides which tokens of a row may be drawn.
struct Cut {
    Threshold threshold;
    float least = -kInfinity;  // min_p's
};

// The best of tokens [start, end). load16(i, n) gives the scaled logits of n tokens from i on; kIsCut: `cut` forbids some.
template <bool kIsCut, class Load>
Best draw(Load&& load16, int64_t start, int64_t end, const Philox& noise, const Cut& cut) {
    constexpr int kGroups = 2;
    Best best;
    best.id = start;
    int64_t ties_left = cut.threshold.num_ties;
    Mask nan = 0;
    F16 bar = set1(-kInfinity);
    for (int64_t i = start; i < end; i += 16 * kGroups) {
        F16 s[kGroups], words[kGroups];
        Mask may[kGroups], any = 0;
        for (int g = 0; g < kGroups; g++) {
            int64_t n = std::min<int64_t>(16, end - i - 16 * g);
            may[g] = 0;
            if (n <= 0) continue;
            s[g] = load16(i + 16 * g, int(n));
            nan |= is_nan(s[g]) & first_bits(n);
            may[g] = at_least(s[g] - bar, set1(kReach)) & first_bits(n);
            if (kIsCut) {
                Mask ties = equal(s[g], set1(cut.threshold.value)) & first_bits(n);
                Mask kept = greater(s[g], set1(cut.threshold.value)) | lowest_bits(ties, ties_left);
                ties_left -= std::min<int64_t>(ties_left, __builtin_popcount(ties));
                may[g] &= kept & at_least(s[g], set1(cut.least));
            }
            any |= may[g];
        }
        if (!any) continue;
        noise.template words<kGroups>(uint32_t(i), words);
        for (int g = 0; g < kGroups; g++) {
            if (!may[g]) continue;
            const F16 v = words[g] * set1(0x1p-32f);
            Mask left = at_least(exp(s[g] - bar), v) & may[g];
            if (!left) continue;
            alignas(64) float values[16];
            store(values, s[g]);
            while (left) {
                int lane = __builtin_ctz(left);
                left &= left - 1;
                int64_t id = i + 16 * g + lane;
                float before = best.sum;
                best.take(values[lane] + gumbel_of_word(noise.word(uint32_t(id))), id);
                if (!(best.sum > before)) continue;
                // Slack for what float32 loses in s - bar, in the exponential and in the sums themselves.
                bar = set1(best.sum - (1e-5f + 4.8e-7f * std::fabs(best.sum)));
                if (left) left &= at_least(exp(s[g] - bar), v);
            }
        }
    }
    best.has_nan = nan != 0;
    return best;
}

bool is_cut(const SampleArgs& args, int64_t row) {
    bool has_top_k = args.top_k[row] > 0 && args.top_k[row] < args.vocab_size;
    return has_top_k || args.top_p[row] < 1 || args.min_p[row] > 0;
}

template <class T>
struct Scaled {
    const T* logits;
    F16 divisor;

    F16 operator()(int64_t i, int n) const { return (n == 16 ? load(logits + i) : load_first(logits + i, n)) / divisor; }
};

// A row with top_k, top_p or min_p, whole.
template <class T>
Best draw_cut(const Scaled<T>& scaled, const SampleArgs& args, int64_t row, const Philox& noise, SelectScratch scratch) {
    int64_t vocab_size = args.vocab_size;
    float* values = scratch.values;
    F16 top = set1(-kInfinity);
    for (int64_t i = 0; i < vocab_size; i += 16) {
        int n = int(std::min<int64_t>(16, vocab_size - i));
        F16 x = scaled(i, n);
        store_first(values + i, x, n);
        top = max(n == 16 ? x : pick(first_bits(n), x, set1(-kInfinity)), top);
    }
    float most = largest(top);
    Cut cut;
    cut.threshold = threshold_of({args.top_k[row], args.top_p[row], most}, vocab_size, scratch);
    if (args.min_p[row] > 0) cut.least = most + std::log(args.min_p[row]);
    if (cut.least > most) {  // the likeliest token always stays
        cut.least = most;
        cut.threshold = {most, 1};
    }
    auto load16 = [values](int64_t i, int n) { return n == 16 ? load(values + i) : load_first(values + i, n); };
    return draw<true>(load16, 0, vocab_size, noise, cut);
}

int64_t num_pieces(int64_t vocab_size) { return std::max<int64_t>(1, (vocab_size + kPiece - 1) / kPiece); }

int64_t round_up(int64_t bytes) { return (bytes + 63) / 64 * 64; }

template <class T>
Best best_of_piece(const T* logits, const SampleArgs& args, int64_t row, int64_t piece, SelectScratch scratch) {
    const T* row_logits = logits + row * args.stride;
    int64_t start = piece * kPiece, end = std::min(start + kPiece, args.vocab_size);
    if (!args.temperature || args.temperature[row] == 0) return argmax(row_logits, start, end);
    Philox noise(uint64_t(args.seeds[row]), uint64_t(args.positions[row]), args.purpose);
    Scaled<T> scaled{row_logits, set1(args.temperature[row])};
    if (!is_cut(args, row)) return draw<false>(scaled, start, end, noise, Cut{});
    if (piece == 0) return draw_cut(scaled, args, row, noise, scratch);
    return Best{-kInfinity, false, start};
}

}  // namespace

int64_t sample_scratch_bytes(int64_t num_rows, int64_t vocab_size, int num_threads) {
    int64_t winners = num_rows * num_pieces(vocab_size) * int64_t(sizeof(Best));
    return round_up(winners) + num_threads * round_up(SelectScratch::size_bytes(vocab_size));
}

double sample_cost_ns(const SampleArgs& args) {
    constexpr double kGreedy = 0.06, kDrawn = 2.5, kCut = 6.0;  // a token
    double row_cost = 0;
    for (int64_t row = 0; row < args.num_rows; row++) {
        bool is_greedy = !args.temperature || args.temperature[row] == 0;
        row_cost += is_greedy ? kGreedy : is_cut(args, row) ? kCut : kDrawn;
    }
    return row_cost * double(args.vocab_size);
}

template <class Group, class T>
void sample(Group& team, int thread, const T* logits, const SampleArgs& args) {
    int64_t pieces = num_pieces(args.vocab_size);
    Best* winners = static_cast<Best*>(args.scratch);
    char* shared_end = static_cast<char*>(args.scratch) + round_up(args.num_rows * pieces * int64_t(sizeof(Best)));
    SelectScratch scratch(shared_end + thread * round_up(SelectScratch::size_bytes(args.vocab_size)), args.vocab_size);
    team.for_each(args.num_rows * pieces, 1, [&](int64_t item) {
        winners[item] = best_of_piece(logits, args, item / pieces, item % pieces, scratch);
    });
    if (thread) return;
    for (int64_t row = 0; row < args.num_rows; row++) {
        Best best = winners[row * pieces];
        for (int64_t piece = 1; piece < pieces; piece++) {
            const Best& other = winners[row * pieces + piece];
            best.take(other.sum, other.id);
            best.has_nan |= other.has_nan;
        }
        args.out[row] = best.id;
        if (args.is_broken) args.is_broken[row] = best.has_nan || !(std::fabs(best.sum) < kInfinity);
    }
}

}  // namespace quire

using namespace quire;

QUIRE_API int64_t quire_sample_scratch_bytes(int64_t num_rows, int64_t vocab_size) {
    return sample_scratch_bytes(num_rows, vocab_size, Team::instance().size());
}

QUIRE_API void quire_sample(const void* logits, int32_t is_bf16, int64_t num_rows, int64_t vocab_size, int64_t stride,
                            const float* temperature, const int32_t* top_k, const float* top_p, const float* min_p,
                            const int64_t* seeds, const int64_t* positions, int32_t purpose, int64_t* out, uint8_t* is_broken,
                            void* scratch) {
    SampleArgs args{num_rows, vocab_size, stride,    temperature,       top_k, top_p,     min_p,
                    seeds,    positions,  purpose < 0 ? 0u : uint32_t(purpose), out,   is_broken, scratch};
    run_by_cost(sample_cost_ns(args), [&](auto& team, int thread) {
        if (is_bf16)
            sample(team, thread, static_cast<const bf16*>(logits), args);
        else
            sample(team, thread, static_cast<const float*>(logits), args);
    });
}
