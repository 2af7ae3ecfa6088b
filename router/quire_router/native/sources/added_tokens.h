// Finds the tokens that were added to a vocabulary, which texts are cut at: leftmost, of those that begin there the longest.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace quire {

class AddedTokens {
   public:
    struct Found {
        const char* at;  // the end of the text if there is none
        size_t size;
        uint32_t id;
    };

    // Tokens with their ids, none of them empty.
    explicit AddedTokens(std::vector<std::pair<std::string, uint32_t>> tokens);

    Found next(const char* at, const char* end) const;

   private:
    const std::pair<std::string, uint32_t>* longest_at(const char* at, const char* end) const;
    const char* candidate(const char* at, const char* end) const;

    std::vector<std::pair<std::string, uint32_t>> tokens_;  // sorted
    bool is_first_[256] = {};
    std::vector<bool> is_pair_ = std::vector<bool>(1 << 16);  // by their first two bytes
    int only_first_ = -1;  // the one byte that they all begin with, if that is so
};

}  // namespace quire
