// The next token of each row: see quire_kernels/sampling.py, whose table of contracts holds here too.
//
// One pass over a row that is not cut. The token with the largest sum of scaled logit s and noise g wins; with B the best sum so far, a
// token can win only if its word's v satisfies v <= -log(1 - v) = e^-g <= e^(s - B). That is one exponential a token, in float32 and with
// some slack; what passes (a few tokens a row) is computed exactly, in float64 as the reference does it. So the approximations
// decide how much is computed, never what comes out.
//
// top_k and top_p become a threshold: the least value that is kept, and how many tokens of that value, lowest ids first. It is
// found by histograms over 11, 11 and 10 bits of the values' order, the last two only over what shares the first's bin.
#pragma once

#include "pool.h"
#include "simd.h"
#include "solo.h"

namespace quire {

struct SampleArgs {
    int64_t num_rows, vocab_size, stride;
    const float* temperature;  // null: every row is greedy
    const int32_t* top_k;
    const float* top_p;
    const float* min_p;
    const int64_t* seeds;
    const int64_t* positions;
    uint32_t purpose;
    int64_t* out;
    uint8_t* is_broken;  // may be null; 1 where a logit is NaN or +inf, or all are -inf
    void* scratch;       // sample_scratch_bytes
};

// Bytes of scratch that `sample` wants for a team of `num_threads`.
int64_t sample_scratch_bytes(int64_t num_rows, int64_t vocab_size, int num_threads);

// What one thread would take, about.
double sample_cost_ns(const SampleArgs& args);

// In-run. T = float | bf16; Group = Team | Solo.
template <class Group, class T>
void sample(Group& team, int thread, const T* logits, const SampleArgs& args);

}  // namespace quire
