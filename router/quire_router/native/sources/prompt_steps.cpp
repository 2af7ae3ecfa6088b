#include "prompt_steps.h"

#include "hash.h"

namespace quire {
namespace {

constexpr size_t TOUCH_SHARE = 16;  // as in prompt_cache
constexpr size_t HASH_BYTES = 64;  // and its number in Python, in a tuple
constexpr size_t TUPLE_BYTES = 48;
constexpr size_t PLACE_BYTES = 96;  // in the table, and what the allocator adds

uint64_t hash_of(uint64_t before, std::string_view text, size_t cut) {
    return hash_bytes(text.data(), text.size(), mixed(before ^ SECRETS.word[2], cut ^ SECRETS.word[3]));
}

}  // namespace

size_t Step::size_bytes() const {
    return sizeof(Step) + PLACE_BYTES + TUPLE_BYTES + text.size() + HASH_BYTES * hashes.size() + chain.partial.size() * sizeof(uint32_t);
}

StepCache::~StepCache() {
    while (oldest_ != nullptr) forget_oldest();
}

StepRef StepCache::find(uint64_t before, std::string_view text, size_t cut) const {
    Step* step = found(hash_of(before, text, cut), before, text, cut);
    return step == nullptr ? StepRef() : StepRef::also(step);
}

Step* StepCache::found(uint64_t hash, uint64_t before, std::string_view text, size_t cut) const {
    const size_t mask = places_.size() - 1;
    for (size_t at = hash & mask; places_[at].step != nullptr; at = (at + 1) & mask) {
        Step* step = places_[at].step;
        if (places_[at].hash == hash && step->before == before && step->cut == cut && step->text == text) return step;
    }
    return nullptr;
}

void StepCache::place(uint64_t hash, Step* step) {
    const size_t mask = places_.size() - 1;
    size_t at = hash & mask;
    while (places_[at].step != nullptr) at = (at + 1) & mask;
    places_[at] = {hash, step};
}

// Frees its place and moves up those behind it that are not where they belong.
void StepCache::displace(const Step* step) {
    const size_t mask = places_.size() - 1;
    size_t free = step->hash & mask;
    while (places_[free].step != step) free = (free + 1) & mask;
    for (size_t at = (free + 1) & mask; places_[at].step != nullptr; at = (at + 1) & mask) {
        const size_t home = places_[at].hash & mask;
        if (((at - home) & mask) < ((at - free) & mask)) continue;
        places_[free] = places_[at];
        free = at;
    }
    places_[free] = {};
}

StepRef StepCache::put(
    uint64_t before, std::string_view text, size_t cut, BlockChain chain, std::vector<uint64_t> hashes, size_t num_chars, uint64_t number
) {
    const uint64_t hash = hash_of(before, text, cut);
    if (Step* known = found(hash, before, text, cut)) return StepRef::also(known);
    if (2 * (num_steps_ + 1) > places_.size()) widen();
    StepRef made(new Step{before, cut, std::string(text), hash, std::move(chain), std::move(hashes), num_chars});
    Step* step = made.get();
    step->used = ++last_number_;
    step->number = number ? number : step->used;
    place(hash, step);
    link(step);
    step->is_kept = true;
    ++step->holders;
    ++num_steps_;
    size_bytes_ += step->size_bytes();
    while (size_bytes_ > max_bytes_ && num_steps_ > 1) forget_oldest();
    return made;
}

void StepCache::touch(const std::vector<StepRef>& steps) {
    if (last_number_ - steps.back()->used < num_steps_ / TOUCH_SHARE) return;
    for (auto at = steps.rbegin(); at != steps.rend(); ++at) {  // a beginning is kept longer than what goes on from it
        Step* step = at->get();
        if (!step->is_kept) continue;
        unlink(step);
        link(step);
        step->used = last_number_;
    }
}

// As the one that was used last.
void StepCache::link(Step* step) {
    step->older = newest_;
    step->newer = nullptr;
    (newest_ == nullptr ? oldest_ : newest_->newer) = step;
    newest_ = step;
}

void StepCache::unlink(Step* step) {
    (step->older == nullptr ? oldest_ : step->older->newer) = step->newer;
    (step->newer == nullptr ? newest_ : step->newer->older) = step->older;
}

void StepCache::forget_oldest() {
    Step* step = oldest_;
    unlink(step);
    displace(step);
    step->is_kept = false;
    --num_steps_;
    size_bytes_ -= step->size_bytes();
    StepRef let_go(step);
}

void StepCache::widen() {
    places_ = std::vector<Place>(2 * places_.size());
    for (Step* step = oldest_; step != nullptr; step = step->newer) place(step->hash, step);
}

}  // namespace quire
