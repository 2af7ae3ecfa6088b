// Reads one prompt in steps: the twin of `quire_router.prompt_job.Job`.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "prompt_encoder.h"
#include "prompt_steps.h"

namespace quire {

constexpr size_t MAX_KEPT_CHARS = 64;
constexpr size_t MAX_NEW_CHARS = 256 * 1024;
constexpr double CHARS_PER_TOKEN = 4.0;

// Used by one thread at a time. Functions that give bool: false with a Python exception set, and then the job is of no more use.
class PromptJob {
   public:
    PromptJob(StepCache& cache, PromptEncoder& encoder) : cache_(cache), encoder_(encoder) {}
    PromptJob(const PromptJob&) = delete;

    // Takes over a prompt's pieces, a list of str, and goes over all that the cache knows of it.
    bool begin(PyObject* pieces, std::optional<std::string_view> adapter, std::optional<std::string_view> salt, bool is_framed);
    // Tokenises segments until `num_chars` are done, at least one.
    bool advance(size_t num_chars);
    size_t missing_chars() const { return missing_chars_; }
    size_t num_steps() const { return steps_.size(); }

    uint64_t num_tokens() const;
    // List of the wire hashes of the full blocks; nullptr with an exception.
    PyObject* hashes() const;
    size_t block_size() const { return encoder_.block_size; }

   private:
    bool take_text(PyObject* pieces);
    void take_root(std::optional<std::string_view> adapter, std::optional<std::string_view> salt, bool is_framed);
    size_t whole_messages();
    bool follow();
    bool join_messages(PyObject* pieces, size_t first_piece, size_t start);
    bool next_segment();
    void extend(size_t begin, size_t end, size_t chars, const Ids& ids);

    // The messages from a piece on, each long enough to be told apart, with what the template writes before it.
    struct Message {
        size_t piece;  // that follows
        size_t begin, end;  // in text_
    };
    template <typename Take>
    size_t each_message(size_t first_piece, Take take) const;

    StepCache& cache_;
    PromptEncoder& encoder_;
    std::string text_;
    std::vector<size_t> ends_;  // of the pieces
    bool is_ascii_ = true;
    std::vector<StepRef> steps_;
    size_t num_found_ = 0;  // of them, the first that the cache knew
    std::optional<Segments> segments_;
    size_t at_ = 0;  // text before it is in steps_
    size_t next_end_ = 0;  // of the next segment, which begins at at_; at_ if there is none
    size_t missing_chars_ = 0, room_chars_ = MAX_NEW_CHARS, unread_chars_ = 0;
    Ids after_;  // tokens behind the last step
};

}  // namespace quire
