// Follows a body in HTTP's chunks (RFC 9112, 7.1), read by read. A copy of it tries a read out.
#pragma once

#include <cstdint>
#include <cstring>

#include "parts.h"

namespace quire {

enum class At { SIZE, SIZE_LF, DATA, DATA_CR, DATA_LF, LAST_CR, LAST_LF, DONE, LOST };

struct Chunking {
    At at = At::SIZE;
    int num_digits = 0;
    uint64_t left = 0;       // of the chunk's data; its size while that is read
    uint64_t num_bytes = 0;  // of data, so far

    bool is_between() const { return at == At::SIZE && num_digits == 0; }
    // Whether a read may be whole chunks: to be taken it ends where a chunk does.
    bool may_take(const char* data, size_t size) const { return size > 2 && is_between() && data[size - 2] == '\r' && data[size - 1] == '\n'; }
    // Go over data[0, size); what is data of chunks is copied to `out` unless that is null. The number of bytes copied.
    size_t follow(const char* data, size_t size, char* out);
};

// Where a Python object of this module's Chunks keeps it; null for any other object.
Chunking* chunking_of(PyObject* object);

}  // namespace quire
