#include "added_tokens.h"

#include <algorithm>
#include <cstring>

namespace quire {

AddedTokens::AddedTokens(std::vector<std::pair<std::string, uint32_t>> tokens) : tokens_(std::move(tokens)) {
    std::sort(tokens_.begin(), tokens_.end());  // as unsigned bytes
    for (const auto& [text, id] : tokens_) {
        const size_t first = uint8_t(text[0]);
        is_first_[first] = true;
        for (size_t second = 0; second < 256; ++second)
            if (text.size() == 1 || uint8_t(text[1]) == second) is_pair_[first << 8 | second] = true;
    }
    if (std::count(is_first_, is_first_ + 256, true) == 1) only_first_ = uint8_t(tokens_[0].first[0]);
}

AddedTokens::Found AddedTokens::next(const char* at, const char* end) const {
    if (tokens_.empty()) return {end, 0, 0};
    for (at = candidate(at, end); at < end; at = candidate(at + 1, end))
        if (const auto* token = longest_at(at, end)) return {at, token->first.size(), token->second};
    return {end, 0, 0};
}

const char* AddedTokens::candidate(const char* at, const char* end) const {
    if (only_first_ >= 0) {
        const void* found = at < end ? std::memchr(at, only_first_, size_t(end - at)) : nullptr;
        return found == nullptr ? end : static_cast<const char*>(found);
    }
    while (at < end && !is_first_[uint8_t(*at)]) ++at;
    return at;
}

// Narrows the sorted tokens by one byte of the text after the other, so that no text makes it compare with each of them.
const std::pair<std::string, uint32_t>* AddedTokens::longest_at(const char* at, const char* end) const {
    if (end - at > 1 && !is_pair_[size_t(uint8_t(at[0])) << 8 | uint8_t(at[1])]) return nullptr;
    auto first = tokens_.begin(), last = tokens_.end();
    const std::pair<std::string, uint32_t>* longest = nullptr;
    for (size_t depth = 0; at + depth < end && first != last; ++depth) {
        const auto byte = uint8_t(at[depth]);
        const auto byte_of = [depth](const auto& token) { return depth < token.first.size() ? int(uint8_t(token.first[depth])) : -1; };
        first = std::lower_bound(first, last, int(byte), [&](const auto& token, int wanted) { return byte_of(token) < wanted; });
        last = std::upper_bound(first, last, int(byte), [&](int wanted, const auto& token) { return wanted < byte_of(token); });
        if (first != last && first->first.size() == depth + 1) longest = &*first;
    }
    return longest;
}

}  // namespace quire
