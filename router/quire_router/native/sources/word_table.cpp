#include <bit>
#include <cstring>

#include "hash.h"
#include "words.h"

namespace quire {

static_assert(std::endian::native == std::endian::little, "token ids are packed in this order");

namespace {

constexpr size_t FIRST_SLOTS = 1024;

}  // namespace

// Fills `key` and finds its place, or the free one where it belongs. There are slots, and some of them are free.
size_t WordTable::place_of(const char* text, size_t size, Slot& key) const {
    uint64_t hash;
    key.size = uint16_t(size);
    if (size <= SHORT_BYTES) {
        load_short(text, size, key.a, key.b);
        hash = hash_short(key.a, key.b, size);
    } else {
        hash = key.a = hash_bytes(text, size, size);
        key.b = 0;
    }
    const size_t mask = slots_.size() - 1;
    for (size_t place = hash & mask;; place = (place + 1) & mask) {
        const Slot& slot = slots_[place];
        if (slot.size == 0) return place;
        if (slot.size != size || slot.a != key.a) continue;
        if (size <= SHORT_BYTES ? slot.b == key.b : std::memcmp(long_texts_.data() + slot.b, text, size) == 0) return place;
    }
}

bool WordTable::append(const char* text, size_t size, Ids& ids) const {
    if (slots_.empty() || size > MAX_WORD_BYTES) return false;
    Slot key;
    const Slot& slot = slots_[place_of(text, size, key)];
    if (slot.size == 0) return false;
    const uint32_t* found = slot.num_ids <= FEW_IDS ? slot.ids : long_ids_.data() + slot.ids[0];
    ids.insert(ids.end(), found, found + slot.num_ids);
    return true;
}

void WordTable::keep(const char* text, size_t size, const uint32_t* ids, size_t num_ids) {
    if (num_ids > UINT16_MAX) return;
    if (num_words_ >= MAX_WORDS || long_texts_.size() + long_ids_.size() * sizeof(uint32_t) > MAX_LONG_BYTES) clear();
    if (2 * (num_words_ + 1) > slots_.size()) grow();
    Slot slot{};
    const size_t place = place_of(text, size, slot);
    if (slots_[place].size != 0) return;  // another thread asked for it as well
    if (num_ids <= FEW_IDS) {
        std::memcpy(slot.ids, ids, num_ids * sizeof(uint32_t));
    } else {
        slot.ids[0] = uint32_t(long_ids_.size());
        long_ids_.insert(long_ids_.end(), ids, ids + num_ids);
    }
    slot.num_ids = uint16_t(num_ids);
    if (size > SHORT_BYTES) {
        slot.b = long_texts_.size();
        long_texts_.append(text, size);
    }
    slots_[place] = slot;
    ++num_words_;
}

void WordTable::grow() {
    std::vector<Slot> wider(slots_.empty() ? FIRST_SLOTS : 2 * slots_.size(), Slot{});
    const size_t mask = wider.size() - 1;
    for (const Slot& slot : slots_) {
        if (slot.size == 0) continue;
        size_t place = (slot.size <= SHORT_BYTES ? hash_short(slot.a, slot.b, slot.size) : slot.a) & mask;
        while (wider[place].size != 0) place = (place + 1) & mask;
        wider[place] = slot;
    }
    slots_ = std::move(wider);
}

void WordTable::clear() {
    slots_ = {};
    long_texts_ = {};
    long_ids_ = {};
    num_words_ = 0;
}

}  // namespace quire
