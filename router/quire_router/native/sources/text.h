// UTF-8 as Python writes it, which is valid: where a character begins is known by its first byte.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "parts.h"

namespace quire {

inline bool is_first_byte(char byte) { return (static_cast<uint8_t>(byte) & 0xC0) != 0x80; }

inline bool is_ascii(const char* text, size_t size) {
    uint8_t all = 0;
    for (size_t i = 0; i < size; ++i) all |= static_cast<uint8_t>(text[i]);
    return all < 0x80;
}

inline size_t num_chars(const char* text, size_t size) {
    size_t count = 0;
    for (size_t i = 0; i < size; ++i) count += is_first_byte(text[i]);
    return count;
}

// The character that begins at `text`.
inline Py_UCS4 char_at(const char* text) {
    const auto* at = reinterpret_cast<const uint8_t*>(text);
    if (at[0] < 0x80) return at[0];
    if (at[0] < 0xE0) return Py_UCS4(at[0] & 0x1F) << 6 | (at[1] & 0x3F);
    if (at[0] < 0xF0) return Py_UCS4(at[0] & 0x0F) << 12 | Py_UCS4(at[1] & 0x3F) << 6 | (at[2] & 0x3F);
    return Py_UCS4(at[0] & 0x07) << 18 | Py_UCS4(at[1] & 0x3F) << 12 | Py_UCS4(at[2] & 0x3F) << 6 | (at[3] & 0x3F);
}

// Whether the character that ends before `end` is white space to `str.isspace`. There is one.
inline bool is_space_before(const char* end) {
    const char* at = end - 1;
    if (static_cast<uint8_t>(*at) < 0x80) return Py_UNICODE_ISSPACE(Py_UCS4(*at));
    while (!is_first_byte(*at)) --at;
    return Py_UNICODE_ISSPACE(char_at(at));
}

inline bool is_upper(char c) { return c >= 'A' && c <= 'Z'; }
inline bool is_lower(char c) { return c >= 'a' && c <= 'z'; }
inline bool is_letter(char c) { return is_lower(char(c | 0x20)); }
inline bool is_digit(char c) { return c >= '0' && c <= '9'; }
inline bool is_line_end(char c) { return c == '\n' || c == '\r'; }

// Appends a str. -1 with TypeError if `object` is none, UnicodeEncodeError if it has half a surrogate pair.
inline int append_text(std::string& text, PyObject* object) {
    Py_ssize_t size = 0;
    const char* bytes = PyUnicode_AsUTF8AndSize(object, &size);
    if (bytes == nullptr) return -1;
    text.append(bytes, size_t(size));
    return 0;
}

}  // namespace quire
