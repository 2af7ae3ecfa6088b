// Token ids of a text by its words: the twin of `quire_contract.prompt_words.WordEncoder`, which says why that is right.
//
// A table of words and of the text between two spaces: short ones with few ids, which most are, lie in one line of the processor's cache. What
// is not in it is asked of Python. That may let other threads run, which may change the table: nothing points into it meanwhile.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "added_tokens.h"
#include "python_ref.h"
#include "splits.h"

namespace quire {

constexpr size_t MAX_WORDS = 50'000;
constexpr size_t MAX_WORD_CHARS = 64;
constexpr size_t MAX_WORD_BYTES = 4 * MAX_WORD_CHARS;
constexpr size_t MAX_LEARNT = 32;
constexpr size_t MAX_LONG_BYTES = 8 * 1024 * 1024;  // what does not lie in the table's own places; a full one is emptied

using Ids = std::vector<uint32_t>;

class WordTable {
   public:
    // Appends the ids of text[0, size) to `ids`; false: it is not known.
    bool append(const char* text, size_t size, Ids& ids) const;
    // Remembers them; more than there is room for empties the table first. No text is longer than MAX_WORD_BYTES or empty.
    void keep(const char* text, size_t size, const uint32_t* ids, size_t num_ids);
    size_t size() const { return num_words_; }

   private:
    static constexpr size_t SHORT_BYTES = 16;
    static constexpr size_t FEW_IDS = 3;
    struct Slot {
        uint64_t a, b;  // a short text itself; or its hash, and where it is in long_texts_
        uint32_t ids[FEW_IDS];  // or ids[0]: where they are in long_ids_
        uint16_t size, num_ids;  // size 0: free
    };
    static_assert(sizeof(Slot) == 32);

    size_t place_of(const char* text, size_t size, Slot& key) const;
    void grow();
    void clear();

    std::vector<Slot> slots_;
    std::string long_texts_;
    Ids long_ids_;
    size_t num_words_ = 0;
};

class Words {
   public:
    enum class Answer { FOUND, NOT_KNOWN, FAILED };  // NOT_KNOWN: the tokenizer must encode the whole text

    // `word_ids`: of one ASCII word; `texts_ids`: of each text of a list. Packed as `token_bytes` packs them.
    Words(Split split, AddedTokens added, PyObject* word_ids, PyObject* texts_ids);

    // Appends to `ids`; what was appended is of no use unless FOUND. FAILED: with a Python exception.
    Answer encode(const char* text, const char* end, Ids& ids);

    const Split& split() const { return split_; }
    const AddedTokens& added() const { return added_; }
    const WordTable& table() const { return table_; }

   private:
    struct Learnt;

    Answer encode_plain(const char* text, const char* end, Ids& ids);
    bool append_words(const char* text, const char* end, Ids& ids);
    bool append_new_word(const char* word, size_t size, Ids& ids);
    Answer learn(const char* text, const char* end, Learnt& learnt);
    void keep(const char* text, size_t size, const uint32_t* ids, size_t num_ids);

    Split split_;
    AddedTokens added_;
    WordTable table_;
    Ref word_ids_, texts_ids_;
};

// Appends ids that `token_bytes` packed. -1 with TypeError if `packed` is no such thing.
int append_packed(Ids& ids, PyObject* packed);

}  // namespace quire
