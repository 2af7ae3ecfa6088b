// SHA-256 (FIPS 180-4) of bytes that are at hand whole; with the processor's instructions where it has them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace quire {

// The 32 bytes of the digest of data[0, size) into out.
void sha256(const uint8_t* data, size_t size, uint8_t out[32]);

}  // namespace quire
