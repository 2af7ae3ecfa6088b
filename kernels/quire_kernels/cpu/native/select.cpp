#include "select.h"

#include <algorithm>
#include <limits>

namespace quire {

namespace {

// A value's place in the order of all floats, -0 and 0 being one: the first 11, next 11 and last 10 bits are the three digits.
inline uint32_t order_of(float value) {
    float normal = value + 0.0f;
    uint32_t bits;
    std::memcpy(&bits, &normal, 4);
    return bits ^ (uint32_t(int32_t(bits) >> 31) | 0x80000000u);
}

inline float value_of(uint32_t order) {
    uint32_t bits = order & 0x80000000u ? order ^ 0x80000000u : ~order;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

constexpr int kShift[3] = {21, 10, 0};
constexpr uint32_t kDigit[3] = {2047, 2047, 1023};

// What lies above the digits chosen so far.
struct Above {
    int64_t count = 0;
    double sum = 0;
};

struct Weights {
    F16 largest;

    float of(float value) const {
        alignas(64) float lanes[16];
        store(lanes, exp(set1(value) - largest));
        return lanes[0];
    }
};

// counts and, if wanted, weights of `values` by their digit at `level`.
void histogram(const float* values, int64_t count, int level, bool has_sums, Weights weights, SelectScratch& scratch) {
    std::fill_n(scratch.counts, kBins, 0u);
    if (has_sums) std::fill_n(scratch.sums, kBins, 0.0);
    for (int64_t i = 0; i < count; i += 16) {
        int n = int(std::min<int64_t>(16, count - i));
        alignas(64) float weight[16];
        alignas(64) uint32_t digit[16];
        for (int j = 0; j < 16; j++) digit[j] = j < n ? (order_of(values[i + j]) >> kShift[level]) & kDigit[level] : 0;
        if (has_sums) store(weight, exp(load_first(values + i, n) - weights.largest));
        for (int j = 0; j < n; j++) {
            scratch.counts[digit[j]]++;
            if (has_sums) scratch.sums[digit[j]] += double(weight[j]);
        }
    }
}

// Those of `values` whose order begins as `prefix` does; `out` may be `values`.
int64_t collect(const float* values, int64_t count, int level, uint32_t prefix, float* out) {
    int64_t found = 0;
    for (int64_t i = 0; i < count; i++) {
        out[found] = values[i];
        found += order_of(values[i]) >> kShift[level] == prefix;
    }
    return found;
}

// Walks down the three digits; the first one's histogram is there. `stops(above, count, sum)`: the threshold lies in this bin.
template <class Stops>
Threshold descend(int64_t vocab_size, bool has_sums, Weights weights, SelectScratch& scratch, Above& above, Stops&& stops) {
    const float* values = scratch.values;
    int64_t count = vocab_size;
    uint32_t prefix = 0;
    for (int level = 0; level < 3; level++) {
        if (level) histogram(values, count, level, has_sums, weights, scratch);
        uint32_t chosen = 0;
        Above before = above, next = above;
        for (int bin = int(kDigit[level]); bin >= 0; bin--) {
            if (!scratch.counts[bin]) continue;
            chosen = uint32_t(bin);
            before = next;
            next.count += scratch.counts[bin];
            if (has_sums) next.sum += scratch.sums[bin];
            if (stops(next)) break;
        }
        // Sums in another order may fall short by a rounding: then the last bin it is.
        above = before;
        prefix = prefix << (level == 2 ? 10 : 11) | chosen;
        count = collect(values, count, level, prefix, scratch.chosen);
        values = scratch.chosen;
    }
    return {value_of(prefix), count};
}

Threshold cut_by_rank(int32_t top_k, int64_t vocab_size, bool has_sums, Weights weights, SelectScratch& scratch, Above& above) {
    auto stops = [&](const Above& through) { return through.count >= top_k; };
    Threshold kept = descend(vocab_size, has_sums, weights, scratch, above, stops);
    kept.num_ties = top_k - above.count;
    return kept;
}

// A token stays if what ranks before it weighs less than the share.
Threshold cut_by_share(double share, int64_t vocab_size, Weights weights, SelectScratch& scratch) {
    Above above;
    Threshold kept = descend(vocab_size, true, weights, scratch, above, [&](const Above& through) { return through.sum >= share; });
    double weight = double(weights.of(kept.value));
    int64_t num_equal = kept.num_ties;
    if (weight > 0) {
        double wanted = std::ceil((share - above.sum) / weight);
        int64_t num_ties = wanted < double(num_equal) ? int64_t(wanted) : num_equal;
        while (num_ties > 1 && above.sum + double(num_ties - 1) * weight >= share) num_ties--;
        while (num_ties < num_equal && above.sum + double(num_ties) * weight < share) num_ties++;
        kept.num_ties = num_ties;
    }
    kept.num_ties = std::max<int64_t>(1, kept.num_ties);
    return kept;
}

}  // namespace

Threshold threshold_of(const Cuts& cuts, int64_t vocab_size, SelectScratch scratch) {
    Weights weights{set1(cuts.largest)};
    bool has_top_p = cuts.top_p < 1, has_top_k = cuts.top_k > 0 && cuts.top_k < vocab_size;
    if (!has_top_p && !has_top_k) return {};
    histogram(scratch.values, vocab_size, 0, has_top_p, weights, scratch);
    double total = 0;
    Threshold kept;
    if (has_top_k) {
        Above above;
        kept = cut_by_rank(cuts.top_k, vocab_size, has_top_p, weights, scratch, above);
        if (!has_top_p) return kept;
        total = above.sum + double(kept.num_ties) * double(weights.of(kept.value));
        histogram(scratch.values, vocab_size, 0, true, weights, scratch);
    } else {
        for (int bin = 0; bin < kBins; bin++) total += scratch.sums[bin];
    }
    Threshold within = cut_by_share(double(cuts.top_p) * total, vocab_size, weights, scratch);
    if (within.value < kept.value) return kept;
    if (within.value == kept.value) within.num_ties = std::min(within.num_ties, kept.num_ties);
    return within;
}

}  // namespace quire
