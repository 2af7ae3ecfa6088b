// Where ASCII text is cut into words, for each of `quire_contract.prompt_segments.KNOWN_SPLITS`, by its name there.
#pragma once

#include <optional>
#include <string_view>

namespace quire {

struct Split {
    enum class Letters { AFTER_SPACE, AFTER_ANY, BY_CASE };  // what a word may begin with; BY_CASE: as AFTER_ANY, and capitals first
    enum class Endings { NONE, ALONE, ALONE_ANY_CASE, OF_WORD };  // 's 't 're 've 'm 'll 'd

    Letters letters;
    Endings endings;
    int max_digits;  // 0: any number, and a space before
    bool has_lines;  // line ends go with signs before them, and end white space
    bool has_slashes;  // so do slashes with signs
};

std::optional<Split> split_named(std::string_view name);

// The end of the word that begins at `at` in the ASCII text that ends at `end`. There is text.
const char* word_end(const Split& split, const char* at, const char* end);

}  // namespace quire
