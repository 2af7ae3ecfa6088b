// Which endpoint holds which blocks, and what was sent to each: the parts of kv_index.py that a choice reads.
#pragma once

#include <array>
#include <cstdlib>
#include <limits>
#include <memory>
#include <vector>

#include "block_table.h"
#include "parts.h"

namespace quire {

// A prompt's blocks by their keys. Reads a list or tuple in place: no Python code may run while it lives.
class Blocks {
  public:
    // `hashes`: what PySequence_Fast gave.
    explicit Blocks(PyObject* hashes)
        : items_(PySequence_Fast_ITEMS(hashes)), size_(size_t(PySequence_Fast_GET_SIZE(hashes))), secret_(Secret::get()) {}
    size_t size() const { return size_; }
    // Of something that is no int: 1, and `is_sound` is false from then on.
    uint64_t operator[](size_t place) const {
        PyObject* item = items_[place];
        if (!PyLong_Check(item)) return is_sound_ = false, 1;
        return key_of(PyLong_AsUnsignedLongLongMask(item), secret_);
    }
    bool is_sound() const { return is_sound_; }
    // 0, or -1 with TypeError.
    int check() const {
        if (is_sound_) return 0;
        PyErr_SetString(PyExc_TypeError, "a block's hash is an int");
        return -1;
    }

  private:
    PyObject** items_;
    size_t size_;
    const Secret& secret_;
    mutable bool is_sound_ = true;
};

// A set of slots. Up to FEW in the word itself, others in a window of words out of line.
class Holders {
  public:
    Holders() = default;
    Holders(Holders&& other) noexcept : word_(std::exchange(other.word_, 0)) {}
    Holders& operator=(Holders&& other) noexcept {
        std::swap(word_, other.word_);
        return *this;
    }
    ~Holders() {
        if (is_many()) std::free(many());
    }
    bool has(size_t slot) const { return word(slot / 64) >> (slot % 64) & 1; }
    // The slots from 64 * place on, 64 of them.
    uint64_t word(size_t place) const {
        if (!is_many()) return place ? 0 : word_ >> 1;
        const size_t at = place - many()->base;  // wraps where the window begins later
        return at < many()->count ? many()->words[at] : 0;
    }
    void set(size_t slot);  // std::bad_alloc leaves it as it was
    bool unset(size_t slot);  // whether none is left

  private:
    static constexpr size_t FEW = 63;
    struct Many {
        uint32_t base, count;
        uint64_t words[];
    };
    bool is_many() const { return word_ & 1; }
    Many* many() const { return reinterpret_cast<Many*>(word_ & ~uint64_t(1)); }
    void widen(size_t place);

    uint64_t word_ = 0;
};

class KvIndex {
  public:
    explicit KvIndex(uint64_t max_blocks) : max_blocks_(max_blocks) {}
    struct Slot {
        uint64_t key = 0;
        Holders holders;
    };
    struct Known {
        uint64_t key = 0;
    };
    using Set = BlockTable<Known>;

    size_t begin_slot();  // std::bad_alloc
    void add(size_t slot, const Blocks& blocks);  // std::bad_alloc: some may have been added
    void remove(size_t slot, const Blocks& blocks);
    void end_slot(size_t slot);
    bool holds(size_t slot, uint64_t key);
    size_t num_blocks(size_t slot) const { return sets_[slot]->size(); }
    // Leading blocks that each of `slots` holds without a hole, into `depths`, which has a place for each slot up to num_slots.
    void match(const Blocks& blocks, const size_t* slots, size_t number, uint32_t* depths);
    size_t num_slots() const { return sets_.size(); }
    size_t num_entries() const { return entries_; }
    uint64_t num_refused() const { return refused_; }
    size_t num_bytes() const;

  private:
    static constexpr size_t NUM_PARTS = 256;  // each grows by itself, so that no growth takes long
    BlockTable<Slot>& part(uint64_t key) { return parts_[key >> 56]; }
    void forget(size_t slot, uint64_t key);

    uint64_t max_blocks_, refused_ = 0;
    size_t entries_ = 0, in_use_ = 0;
    std::array<BlockTable<Slot>, NUM_PARTS> parts_;
    std::vector<std::unique_ptr<Set>> sets_;  // by slot; none of a free one
    std::vector<size_t> free_;
    std::vector<uint64_t> alive_;
};

class SentBlocks {
  public:
    static constexpr double TICK_S = 0.25;  // as kv_index.SENT_TICK_S
    void record(const Blocks& blocks, double now_s, size_t max_blocks);  // std::bad_alloc
    size_t size() const { return table_.size(); }
    bool has(uint64_t key, double since_s) { return time_of(key) >= since_s - TICK_S; }
    size_t match(const Blocks& blocks, double since_s);
    size_t num_bytes() const { return table_.num_bytes(); }

  private:
    struct Sent {
        uint64_t key = 0, turn = 0;  // a later turn was sent later
        double tick_s = 0;
    };
    double time_of(uint64_t key) {
        const Sent* found = table_.find(key);
        return found ? found->tick_s : -std::numeric_limits<double>::infinity();
    }
    void keep_latest(size_t number);

    BlockTable<Sent> table_;
    uint64_t turn_ = 0;
};

// As kv_index.extend_match. `slot`: -1 of an endpoint that the index does not know; `sent`: null of one that was sent nothing.
size_t extended(KvIndex& index, Py_ssize_t slot, SentBlocks* sent, const Blocks& blocks, size_t matched, double since_s);

// What Python's objects hold. Null with TypeError where `object` is none.
struct IndexObject {
    PyObject_HEAD
    PyObject* slots;  // endpoint's id -> slot
    KvIndex* index;
    uint64_t version;  // another one after each change of `slots`
};
struct SentObject {
    PyObject_HEAD
    PyObject* places;  // endpoint's id -> place in `sent`
    std::vector<std::unique_ptr<SentBlocks>>* sent;
    std::vector<size_t>* free;
    size_t max_blocks;
    uint64_t version;  // another one after each change of `places`
};
IndexObject* index_of(PyObject* object);
SentObject* sent_of(PyObject* object);
// As SentIndex.record; `sent` is one, `hashes` what PySequence_Fast gave. 0, or -1 with an exception.
int record_sent(PyObject* sent, PyObject* endpoint_id, PyObject* hashes, double now_s);
// A number that a dictionary has for an endpoint's id: -1 if none, -2 with TypeError if the id is no str.
Py_ssize_t place_of(PyObject* places, PyObject* endpoint_id);

}  // namespace quire
