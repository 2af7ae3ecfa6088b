// Prompts that were read, by their segments: the twin of `quire_router.prompt_cache.PromptCache`, which says what a step is.
//
// Belongs to the interpreter lock: nothing here calls Python but to let go of tuples of numbers.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "block_chain.h"
#include "python_ref.h"

namespace quire {

// The prompt up to the end of one segment, or of several that are found as one. Held by the cache and by jobs.
struct Step {
    static constexpr size_t NO_FOLLOWING = SIZE_MAX;

    uint64_t before;  // number of the step that it goes on from; 0: it is a beginning
    size_t cut;  // where in `text` what must follow begins
    std::string text;
    uint64_t hash;  // of the three
    BlockChain chain;
    std::vector<uint64_t> hashes;  // on the wire, of the blocks that it filled
    size_t num_chars;
    uint64_t number = 0;  // the place that it leads to
    uint64_t used = 0;
    Ref numbers;  // `hashes` as a tuple, made when the step is found again: most are not
    bool is_kept = false;
    size_t holders = 1;
    Step *older = nullptr, *newer = nullptr;  // in the line of use

    size_t size_bytes() const;
};

// A hold on a step.
class StepRef {
   public:
    StepRef() = default;
    explicit StepRef(Step* held) : step_(held) {}  // takes over one hold
    static StepRef also(Step* step) { return ++step->holders, StepRef(step); }
    StepRef(StepRef&& other) noexcept : step_(std::exchange(other.step_, nullptr)) {}
    StepRef& operator=(StepRef&& other) noexcept { return std::swap(step_, other.step_), *this; }
    StepRef(const StepRef&) = delete;
    ~StepRef() { if (step_ != nullptr && --step_->holders == 0) delete step_; }
    Step* operator->() const { return step_; }
    Step* get() const { return step_; }
    explicit operator bool() const { return step_ != nullptr; }

   private:
    Step* step_ = nullptr;
};

class StepCache {
   public:
    explicit StepCache(size_t max_bytes) : max_bytes_(max_bytes), places_(FIRST_PLACES) {}
    StepCache(const StepCache&) = delete;
    ~StepCache();

    // None: it is not known.
    StepRef find(uint64_t before, std::string_view text, size_t cut) const;

    // Remembers a step; gives it, or the one that another thread put first. `number` 0: it leads to a place of its own.
    StepRef put(
        uint64_t before, std::string_view text, size_t cut, BlockChain chain, std::vector<uint64_t> hashes, size_t num_chars, uint64_t number
    );

    // A prompt's steps, first to last, were used.
    void touch(const std::vector<StepRef>& steps);

    size_t size_bytes() const { return size_bytes_; }
    size_t size() const { return num_steps_; }

   private:
    static constexpr size_t FIRST_PLACES = 1024;
    struct Place {  // with the hash beside it: of a step that is another's, no memory is touched
        uint64_t hash = 0;
        Step* step = nullptr;
    };

    Step* found(uint64_t hash, uint64_t before, std::string_view text, size_t cut) const;
    void place(uint64_t hash, Step* step);
    void displace(const Step* step);
    void link(Step* step);
    void unlink(Step* step);
    void forget_oldest();
    void widen();

    size_t max_bytes_;
    std::vector<Place> places_;  // half of them free at least
    Step *oldest_ = nullptr, *newest_ = nullptr;
    size_t num_steps_ = 0, size_bytes_ = 0;
    uint64_t last_number_ = 0;
};

}  // namespace quire
