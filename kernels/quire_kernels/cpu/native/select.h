// top_k and top_p of one row as a threshold, without sorting.
#pragma once

#include "lanes.h"

namespace quire {

// Keeps what is greater than `value`, and the `num_ties` lowest ids of what equals it.
struct Threshold {
    float value = -__builtin_inff();
    int64_t num_ties = INT64_MAX;
};

struct Cuts {
    int32_t top_k;  // not positive, or as many as there are: keeps all
    float top_p;    // 1 or more: keeps all
    float largest;  // of the row's values
};

constexpr int kFirstBits = 11;
constexpr int kBins = 1 << kFirstBits;

// One thread's room for one row.
struct SelectScratch {
    static int64_t size_bytes(int64_t vocab_size) { return kBins * 12 + (2 * vocab_size + 64) * 4; }

    SelectScratch(void* memory, int64_t vocab_size)
        : sums(static_cast<double*>(memory)),
          counts(reinterpret_cast<uint32_t*>(sums + kBins)),
          values(reinterpret_cast<float*>(counts + kBins)),
          chosen(values + vocab_size + 16) {}

    double* sums;
    uint32_t* counts;
    float* values;  // the row's, filled by the caller
    float* chosen;
};

// Of scratch.values[:vocab_size]. Weights are e^(value - largest) in float32, summed in float64.
Threshold threshold_of(const Cuts& cuts, int64_t vocab_size, SelectScratch scratch);

// The lowest `count` bits that are set.
inline Mask lowest_bits(Mask bits, int64_t count) {
    if (count >= __builtin_popcount(bits)) return bits;
    Mask kept = 0;
    for (; count > 0; count--) {
        kept |= bits & -bits;
        bits &= bits - 1;
    }
    return kept;
}

}  // namespace quire
