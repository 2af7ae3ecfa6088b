// What RFC 9110 says of the characters of a message's head.
#pragma once

#include <cstddef>
#include <string_view>

namespace quire {

// Of a field's name: a token (RFC 9110, 5.6.2).
constexpr bool is_name_char(unsigned char c) {
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9')) return true;
    switch (c) {
        case '!': case '#': case '$': case '%': case '&': case '\'': case '*': case '+': case '-': case '.': case '^': case '_':
        case '`': case '|': case '~':
            return true;
        default:
            return false;
    }
}

// Of a field's value, as far as it is ASCII: printable, a space or a tab.
constexpr bool is_value_char(unsigned char c) { return (c >= 0x20 && c < 0x7f) || c == '\t'; }

constexpr char lower_of(char c) { return c >= 'A' && c <= 'Z' ? char(c + 32) : c; }

// Whether the two are equal but for the case of ASCII letters.
constexpr bool same_name(std::string_view a, std::string_view b) {
    if (a.size() != b.size()) return false;
    for (size_t i = 0; i < a.size(); ++i)
        if (lower_of(a[i]) != lower_of(b[i])) return false;
    return true;
}

// Without spaces and tabs at both ends.
constexpr std::string_view stripped(std::string_view text) {
    while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
    while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
    return text;
}

}  // namespace quire
