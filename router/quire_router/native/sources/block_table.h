// A table of 64-bit block names with open addressing: linear probing, no marks of what was removed, at most three quarters full.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>
#include <vector>

#include "hash.h"

namespace quire {

// Block names are hashes, but workers say what they are: with numbers of this process in it, nobody can make them meet in one place.
struct Secret {
    uint64_t add, first, second;
    static const Secret& get() {
        static const Secret secret{SECRETS.word[0], SECRETS.word[1] | 1, SECRETS.word[2] | 1};
        return secret;
    }
};

// The key of a block: never 0, and different for different blocks but for one pair of them.
inline uint64_t key_of(uint64_t block, const Secret& secret) {
    uint64_t key = (block ^ secret.add) * secret.first;
    key ^= key >> 32;
    key *= secret.second;
    key ^= key >> 29;
    return key ? key : 1;
}

// Slots have `key`, 0 where nothing is. Moving a slot leaves one that may be overwritten.
template <class Slot>
class BlockTable {
  public:
    size_t size() const { return used_; }
    size_t num_bytes() const { return slots_.capacity() * sizeof(Slot); }

    Slot* find(uint64_t key) {
        if (slots_.empty()) return nullptr;
        for (size_t at = key & mask_;; at = (at + 1) & mask_) {
            if (slots_[at].key == key) return &slots_[at];
            if (!slots_[at].key) return nullptr;
        }
    }

    // The slot of `key`, made if need be: its other fields are then zero. std::bad_alloc leaves the table as it was.
    Slot& put(uint64_t key) {
        if (Slot* found = find(key)) return *found;
        if (4 * (used_ + 1) > 3 * slots_.size()) rehash(slots_.empty() ? LEAST : 2 * slots_.size());
        ++used_;
        return place(key);
    }

    void erase(Slot* slot) {
        size_t hole = size_t(slot - slots_.data());
        for (size_t next = (hole + 1) & mask_; slots_[next].key; next = (next + 1) & mask_) {
            const size_t home = slots_[next].key & mask_;
            if (((next - home) & mask_) < ((next - hole) & mask_)) continue;
            slots_[hole] = std::move(slots_[next]);
            hole = next;
        }
        slots_[hole] = Slot{};
        --used_;
        if (slots_.size() > LEAST && 8 * used_ < slots_.size()) shrink();
    }

    // Not to be used for what changes the table.
    template <class Visit>
    void each(Visit visit) {
        for (Slot& slot : slots_)
            if (slot.key) visit(slot);
    }

  private:
    static constexpr size_t LEAST = 16;

    Slot& place(uint64_t key) {
        size_t at = key & mask_;
        while (slots_[at].key) at = (at + 1) & mask_;
        slots_[at].key = key;
        return slots_[at];
    }

    void shrink() noexcept {
        try {
            rehash(slots_.size() / 4);
        } catch (const std::bad_alloc&) {  // it may stay as large as it is
        }
    }

    void rehash(size_t number) {
        std::vector<Slot> old(number);
        old.swap(slots_);
        mask_ = number - 1;
        for (Slot& slot : old)
            if (slot.key) place(slot.key) = std::move(slot);
    }

    std::vector<Slot> slots_;
    size_t mask_ = 0, used_ = 0;
};

}  // namespace quire
