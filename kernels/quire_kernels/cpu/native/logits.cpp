// What happens to a row of logits before the draw, and the log-probabilities beside it: quire_kernels/{penalties,token_bias,logprobs}.py
// have the contracts.
#include <algorithm>
#include <limits>

#include "api.h"
#include "lanes.h"
#include "solo.h"

namespace quire {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Penalties {
    float repetition, frequency, presence;

    float operator()(float logit, int32_t count) const {
        logit = logit > 0 ? logit / repetition : logit * repetition;
        logit -= frequency * float(count);
        return logit - presence * (count > 0 ? 1.0f : 0.0f);
    }
};

void penalise_row(float* logits, const uint8_t* in_prompt, const int32_t* counts, int64_t vocab_size, Penalties penalties) {
    constexpr int64_t kBlock = 32;
    for (int64_t start = 0; start < vocab_size; start += kBlock) {
        int64_t end = std::min(start + kBlock, vocab_size);
        uint32_t seen = 0;
        if (end - start == kBlock)
            for (int64_t i = 0; i < kBlock; i++) seen |= uint32_t(counts[start + i]) | in_prompt[start + i];
        else
            seen = 1;
        if (!seen) continue;
        for (int64_t i = start; i < end; i++)
            if (in_prompt[i] || counts[i] > 0) logits[i] = penalties(logits[i], counts[i]);
    }
}

void mask_row(float* logits, const uint32_t* words, int64_t vocab_size) {
    const F16 never = set1(-kInfinity);
    for (int64_t i = 0; i < vocab_size; i += 16) {
        Mask allowed = words[i / 32] >> (i % 32) & 0xffff;
        int n = int(std::min<int64_t>(16, vocab_size - i));
        if (allowed == 0xffff) continue;
        if (n == 16)
            store(logits + i, pick(allowed, load(logits + i), never));
        else
            store_first(logits + i, pick(allowed, load_first(logits + i, n), never), n);
    }
}

// The k largest of a row, by value, then lowest id.
struct Largest {
    float* values;
    int64_t* ids;
    int64_t k;
    int64_t count = 0;

    float least() const { return count < k ? -kInfinity : values[k - 1]; }

    void add(float value, int64_t id) {
        int64_t at = count < k ? count++ : k - 1;
        for (; at > 0 && values[at - 1] < value; at--) {
            values[at] = values[at - 1];
            ids[at] = ids[at - 1];
        }
        values[at] = value;
        ids[at] = id;
    }
};

template <class T>
F16 load_padded(const T* p, int n) {
    return n == 16 ? load(p) : pick(first_bits(n), load_first(p, n), set1(-kInfinity));
}

// Sums are float32 by lane over 256 tokens, then float64: the result is good to float32.
template <class T>
void logprobs_row(const T* logits, int64_t vocab_size, int64_t chosen, float& logprob, int64_t& rank, Largest found) {
    float picked = to_float(logits[chosen]);
    F16 top = set1(-kInfinity);
    int64_t num_above = 0;
    for (int64_t i = 0; i < vocab_size; i += 16) {
        int n = int(std::min<int64_t>(16, vocab_size - i));
        F16 x = load_padded(logits + i, n);
        top = max(x, top);
        num_above += __builtin_popcount(greater(x, set1(picked)));
        if (!found.k) continue;
        Mask better = found.count < found.k ? first_bits(n) : greater(x, set1(found.least()));
        for (; better; better &= better - 1) {
            int64_t id = i + __builtin_ctz(better);
            float value = to_float(logits[id]);
            if (found.count < found.k || value > found.least()) found.add(value, id);
        }
    }
    float most = largest(top);
    double total = 0;
    for (int64_t block = 0; block < vocab_size; block += 256) {
        int64_t end = std::min<int64_t>(block + 256, vocab_size);
        F16 part = zero();
        for (int64_t i = block; i < end; i += 16) {
            int n = int(std::min<int64_t>(16, end - i));
            F16 weight = exp(load_padded(logits + i, n) - set1(most));
            part = part + (n == 16 ? weight : pick(first_bits(n), weight, zero()));
        }
        total += double(sum(part));
    }
    float normaliser = most + float(std::log(total));
    logprob = picked - normaliser;
    rank = num_above + 1;
    for (int64_t i = 0; i < found.k; i++) found.values[i] -= normaliser;
}

template <class Group, class T>
void top_logprobs(Group& team, const T* logits, int64_t num_rows, int64_t vocab_size, int64_t stride, const int64_t* chosen,
                  int64_t k, float* logprobs, int64_t* ranks, int64_t* ids, float* values) {
    team.for_each(num_rows, 1, [&](int64_t row) {
        Largest found{values + row * k, ids + row * k, k};
        logprobs_row(logits + row * stride, vocab_size, chosen[row], logprobs[row], ranks[row], found);
    });
}

}  // namespace

}  // namespace quire

using namespace quire;

QUIRE_API void quire_apply_penalties(float* logits, int64_t num_rows, int64_t vocab_size, int64_t stride, const int64_t* slots,
                                     const uint8_t* prompt_mask, const int32_t* output_counts, const float* repetition,
                                     const float* frequency, const float* presence) {
    run_by_cost(0.3 * double(num_rows * vocab_size), [&](auto& team, int) {
        team.for_each(num_rows, 1, [&](int64_t row) {
            if (slots[row] < 0) return;
            int64_t place = slots[row] * vocab_size;
            Penalties penalties{repetition[row], frequency[row], presence[row]};
            penalise_row(logits + row * stride, prompt_mask + place, output_counts + place, vocab_size, penalties);
        });
    });
}

QUIRE_API void quire_count_tokens(int32_t* output_counts, int64_t vocab_size, int64_t num_rows, const int64_t* slots,
                                  const int64_t* token_ids) {
    for (int64_t row = 0; row < num_rows; row++)
        if (slots[row] >= 0 && token_ids[row] >= 0) output_counts[slots[row] * vocab_size + token_ids[row]]++;
}

QUIRE_API void quire_apply_bias(float* logits, int64_t vocab_size, int64_t stride, int64_t count, const int64_t* rows,
                                const int64_t* ids, const float* values) {
    // Ids of checkpoints and clients come this far: one outside the vocabulary must not reach memory outside the row.
    for (int64_t i = 0; i < count; i++)
        if (rows[i] >= 0 && ids[i] >= 0 && ids[i] < vocab_size) logits[rows[i] * stride + ids[i]] += values[i];
}

QUIRE_API void quire_apply_bitmask(float* logits, int64_t vocab_size, int64_t stride, int64_t num_masks, const int64_t* rows,
                                   const uint32_t* bitmask) {
    int64_t num_words = (vocab_size + 31) / 32;
    run_by_cost(0.2 * double(num_masks * vocab_size), [&](auto& team, int) {
        team.for_each(num_masks, 1, [&](int64_t i) {
            if (rows[i] >= 0) mask_row(logits + rows[i] * stride, bitmask + i * num_words, vocab_size);
        });
    });
}

QUIRE_API void quire_top_logprobs(const void* logits, int32_t is_bf16, int64_t num_rows, int64_t vocab_size, int64_t stride,
                                  const int64_t* chosen, int64_t k, float* logprobs, int64_t* ranks, int64_t* ids, float* values) {
    run_by_cost(1.0 * double(num_rows * vocab_size), [&](auto& team, int) {
        if (is_bf16)
            top_logprobs(team, static_cast<const bf16*>(logits), num_rows, vocab_size, stride, chosen, k, logprobs, ranks, ids, values);
        else
            top_logprobs(team, static_cast<const float*>(logits), num_rows, vocab_size, stride, chosen, k, logprobs, ranks, ids, values);
    });
}
