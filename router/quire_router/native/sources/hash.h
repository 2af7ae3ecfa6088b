// Hashes of short texts for tables in memory: multiplications of 64 by 64 bits with secrets that each process draws, after wyhash
// (Wang Yi, https://github.com/wangyi-fudan/wyhash), so that no client can choose texts that meet in one place.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace quire {

struct Secrets {
    uint64_t word[4];
};

extern const Secrets SECRETS;

inline uint64_t mixed(uint64_t a, uint64_t b) {
    const auto product = static_cast<unsigned __int128>(a) * b;
    return uint64_t(product) ^ uint64_t(product >> 64);
}

inline uint64_t load64(const char* at) {
    uint64_t value;
    std::memcpy(&value, at, sizeof value);
    return value;
}

inline uint64_t load32(const char* at) {
    uint32_t value;
    std::memcpy(&value, at, sizeof value);
    return value;
}

// Up to 16 bytes as two numbers, which say with `size` what the bytes are.
inline void load_short(const char* text, size_t size, uint64_t& a, uint64_t& b) {
    if (size >= 8) {
        a = load64(text), b = load64(text + size - 8);
    } else if (size >= 4) {
        a = load32(text), b = load32(text + size - 4);
    } else {
        const auto* bytes = reinterpret_cast<const uint8_t*>(text);
        a = size ? uint64_t(bytes[0]) << 16 | uint64_t(bytes[size / 2]) << 8 | bytes[size - 1] : 0, b = 0;
    }
}

inline uint64_t hash_short(uint64_t a, uint64_t b, size_t size) {
    return mixed(a ^ SECRETS.word[0], b ^ SECRETS.word[1] ^ (uint64_t(size) << 56)) ^ a;
}

// Of any size; equal only with equal `seed`.
inline uint64_t hash_bytes(const char* text, size_t size, uint64_t seed) {
    uint64_t left = seed ^ SECRETS.word[2], right = seed ^ SECRETS.word[3];
    const size_t whole = size;
    for (; size > 32; size -= 32, text += 32) {
        left = mixed(load64(text) ^ SECRETS.word[0], load64(text + 8) ^ left);
        right = mixed(load64(text + 16) ^ SECRETS.word[1], load64(text + 24) ^ right);
    }
    if (size > 16) {
        left = mixed(load64(text) ^ SECRETS.word[2], load64(text + 8) ^ left);
        text += 16, size -= 16;
    }
    uint64_t a, b;
    load_short(text, size, a, b);
    return mixed(SECRETS.word[1] ^ whole, mixed(a ^ SECRETS.word[0] ^ left, b ^ SECRETS.word[3] ^ right));
}

}  // namespace quire
