// Placing: what picker.Picker.pick does in the usual case, in one call: the choice, what is noted of it, and the place at the endpoint.
//
// What it notes is written where Python has it: fields of classes with __slots__ (see slots.h), a list, a dictionary. All of them are looked
// at before the first is written; one that is not of the kind that is reckoned with makes the case an unusual one, which Python decides.

#include <algorithm>
#include <charconv>
#include <cstring>
#include <string_view>
#include <vector>

#include "kv_index.h"
#include "slots.h"
#include "usual_choice.h"

namespace quire {
namespace {

enum { E_ID, E_LAST_TURN, NUM_E };
constexpr const char* ENDPOINT[NUM_E] = {"id", "last_turn"};
enum { R_ENDPOINT, R_UNCACHED, R_STARTED_S, R_WAITING, R_CLOSED, R_IS_TAKEN, R_IDLE_START, R_IS_TRIAL, NUM_R };
constexpr const char* RESERVATION[NUM_R] = {"endpoint", "uncached", "started_s", "waiting", "closed", "is_taken", "idle_start", "is_trial"};
enum { P_BY_DIGEST, P_READ_S, NUM_P };
constexpr const char* PROMPT[NUM_P] = {"by_digest", "read_s"};
enum { B_NUM_TOKENS, B_BLOCK_TOKENS, B_HASHES, NUM_B };
constexpr const char* BLOCKS[NUM_B] = {"num_tokens", "block_tokens", "hashes"};
enum { M_BY_LEVEL, M_PREFIX, M_HIT, NUM_M };
constexpr const char* METRICS[NUM_M] = {"_by_level", "prefix_tokens", "prefix_hit_tokens"};
enum { H_COUNTS, H_TOTAL, NUM_H };
constexpr const char* BARS[NUM_H] = {"counts", "total"};

// Whom it calls, and what it makes.
enum { CHOICE, CLOCK, WALL_CLOCK, NEXT_TURN, NOTE, EXPLAIN, NUM_CALLED };

struct Placing {
    PyObject_HEAD
    PyObject *chooser, *choice_s, *called[NUM_CALLED];
    PyObject *precise, *kv_aware, *one, *zero, *nobody_holds, *choice_fields;
    Layout<NUM_E> endpoint;
    Layout<NUM_R> reservation;
    Layout<NUM_P> prompt;
    Layout<NUM_B> blocks;
    Layout<NUM_M> metrics;
    Layout<1> tally;
    Layout<NUM_H> bars;
    std::vector<double>* bounds;  // of choice_s
};

Placing* as_placing(PyObject* self) { return reinterpret_cast<Placing*>(self); }

int placing_traverse(PyObject* self, visitproc visit, void* arg) {
    const Placing* mine = as_placing(self);
    Py_VISIT(mine->chooser);
    Py_VISIT(mine->choice_s);
    for (PyObject* one : mine->called) Py_VISIT(one);
    return 0;
}

int placing_clear(PyObject* self) {
    for (PyObject*& one : as_placing(self)->called) Py_CLEAR(one);
    return 0;
}

void placing_dealloc(PyObject* self) {
    PyObject_GC_UnTrack(self);
    Placing* mine = as_placing(self);
    placing_clear(self);
    for (PyObject* one : {mine->chooser, mine->choice_s, mine->precise, mine->kv_aware, mine->one, mine->zero, mine->nobody_holds,
                          mine->choice_fields})
        Py_XDECREF(one);
    for (PyTypeObject* type : {mine->endpoint.type, mine->reservation.type, mine->prompt.type, mine->blocks.type, mine->metrics.type,
                               mine->tally.type, mine->bars.type})
        Py_XDECREF(type);
    delete mine->bounds;
    Py_TYPE(self)->tp_free(self);
}

int read_bounds(PyObject* given, std::vector<double>& bounds) {
    const Ref list(PySequence_Fast(given, "bounds are floats"));
    if (!list) return -1;
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(list.get()); ++i) {
        bounds.push_back(PyFloat_AsDouble(PySequence_Fast_GET_ITEM(list.get(), i)));
        if (bounds.back() == -1 && PyErr_Occurred()) return -1;
    }
    return 0;
}

int make_names(Placing& mine) {
    mine.precise = PyUnicode_InternFromString("precise"), mine.kv_aware = PyUnicode_InternFromString("kv_aware");
    mine.one = PyLong_FromLong(1), mine.zero = PyLong_FromLong(0);
    mine.nobody_holds = PyUnicode_FromString("nobody holds the prefix: least work");
    mine.choice_fields = PyTuple_New(6);
    if (!mine.precise || !mine.kv_aware || !mine.one || !mine.zero || !mine.nobody_holds || !mine.choice_fields) return -1;
    Py_ssize_t place = 0;
    for (const char* name : {"endpoint_id", "level", "matched_tokens", "num_tokens", "reason", "explain"}) {
        PyObject* word = PyUnicode_InternFromString(name);
        if (word == nullptr) return -1;
        PyTuple_SET_ITEM(mine.choice_fields, place++, word);
    }
    return 0;
}

PyObject* placing_new(PyTypeObject* type, PyObject* args, PyObject*) {
    PyObject *chooser, *bounds, *choice_s, *called[NUM_CALLED], *classes[7];
    if (!PyArg_ParseTuple(args, "O(OOOOOOO)OO(OOOOOO)", &chooser, &classes[0], &classes[1], &classes[2], &classes[3], &classes[4], &classes[5],
                          &classes[6], &choice_s, &bounds, &called[0], &called[1], &called[2], &called[3], &called[4], &called[5]))
        return nullptr;
    if (!is_chooser(chooser)) return PyErr_SetString(PyExc_TypeError, "not a UsualChoice of this module"), nullptr;
    if (!PyCallable_Check(called[CHOICE]) || !PyIter_Check(called[NEXT_TURN]))
        return PyErr_SetString(PyExc_TypeError, "Placing(chooser, classes, choice_s, bounds, called)"), nullptr;
    Ref self(type->tp_alloc(type, 0));
    if (!self) return nullptr;
    Placing& made = *as_placing(self.get());
    made.chooser = Py_NewRef(chooser), made.choice_s = Py_NewRef(choice_s);
    for (size_t i = 0; i < NUM_CALLED; ++i) made.called[i] = Py_NewRef(called[i]);
    made.bounds = new (std::nothrow) std::vector<double>();
    if (made.bounds == nullptr) return PyErr_NoMemory();
    if (guarded<int>(-1, [&] { return read_bounds(bounds, *made.bounds); }) < 0 || make_names(made) < 0) return nullptr;
    if (made.endpoint.read(classes[0], ENDPOINT) < 0 || made.reservation.read(classes[1], RESERVATION) < 0) return nullptr;
    if (made.prompt.read(classes[2], PROMPT) < 0 || made.blocks.read(classes[3], BLOCKS) < 0) return nullptr;
    if (made.metrics.read(classes[4], METRICS) < 0 || made.tally.read(classes[5], {"value"}) < 0) return nullptr;
    if (made.bars.read(classes[6], BARS) < 0) return nullptr;
    if (!PyObject_TypeCheck(choice_s, made.bars.type)) return PyErr_SetString(PyExc_TypeError, "choice_s is no Bars"), nullptr;
    return self.release();
}

// Into a slot. The old value goes last: that may run other code.
// `slot` += number. 0, or -1 with an exception.
int add_to(PyObject*& slot, PyObject* number) {
    const Ref old = Ref::borrowed(slot);
    PyObject* sum = PyNumber_Add(old.get(), number);
    if (sum == nullptr) return -1;
    put(slot, sum);
    return 0;
}

// A call without arguments that gives a float. Throws Unusual for anything else. False with an exception.
bool ask_time(PyObject* clock, double& time_s) {
    const Ref told(PyObject_CallNoArgs(clock));
    if (!told) return false;
    time_s = real(told.get());
    return true;
}

// Text with numbers in it.
class Words {
  public:
    Words& operator<<(std::string_view text) {
        std::memcpy(text_ + size_, text.data(), text.size());
        size_ += text.size();
        return *this;
    }
    Words& operator<<(int64_t number) {
        size_ = size_t(std::to_chars(text_ + size_, std::end(text_), number).ptr - text_);
        return *this;
    }
    PyObject* made() const { return PyUnicode_FromStringAndSize(text_, Py_ssize_t(size_)); }

  private:
    char text_[192];  // more than any of these: three numbers of 20 digits and some 70 letters
    size_t size_ = 0;
};

// As scoring.in_words, of a precise choice.
PyObject* in_words(const Placing& mine, const Picked& picked, int64_t num_tokens) {
    Words words;
    if (picked.number == 1) {
        words << "the only endpoint left, holds " << picked.matched << " of ";
        if (num_tokens) return (words << num_tokens << " tokens").made();
        return (words << "unknown tokens").made();
    }
    if (picked.longest == 0) return Py_NewRef(mine.nobody_holds);
    if (picked.matched == picked.longest)
        return (words << "holds the longest prefix, " << picked.longest << " of " << num_tokens << " tokens").made();
    words << "holds " << picked.matched << " of " << num_tokens << " tokens; the endpoint with " << picked.longest;
    return (words << " costs more to wait for").made();
}

// One call's arguments, and what was found out.
struct Asking {
    PyObject *request_id, *model, *endpoints, *metrics;
    Ref hashes, num_tokens, matched, endpoint, id, now;
    int64_t tokens = 0;
    double now_s = 0, read_s = 0;
    Picked picked;
};

Ref choice_of(const Placing& mine, const Asking& asking) {
    const Ref reason(in_words(mine, asking.picked, asking.tokens));
    if (!reason) return Ref();
    make_explainable(asking.picked.seen.get(), mine.called[EXPLAIN], asking.model, asking.num_tokens.get());
    PyObject* const values[] = {asking.id.get(), mine.precise, asking.matched.get(), asking.num_tokens.get(),
                                reason.get(), asking.picked.seen.get()};
    return Ref(PyObject_Vectorcall(mine.called[CHOICE], values, 0, mine.choice_fields));
}

Ref reservation_of(const Placing& mine, const Asking& asking) {
    const auto& of = mine.reservation;
    Ref made(of.type->tp_alloc(of.type, 0));
    const Ref uncached(PyLong_FromLongLong(std::max<int64_t>(0, asking.tokens - asking.picked.matched)));
    if (!made || !uncached) return Ref();
    of.place(made.get(), R_ENDPOINT) = Py_NewRef(asking.endpoint.get());
    of.place(made.get(), R_UNCACHED) = Py_NewRef(uncached.get());
    of.place(made.get(), R_STARTED_S) = Py_NewRef(asking.now.get());
    of.place(made.get(), R_WAITING) = Py_NewRef(Py_True);
    of.place(made.get(), R_CLOSED) = Py_NewRef(Py_False);
    of.place(made.get(), R_IS_TAKEN) = Py_NewRef(Py_False);
    of.place(made.get(), R_IDLE_START) = Py_NewRef(asking.picked.is_idle ? Py_True : Py_False);
    of.place(made.get(), R_IS_TRIAL) = Py_NewRef(Py_False);
    return made;
}

bool are_counts(const Placing& mine, PyObject* counts) {
    return counts && PyList_CheckExact(counts) && size_t(PyList_GET_SIZE(counts)) == mine.bounds->size() + 1;
}

// One more with a value of so many seconds, as Bars.observe.
int observe(const Placing& mine, PyObject* bars, double value_s) {
    PyObject* counts = mine.bars.place(bars, H_COUNTS);
    if (!are_counts(mine, counts)) return PyErr_SetString(PyExc_TypeError, "the counts changed meanwhile"), -1;
    const auto& bounds = *mine.bounds;
    const Py_ssize_t place = std::lower_bound(bounds.begin(), bounds.end(), value_s) - bounds.begin();
    const Ref value(PyFloat_FromDouble(value_s)), more(PyNumber_Add(PyList_GET_ITEM(counts, place), mine.one));
    if (!value || !more || PyList_SetItem(counts, place, Py_NewRef(more.get())) < 0) return -1;
    return add_to(mine.bars.place(bars, H_TOTAL), value.get());
}

// The tally of precise choices; null with an exception. Throws Unusual.
Ref level_of(const Placing& mine, PyObject* metrics) {
    PyObject* by_level = mine.metrics.of(metrics, M_BY_LEVEL);
    if (!PyDict_CheckExact(by_level)) throw Unusual();
    Ref found = Ref::borrowed(PyDict_GetItemWithError(by_level, mine.precise));
    if (!found && !PyErr_Occurred()) found = Ref(PyObject_CallMethod(metrics, "level", "O", mine.precise));
    if (found) mine.tally.of(mine.tally.checked(found.get()), 0);
    return found;
}

// What Picker notes of a choice. 0, or -1 with an exception.
int note(const Placing& mine, Asking& asking, PyObject* choice) {
    PyObject* bars = mine.choice_s;
    if (!are_counts(mine, mine.bars.of(bars, H_COUNTS))) throw Unusual();
    const Ref prefix = Ref::borrowed(mine.tally.checked(mine.metrics.of(asking.metrics, M_PREFIX)));
    const Ref hit = Ref::borrowed(mine.tally.checked(mine.metrics.of(asking.metrics, M_HIT)));
    const auto value_of = [&](const Ref& tally) -> PyObject*& { return mine.tally.place(tally.get(), 0); };
    for (const Ref* tally : {&prefix, &hit}) mine.tally.of(tally->get(), 0);
    mine.endpoint.of(asking.endpoint.get(), E_LAST_TURN), mine.bars.of(bars, H_TOTAL);
    const Ref level = level_of(mine, asking.metrics), wall(level ? PyObject_CallNoArgs(mine.called[WALL_CLOCK]) : nullptr);
    if (!wall) return -1;
    double chosen_s;
    if (!ask_time(mine.called[CLOCK], chosen_s)) return -1;

    Ref decided(PyTuple_Pack(7, asking.request_id, asking.model, wall.get(), mine.zero, choice, Py_None, mine.kv_aware));
    const Ref noted(decided ? PyObject_CallOneArg(mine.called[NOTE], decided.get()) : nullptr);
    if (!noted || add_to(value_of(level), mine.one) < 0 || observe(mine, bars, asking.read_s + chosen_s - asking.now_s) < 0) return -1;
    Ref turn(PyIter_Next(mine.called[NEXT_TURN]));
    if (!turn) return -1;
    put(mine.endpoint.place(asking.endpoint.get(), E_LAST_TURN), turn.release());
    if (PyList_GET_SIZE(asking.hashes.get()))
        if (record_sent(sent_of_chooser(mine.chooser), asking.id.get(), asking.hashes.get(), asking.now_s) < 0) return -1;
    return add_to(value_of(prefix), asking.num_tokens.get()) < 0 ? -1 : add_to(value_of(hit), asking.matched.get());
}

// (reservation, choice), None, or null with an exception. Throws Unusual.
PyObject* place(const Placing& mine, Asking& asking, PyObject* prompt, double slow_start_s) {
    PyObject* by_digest = mine.prompt.of(mine.prompt.checked(prompt), P_BY_DIGEST);
    if (!PyDict_CheckExact(by_digest) || PyDict_GET_SIZE(by_digest) != 1) throw Unusual();
    Py_ssize_t at = 0;
    PyObject *digest, *blocks;
    PyDict_Next(by_digest, &at, &digest, &blocks);
    const Ref held = Ref::borrowed(digest);
    if (!PyUnicode_CheckExact(digest)) throw Unusual();
    mine.blocks.checked(blocks), mine.metrics.checked(asking.metrics);
    asking.read_s = real(mine.prompt.of(prompt, P_READ_S));
    asking.num_tokens = Ref::borrowed(mine.blocks.of(blocks, B_NUM_TOKENS));
    asking.tokens = whole(asking.num_tokens.get());
    const int64_t block_tokens = whole(mine.blocks.of(blocks, B_BLOCK_TOKENS));
    asking.hashes = Ref::borrowed(mine.blocks.of(blocks, B_HASHES));
    if (!PyList_CheckExact(asking.hashes.get())) throw Unusual();
    asking.now = Ref(PyObject_CallNoArgs(mine.called[CLOCK]));
    if (!asking.now) return nullptr;
    asking.now_s = real(asking.now.get());

    const Asked asked{asking.endpoints, digest, asking.hashes.get(), asking.tokens, block_tokens, asking.now_s, slow_start_s};
    const int is_usual = pick_usual(mine.chooser, asked, asking.picked);
    if (is_usual <= 0) return is_usual < 0 ? nullptr : Py_NewRef(Py_None);
    asking.endpoint = Ref::borrowed(mine.endpoint.checked(PyTuple_GET_ITEM(asking.endpoints, Py_ssize_t(asking.picked.place))));
    asking.id = Ref::borrowed(mine.endpoint.of(asking.endpoint.get(), E_ID));
    asking.matched = Ref(PyLong_FromLongLong(asking.picked.matched));
    const Ref choice = asking.matched ? choice_of(mine, asking) : Ref(), reservation = choice ? reservation_of(mine, asking) : Ref();
    if (!reservation || note(mine, asking, choice.get()) < 0) return nullptr;
    return PyTuple_Pack(2, reservation.get(), choice.get());
}

PyObject* placing_place(PyObject* self, PyObject* const* args, Py_ssize_t number) {
    if (number != 6 || !PyTuple_CheckExact(args[2]))
        return PyErr_SetString(PyExc_TypeError, "place(request_id, model, endpoints, slow_start_s, prompt, metrics)"), nullptr;
    const double slow_start_s = PyFloat_AsDouble(args[3]);
    if (slow_start_s == -1 && PyErr_Occurred()) return nullptr;
    Asking asking{.request_id = args[0], .model = args[1], .endpoints = args[2], .metrics = args[5]};
    try {
        return place(*as_placing(self), asking, args[4], slow_start_s);
    } catch (const Unusual&) {
        Py_RETURN_NONE;
    }
}

PyMethodDef METHODS[] = {
    {"place", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(placing_place)), METH_FASTCALL,
     "place(request_id, model, endpoints, slow_start_s, prompt, metrics) -> (reservation, choice), or None where something is out of the "
     "ordinary, and nothing was noted."},
    {nullptr, nullptr, 0, nullptr},
};

PyTypeObject PlacingType = [] {
    PyTypeObject type{PyVarObject_HEAD_INIT(nullptr, 0)};
    type.tp_name = "quire_router_native.Placing";
    type.tp_doc = "Placing(chooser, classes, choice_s, bounds, called): see usual_pick.";
    type.tp_basicsize = sizeof(Placing);
    type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC;
    type.tp_traverse = placing_traverse;
    type.tp_clear = placing_clear;
    type.tp_new = placing_new;
    type.tp_dealloc = placing_dealloc;
    type.tp_methods = METHODS;
    return type;
}();

}  // namespace
}  // namespace quire

int add_placing(PyObject* module) { return PyModule_AddType(module, &quire::PlacingType); }
