// KvIndex and SentIndex of kv_index.py, which says what they mean.

#include "kv_index.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>

#include "python_ref.h"

namespace quire {

// Holders

void Holders::set(size_t slot) {
    if (!is_many() && slot < FEW) {
        word_ |= uint64_t(2) << slot;
        return;
    }
    widen(slot / 64);
    many()->words[slot / 64 - many()->base] |= uint64_t(1) << (slot % 64);
}

bool Holders::unset(size_t slot) {
    if (!is_many()) {
        if (slot < FEW) word_ &= ~(uint64_t(2) << slot);
        return word_ == 0;
    }
    const size_t at = slot / 64 - many()->base;
    if (at < many()->count) many()->words[at] &= ~(uint64_t(1) << (slot % 64));
    for (uint32_t i = 0; i < many()->count; ++i)
        if (many()->words[i]) return false;
    std::free(many());
    word_ = 0;
    return true;
}

// A window of words that has `place` and all that is set.
void Holders::widen(size_t place) {
    size_t first = place, last = place;
    if (is_many()) {
        first = std::min<size_t>(first, many()->base);
        last = std::max<size_t>(last, many()->base + many()->count - 1);
        if (last - first + 1 == many()->count) return;
    } else if (word_) {
        first = 0;
    }
    const size_t count = last - first + 1;
    auto* wide = static_cast<Many*>(std::calloc(1, sizeof(Many) + 8 * count));
    if (wide == nullptr) throw std::bad_alloc();
    wide->base = uint32_t(first), wide->count = uint32_t(count);
    for (size_t i = 0; i < count; ++i) wide->words[i] = word(first + i);
    if (is_many()) std::free(many());
    word_ = reinterpret_cast<uint64_t>(wide) | 1;
}

// What endpoints hold

size_t KvIndex::begin_slot() {
    auto set = std::make_unique<Set>();
    if (free_.empty()) {
        free_.reserve(sets_.size() + 1);  // so that ending one needs no memory
        alive_.resize(sets_.size() / 64 + 1);
        sets_.push_back(std::move(set));
        ++in_use_;
        return sets_.size() - 1;
    }
    const size_t slot = free_.back();
    free_.pop_back();
    sets_[slot] = std::move(set);
    ++in_use_;
    return slot;
}

void KvIndex::add(size_t slot, const Blocks& blocks) {
    Set& mine = *sets_[slot];
    const uint64_t share = max_blocks_ / in_use_;
    for (size_t i = 0; i < blocks.size(); ++i) {
        const uint64_t key = blocks[i];
        if (!blocks.is_sound()) return;
        if (mine.find(key)) continue;
        if (mine.size() >= share) {
            ++refused_;
            continue;
        }
        mine.put(key);
        try {
            BlockTable<Slot>& table = part(key);
            Slot& entry = table.put(key);
            try {
                entry.holders.set(slot);
            } catch (const std::bad_alloc&) {
                if (entry.holders.unset(slot)) table.erase(&entry);
                throw;
            }
        } catch (const std::bad_alloc&) {
            mine.erase(mine.find(key));
            throw;
        }
        ++entries_;
    }
}

void KvIndex::remove(size_t slot, const Blocks& blocks) {
    Set& mine = *sets_[slot];
    for (size_t i = 0; i < blocks.size(); ++i) {
        const uint64_t key = blocks[i];
        if (!blocks.is_sound()) return;
        Known* known = mine.find(key);
        if (known == nullptr) continue;
        mine.erase(known);
        forget(slot, key);
    }
}

void KvIndex::end_slot(size_t slot) {
    const std::unique_ptr<Set> mine = std::move(sets_[slot]);
    mine->each([&](const Known& known) { forget(slot, known.key); });
    free_.push_back(slot);
    --in_use_;
}

bool KvIndex::holds(size_t slot, uint64_t key) {
    const Slot* entry = part(key).find(key);
    return entry && entry->holders.has(slot);
}

void KvIndex::forget(size_t slot, uint64_t key) {
    BlockTable<Slot>& table = part(key);
    Slot* entry = table.find(key);
    if (entry->holders.unset(slot)) table.erase(entry);
    --entries_;
}

void KvIndex::match(const Blocks& blocks, const size_t* slots, size_t number, uint32_t* depths) {
    const size_t num_words = alive_.size();
    std::fill(alive_.begin(), alive_.end(), 0);
    for (size_t i = 0; i < number; ++i) alive_[slots[i] / 64] |= uint64_t(1) << (slots[i] % 64);
    auto note = [&](size_t place, uint64_t dropped, size_t depth) {
        for (; dropped; dropped &= dropped - 1) depths[64 * place + size_t(__builtin_ctzll(dropped))] = uint32_t(depth);
    };
    bool any = number > 0;
    size_t depth = 0;
    for (; any && depth < blocks.size(); ++depth) {
        const uint64_t key = blocks[depth];
        if (!blocks.is_sound()) break;
        const Slot* entry = part(key).find(key);
        any = false;
        for (size_t place = 0; place < num_words; ++place) {
            if (!alive_[place]) continue;
            const uint64_t still = entry ? alive_[place] & entry->holders.word(place) : 0;
            if (still != alive_[place]) note(place, alive_[place] & ~still, depth);
            alive_[place] = still;
            any = any || still;
        }
    }
    for (size_t place = 0; place < num_words; ++place) note(place, alive_[place], depth);
}

size_t KvIndex::num_bytes() const {
    size_t bytes = sizeof *this + sets_.capacity() * sizeof sets_[0];
    for (const auto& table : parts_) bytes += table.num_bytes();
    for (const auto& set : sets_)
        if (set) bytes += sizeof *set + set->num_bytes();
    return bytes;
}

// What was sent

void SentBlocks::record(const Blocks& blocks, double now_s, size_t max_blocks) {
    double over = std::fmod(now_s, TICK_S);
    if (over < 0) over += TICK_S;
    const double tick_s = now_s - over;
    for (size_t i = blocks.size(); i-- > 0;) {
        const uint64_t key = blocks[i];
        if (!blocks.is_sound()) return;
        Sent* known = table_.find(key);
        if (known != nullptr && known->tick_s >= tick_s) break;  // and so were those before it
        Sent& sent = known ? *known : table_.put(key);
        sent.turn = ++turn_;
        sent.tick_s = tick_s;
    }
    if (table_.size() > max_blocks) keep_latest(std::min(max_blocks, std::max(max_blocks / 2, blocks.size())));
}

size_t SentBlocks::match(const Blocks& blocks, double since_s) {
    since_s -= TICK_S;
    size_t low = 0, high = blocks.size();
    while (low < high) {
        const size_t middle = (low + high) / 2;
        if (time_of(blocks[middle]) >= since_s)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

void SentBlocks::keep_latest(size_t number) {
    std::vector<uint64_t> turns;
    turns.reserve(table_.size());
    table_.each([&](const Sent& sent) { turns.push_back(sent.turn); });
    BlockTable<Sent> kept;
    if (number) {
        auto first = turns.end() - ptrdiff_t(number);
        std::nth_element(turns.begin(), first, turns.end());
        table_.each([&](const Sent& sent) {
            if (sent.turn >= *first) kept.put(sent.key) = sent;
        });
    }
    table_ = std::move(kept);
}

size_t extended(KvIndex& index, Py_ssize_t slot, SentBlocks* sent, const Blocks& blocks, size_t matched, double since_s) {
    if (matched >= blocks.size() || sent == nullptr || !sent->has(blocks[matched], since_s)) return matched;
    size_t depth = std::max(matched, sent->match(blocks, since_s));
    for (; depth < blocks.size(); ++depth) {
        const uint64_t key = blocks[depth];
        if (!(slot >= 0 && index.holds(size_t(slot), key)) && !sent->has(key, since_s)) break;
    }
    return depth;
}

Py_ssize_t place_of(PyObject* places, PyObject* endpoint_id) {
    if (!PyUnicode_CheckExact(endpoint_id)) {
        PyErr_SetString(PyExc_TypeError, "an endpoint's id is a str");
        return -2;
    }
    PyObject* found = PyDict_GetItemWithError(places, endpoint_id);
    if (found == nullptr) return PyErr_Occurred() ? -2 : -1;
    return PyLong_AsSsize_t(found);
}

namespace {

constexpr Py_ssize_t BAD = -2, NONE = -1;

// A new place under the id. -1, and nothing kept there, with an exception.
int keep_place(PyObject* places, uint64_t& version, PyObject* endpoint_id, size_t place) {
    const Ref number(PyLong_FromSize_t(place));
    ++version;
    return number ? PyDict_SetItem(places, endpoint_id, number.get()) : -1;
}

// The slot or place that the id has no more.
int drop_place(PyObject* places, uint64_t& version, PyObject* endpoint_id) {
    ++version;
    return PyDict_DelItem(places, endpoint_id);
}

// hashes as what Blocks reads
Ref sequence(PyObject* hashes) { return Ref(PySequence_Fast(hashes, "hashes are a sequence of ints")); }

// class KvIndex

IndexObject* as_index(PyObject* self) { return reinterpret_cast<IndexObject*>(self); }

PyObject* index_new(PyTypeObject* type, PyObject* args, PyObject* named) {
    unsigned long long max_blocks = 4'000'000;
    static const char* names[] = {"max_blocks", nullptr};
    if (!PyArg_ParseTupleAndKeywords(args, named, "|$K", const_cast<char**>(names), &max_blocks)) return nullptr;
    Ref self(type->tp_alloc(type, 0));
    if (!self) return nullptr;
    IndexObject* made = as_index(self.get());
    made->slots = PyDict_New();
    made->index = new (std::nothrow) KvIndex(max_blocks);
    if (made->slots == nullptr) return nullptr;
    return made->index ? self.release() : PyErr_NoMemory();
}

void index_dealloc(PyObject* self) {
    delete as_index(self)->index;
    Py_XDECREF(as_index(self)->slots);
    Py_TYPE(self)->tp_free(self);
}

PyObject* index_add(PyObject* self, PyObject* const* args, Py_ssize_t number) {
    if (number != 2) return PyErr_SetString(PyExc_TypeError, "add(endpoint_id, hashes)"), nullptr;
    IndexObject* mine = as_index(self);
    const Ref hashes = sequence(args[1]);
    if (!hashes) return nullptr;
    Py_ssize_t slot = place_of(mine->slots, args[0]);
    if (slot == BAD) return nullptr;
    return guarded<PyObject*>(nullptr, [&]() -> PyObject* {
        if (slot == NONE) {
            slot = Py_ssize_t(mine->index->begin_slot());
            if (keep_place(mine->slots, mine->version, args[0], size_t(slot)) < 0) return mine->index->end_slot(size_t(slot)), nullptr;
        }
        const Blocks blocks(hashes.get());
        mine->index->add(size_t(slot), blocks);
        return blocks.check() < 0 ? nullptr : Py_NewRef(Py_None);
    });
}

PyObject* index_remove(PyObject* self, PyObject* const* args, Py_ssize_t number) {
    if (number != 2) return PyErr_SetString(PyExc_TypeError, "remove(endpoint_id, hashes)"), nullptr;
    const Ref hashes = sequence(args[1]);
    if (!hashes) return nullptr;
    const Py_ssize_t slot = place_of(as_index(self)->slots, args[0]);
    if (slot == BAD) return nullptr;
    if (slot == NONE) Py_RETURN_NONE;
    const Blocks blocks(hashes.get());
    as_index(self)->index->remove(size_t(slot), blocks);
    if (blocks.check() < 0) return nullptr;
    Py_RETURN_NONE;
}

PyObject* index_clear(PyObject* self, PyObject* endpoint_id) {
    const Py_ssize_t slot = place_of(as_index(self)->slots, endpoint_id);
    if (slot == BAD) return nullptr;
    if (slot == NONE) Py_RETURN_NONE;
    if (drop_place(as_index(self)->slots, as_index(self)->version, endpoint_id) < 0) return nullptr;
    as_index(self)->index->end_slot(size_t(slot));
    Py_RETURN_NONE;
}

PyObject* index_num_blocks(PyObject* self, PyObject* endpoint_id) {
    const Py_ssize_t slot = place_of(as_index(self)->slots, endpoint_id);
    if (slot == BAD) return nullptr;
    return PyLong_FromSize_t(slot == NONE ? 0 : as_index(self)->index->num_blocks(size_t(slot)));
}

PyObject* index_holds(PyObject* self, PyObject* const* args, Py_ssize_t number) {
    if (number != 2 || !PyLong_Check(args[1])) return PyErr_SetString(PyExc_TypeError, "holds(endpoint_id, block)"), nullptr;
    const Py_ssize_t slot = place_of(as_index(self)->slots, args[0]);
    if (slot == BAD) return nullptr;
    const uint64_t key = key_of(PyLong_AsUnsignedLongLongMask(args[1]), Secret::get());
    return PyBool_FromLong(slot != NONE && as_index(self)->index->holds(size_t(slot), key));
}

PyObject* index_match_prefix(PyObject* self, PyObject* const* args, Py_ssize_t number) {
    if (number != 2) return PyErr_SetString(PyExc_TypeError, "match_prefix(hashes, endpoint_ids)"), nullptr;
    IndexObject* mine = as_index(self);
    const Ref hashes = sequence(args[0]), ids(PySequence_Fast(args[1], "endpoint_ids are a collection of str"));
    const Ref found(PyDict_New());
    if (!hashes || !ids || !found) return nullptr;
    return guarded<PyObject*>(nullptr, [&]() -> PyObject* {
        const size_t num_ids = size_t(PySequence_Fast_GET_SIZE(ids.get()));
        std::vector<size_t> slots, places;
        slots.reserve(num_ids), places.reserve(num_ids);
        for (size_t i = 0; i < num_ids; ++i) {
            const Py_ssize_t slot = place_of(mine->slots, PySequence_Fast_GET_ITEM(ids.get(), Py_ssize_t(i)));
            if (slot == BAD) return nullptr;
            if (slot != NONE) slots.push_back(size_t(slot)), places.push_back(i);
        }
        std::vector<uint32_t> depths(64 * (mine->index->num_slots() / 64 + 1));
        const Blocks blocks(hashes.get());
        mine->index->match(blocks, slots.data(), slots.size(), depths.data());
        if (blocks.check() < 0) return nullptr;
        for (size_t i = 0; i < slots.size(); ++i) {
            if (!depths[slots[i]]) continue;
            const Ref depth(PyLong_FromUnsignedLong(depths[slots[i]]));
            if (!depth) return nullptr;
            if (PyDict_SetItem(found.get(), PySequence_Fast_GET_ITEM(ids.get(), Py_ssize_t(places[i])), depth.get()) < 0) return nullptr;
        }
        return Py_NewRef(found.get());
    });
}

PyObject* index_num_entries(PyObject* self, void*) { return PyLong_FromSize_t(as_index(self)->index->num_entries()); }
PyObject* index_num_refused(PyObject* self, void*) { return PyLong_FromUnsignedLongLong(as_index(self)->index->num_refused()); }
PyObject* index_num_bytes(PyObject* self, void*) { return PyLong_FromSize_t(as_index(self)->index->num_bytes()); }

template <class Function>
PyCFunction fast(Function function) {
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef INDEX_METHODS[] = {
    {"add", fast(index_add), METH_FASTCALL, "add(endpoint_id, hashes): the endpoint stored these blocks."},
    {"remove", fast(index_remove), METH_FASTCALL, "remove(endpoint_id, hashes): the endpoint evicted these blocks."},
    {"clear", index_clear, METH_O, "clear(endpoint_id): forget all of one endpoint."},
    {"num_blocks", index_num_blocks, METH_O, "num_blocks(endpoint_id): blocks known of one endpoint."},
    {"holds", fast(index_holds), METH_FASTCALL, "holds(endpoint_id, block): whether the endpoint is known to hold the block."},
    {"match_prefix", fast(index_match_prefix), METH_FASTCALL,
     "match_prefix(hashes, endpoint_ids): leading blocks that each endpoint holds without a hole; those with none are left out."},
    {nullptr, nullptr, 0, nullptr},
};
PyGetSetDef INDEX_GETTERS[] = {
    {"num_entries", index_num_entries, nullptr, "(endpoint, block) pairs held now.", nullptr},
    {"num_refused", index_num_refused, nullptr, "Entries not taken because the index was full.", nullptr},
    {"num_bytes", index_num_bytes, nullptr, "Of its tables.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

PyTypeObject IndexType = [] {
    PyTypeObject type{PyVarObject_HEAD_INIT(nullptr, 0)};
    type.tp_name = "quire_router_native.KvIndex";
    type.tp_doc = "KvIndex(*, max_blocks): what each endpoint said it holds; see quire_router.kv_index.";
    type.tp_basicsize = sizeof(IndexObject);
    type.tp_flags = Py_TPFLAGS_DEFAULT;
    type.tp_new = index_new;
    type.tp_dealloc = index_dealloc;
    type.tp_methods = INDEX_METHODS;
    type.tp_getset = INDEX_GETTERS;
    return type;
}();

// class SentIndex

SentObject* as_sent(PyObject* self) { return reinterpret_cast<SentObject*>(self); }

// The endpoint's blocks in `found`; null if it was sent nothing. -1 with an exception.
int find_sent(PyObject* self, PyObject* endpoint_id, SentBlocks*& found) {
    const Py_ssize_t place = place_of(as_sent(self)->places, endpoint_id);
    if (place == BAD) return -1;
    found = place == NONE ? nullptr : (*as_sent(self)->sent)[size_t(place)].get();
    return 0;
}

PyObject* sent_new(PyTypeObject* type, PyObject* args, PyObject* named) {
    Py_ssize_t max_blocks = 49'152;
    static const char* names[] = {"max_blocks_per_endpoint", nullptr};
    if (!PyArg_ParseTupleAndKeywords(args, named, "|$n", const_cast<char**>(names), &max_blocks)) return nullptr;
    Ref self(type->tp_alloc(type, 0));
    if (!self) return nullptr;
    SentObject* made = as_sent(self.get());
    made->max_blocks = size_t(std::max<Py_ssize_t>(0, max_blocks));
    made->places = PyDict_New();
    made->sent = new (std::nothrow) std::vector<std::unique_ptr<SentBlocks>>();
    made->free = new (std::nothrow) std::vector<size_t>();
    if (made->places == nullptr) return nullptr;
    return made->sent && made->free ? self.release() : PyErr_NoMemory();
}

void sent_dealloc(PyObject* self) {
    delete as_sent(self)->sent;
    delete as_sent(self)->free;
    Py_XDECREF(as_sent(self)->places);
    Py_TYPE(self)->tp_free(self);
}

SentBlocks* begin_sent(PyObject* self, PyObject* endpoint_id) {
    SentObject* mine = as_sent(self);
    if (mine->free->empty()) {
        mine->free->reserve(mine->sent->size() + 1);  // so that ending one needs no memory
        mine->sent->emplace_back();
        mine->free->push_back(mine->sent->size() - 1);
    }
    const size_t place = mine->free->back();
    auto blocks = std::make_unique<SentBlocks>();
    if (keep_place(mine->places, mine->version, endpoint_id, place) < 0) return nullptr;
    mine->free->pop_back();
    (*mine->sent)[place] = std::move(blocks);
    return (*mine->sent)[place].get();
}

PyObject* sent_record(PyObject* self, PyObject* const* args, Py_ssize_t number) {
    if (number != 3) return PyErr_SetString(PyExc_TypeError, "record(endpoint_id, hashes, now_s)"), nullptr;
    const Ref hashes = sequence(args[1]);
    if (!hashes) return nullptr;
    const double now_s = PyFloat_AsDouble(args[2]);
    if (now_s == -1 && PyErr_Occurred()) return nullptr;
    return record_sent(self, args[0], hashes.get(), now_s) < 0 ? nullptr : Py_NewRef(Py_None);
}

PyObject* sent_clear(PyObject* self, PyObject* endpoint_id) {
    const Py_ssize_t place = place_of(as_sent(self)->places, endpoint_id);
    if (place == BAD) return nullptr;
    if (place == NONE) Py_RETURN_NONE;
    if (drop_place(as_sent(self)->places, as_sent(self)->version, endpoint_id) < 0) return nullptr;
    (*as_sent(self)->sent)[size_t(place)].reset();
    as_sent(self)->free->push_back(size_t(place));
    Py_RETURN_NONE;
}

PyObject* sent_num_blocks(PyObject* self, PyObject* endpoint_id) {
    SentBlocks* sent = nullptr;
    if (find_sent(self, endpoint_id, sent) < 0) return nullptr;
    return PyLong_FromSize_t(sent ? sent->size() : 0);
}

PyObject* sent_match_prefix(PyObject* self, PyObject* const* args, Py_ssize_t number) {
    if (number != 3) return PyErr_SetString(PyExc_TypeError, "match_prefix(endpoint_id, hashes, since_s)"), nullptr;
    const Ref hashes = sequence(args[1]);
    if (!hashes) return nullptr;
    const double since_s = PyFloat_AsDouble(args[2]);
    if (since_s == -1 && PyErr_Occurred()) return nullptr;
    SentBlocks* sent = nullptr;
    if (find_sent(self, args[0], sent) < 0) return nullptr;
    const Blocks blocks(hashes.get());
    const size_t matched = sent && sent->size() ? sent->match(blocks, since_s) : 0;
    return blocks.check() < 0 ? nullptr : PyLong_FromSize_t(matched);
}

PyObject* sent_has(PyObject* self, PyObject* const* args, Py_ssize_t number) {
    if (number != 3 || !PyLong_Check(args[1])) return PyErr_SetString(PyExc_TypeError, "has(endpoint_id, block, since_s)"), nullptr;
    const double since_s = PyFloat_AsDouble(args[2]);
    if (since_s == -1 && PyErr_Occurred()) return nullptr;
    SentBlocks* sent = nullptr;
    if (find_sent(self, args[0], sent) < 0) return nullptr;
    const uint64_t key = key_of(PyLong_AsUnsignedLongLongMask(args[1]), Secret::get());
    return PyBool_FromLong(sent ? sent->has(key, since_s) : -std::numeric_limits<double>::infinity() >= since_s - SentBlocks::TICK_S);
}

PyObject* sent_num_bytes(PyObject* self, void*) {
    size_t bytes = 0;
    for (const auto& sent : *as_sent(self)->sent) bytes += sent ? sent->num_bytes() : 0;
    return PyLong_FromSize_t(bytes);
}

PyMethodDef SENT_METHODS[] = {
    {"record", fast(sent_record), METH_FASTCALL, "record(endpoint_id, hashes, now_s): a prompt with these blocks goes to the endpoint now."},
    {"clear", sent_clear, METH_O, "clear(endpoint_id): forget what was sent to one endpoint."},
    {"num_blocks", sent_num_blocks, METH_O, "num_blocks(endpoint_id): blocks remembered for one endpoint."},
    {"match_prefix", fast(sent_match_prefix), METH_FASTCALL,
     "match_prefix(endpoint_id, hashes, since_s): leading blocks all sent to the endpoint at since_s or later."},
    {"has", fast(sent_has), METH_FASTCALL, "has(endpoint_id, block, since_s): whether the block was sent to the endpoint at since_s or later."},
    {nullptr, nullptr, 0, nullptr},
};
PyGetSetDef SENT_GETTERS[] = {
    {"num_bytes", sent_num_bytes, nullptr, "Of its tables.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

PyTypeObject SentType = [] {
    PyTypeObject type{PyVarObject_HEAD_INIT(nullptr, 0)};
    type.tp_name = "quire_router_native.SentIndex";
    type.tp_doc = "SentIndex(*, max_blocks_per_endpoint): what was sent to each endpoint, and when; see quire_router.kv_index.";
    type.tp_basicsize = sizeof(SentObject);
    type.tp_flags = Py_TPFLAGS_DEFAULT;
    type.tp_new = sent_new;
    type.tp_dealloc = sent_dealloc;
    type.tp_methods = SENT_METHODS;
    type.tp_getset = SENT_GETTERS;
    return type;
}();

}  // namespace

int record_sent(PyObject* self, PyObject* endpoint_id, PyObject* hashes, double now_s) {
    SentBlocks* sent = nullptr;
    if (find_sent(self, endpoint_id, sent) < 0) return -1;
    return guarded<int>(-1, [&] {
        if (sent == nullptr) sent = begin_sent(self, endpoint_id);
        if (sent == nullptr) return -1;
        const Blocks blocks(hashes);
        sent->record(blocks, now_s, as_sent(self)->max_blocks);
        return blocks.check();
    });
}

IndexObject* index_of(PyObject* object) {
    if (PyObject_TypeCheck(object, &IndexType)) return as_index(object);
    return PyErr_SetString(PyExc_TypeError, "not a KvIndex of this module"), nullptr;
}

SentObject* sent_of(PyObject* object) {
    if (PyObject_TypeCheck(object, &SentType)) return as_sent(object);
    return PyErr_SetString(PyExc_TypeError, "not a SentIndex of this module"), nullptr;
}

}  // namespace quire

int add_kv_index(PyObject* module) {
    if (PyModule_AddType(module, &quire::IndexType) < 0) return -1;
    return PyModule_AddType(module, &quire::SentType);
}
