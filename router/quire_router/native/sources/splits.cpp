// The regular expressions of prompt_segments by hand. For ASCII no alternative of theirs but white space ever gives back what it took.

#include "splits.h"

#include "text.h"

namespace quire {
namespace {

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }  // \s, which is less than str.isspace
bool is_sign(char c) { return !is_space(c) && !is_letter(c) && !is_digit(c); }

// After 's 't 're 've 'm 'll 'd; nullptr: none is here.
const char* ending_end(const char* at, const char* end, bool any_case) {
    if (end - at < 2 || *at != '\'') return nullptr;
    const char fold = any_case ? 0x20 : 0;
    const auto letter = [&](int place) { return is_letter(at[place]) ? char(at[place] | fold) : at[place]; };
    switch (letter(1)) {
        case 's': case 't': case 'm': case 'd': return at + 2;
        case 'r': case 'v': return end - at > 2 && letter(2) == 'e' ? at + 3 : nullptr;
        case 'l': return end - at > 2 && letter(2) == 'l' ? at + 3 : nullptr;
        default: return nullptr;
    }
}

template <typename Is>
const char* run(const char* at, const char* end, Is is) {
    while (at < end && is(*at)) ++at;
    return at;
}

const char* letters_end(const Split& split, const char* at, const char* end) {
    const bool may_lead = split.letters == Split::Letters::AFTER_SPACE ? *at == ' ' : !is_letter(*at) && !is_digit(*at) && !is_line_end(*at);
    if (may_lead) ++at;
    if (at == end || !is_letter(*at)) return nullptr;
    if (split.letters != Split::Letters::BY_CASE) return run(at, end, is_letter);
    at = run(run(at, end, is_upper), end, is_lower);
    const char* ending = split.endings == Split::Endings::OF_WORD ? ending_end(at, end, true) : nullptr;
    return ending == nullptr ? at : ending;
}

const char* digits_end(const Split& split, const char* at, const char* end) {
    if (split.max_digits == 0 && *at == ' ') ++at;
    if (at == end || !is_digit(*at)) return nullptr;
    if (split.max_digits == 0) return run(at, end, is_digit);
    return run(at, end - at > split.max_digits ? at + split.max_digits : end, is_digit);
}

const char* signs_end(const Split& split, const char* at, const char* end) {
    if (*at == ' ') ++at;
    if (at == end || !is_sign(*at)) return nullptr;
    at = run(at, end, is_sign);
    if (!split.has_lines) return at;
    return run(at, end, [&](char c) { return is_line_end(c) || (split.has_slashes && c == '/'); });
}

const char* space_end(const Split& split, const char* at, const char* end) {
    const char* after = run(at, end, is_space);
    if (split.has_lines)
        for (const char* last = after; last > at; --last)
            if (is_line_end(last[-1])) return last;
    return after == end || after - at == 1 ? after : after - 1;
}

}  // namespace

std::optional<Split> split_named(std::string_view name) {
    using enum Split::Letters;
    using enum Split::Endings;
    if (name == "gpt2") return Split{AFTER_SPACE, ALONE, 0, false, false};
    if (name == "llama3") return Split{AFTER_ANY, ALONE_ANY_CASE, 3, true, false};
    if (name == "qwen2") return Split{AFTER_ANY, ALONE_ANY_CASE, 1, true, false};
    if (name == "plain") return Split{AFTER_SPACE, ALONE, 1, true, false};
    if (name == "o200k") return Split{BY_CASE, OF_WORD, 3, true, true};
    if (name == "tekken") return Split{BY_CASE, NONE, 1, true, true};
    return std::nullopt;
}

const char* word_end(const Split& split, const char* at, const char* end) {
    using enum Split::Endings;
    const char* found = nullptr;
    if (split.endings == ALONE || split.endings == ALONE_ANY_CASE) found = ending_end(at, end, split.endings == ALONE_ANY_CASE);
    if (found == nullptr) found = letters_end(split, at, end);
    if (found == nullptr) found = digits_end(split, at, end);
    if (found == nullptr) found = signs_end(split, at, end);
    return found == nullptr ? space_end(split, at, end) : found;
}

}  // namespace quire
