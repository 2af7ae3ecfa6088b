// Cuts texts into segments and encodes them for one bundle: the twin of `quire_contract.prompt_segments.SegmentedEncoder`, for tokenizers
// whose words may be encoded one by one. For any other it asks that encoder.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "python_ref.h"
#include "words.h"

namespace quire {

constexpr size_t SEGMENT_CHARS = 512;
constexpr size_t MIN_CHARS = 48;

struct PromptEncoder {
    std::string digest;  // of the bundle
    size_t block_size;
    size_t max_chars;  // a longer text is certainly too long
    Ref too_long;  // called with the number of characters; raises what says so
    Ref encoder;  // the SegmentedEncoder
    std::optional<Words> words;  // none: all is asked of `encoder`
    bool has_frame;
    Ids before, after;  // the frame's tokens

    // Appends the ids of text[begin, end), a segment. -1 with an exception.
    int encode(const std::string& text, size_t begin, size_t end, Ids& ids);

    // 1 if `piece` begins with a token that texts are cut before, whatever stands around it; -1 with an exception.
    int is_firm(PyObject* piece) const;
};

// The segments of a text from one place on, each made when it is asked for.
class Segments {
   public:
    Segments(const PromptEncoder& encoder, const std::string& text, size_t begin, bool is_ascii)
        : encoder_(encoder), text_(text), is_ascii_(is_ascii), at_(begin), stop_(begin), scanned_(begin) {}

    // The end of the next one, which begins where the one before ended; 0 if there is none more. -1 with an exception.
    Py_ssize_t next();

   private:
    Py_ssize_t next_of_python();
    size_t token_after(size_t start);
    size_t place_inside(size_t start, size_t stop);

    const PromptEncoder& encoder_;
    const std::string& text_;
    const bool is_ascii_;
    Ref of_python_;
    size_t at_;
    size_t stop_;  // where the part between two tokens ends that is being cut
    size_t scanned_;  // tokens before it are known
    size_t space_ = 0;  // the next space behind what was cut, so that a far one is not looked for again and again
};

extern PyTypeObject PromptEncoderType;

// The encoder that an object of PromptEncoderType holds.
PromptEncoder& encoder_of(PyObject* object);

}  // namespace quire
