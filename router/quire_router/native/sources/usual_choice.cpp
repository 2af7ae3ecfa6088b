// UsualChoice: what snapshots.Snapshots.columns and usual_choice.choose_usual decide, read from the endpoints' own fields in one call.
//
// Endpoints and what they hold are Python's, of classes with __slots__: such a field lies at a place in its object that its class tells.
// So nothing is copied beforehand, and nothing can be stale. A field that is not of the kind that is reckoned with makes the case an
// unusual one, which Python decides.

#include "usual_choice.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <vector>

#include "kv_index.h"
#include "slots.h"

namespace quire {
namespace {

constexpr long long MOST_ENDPOINTS = 2048;
constexpr int64_t UNKNOWN = INT64_MIN;

// Whether a field is this word. Of many endpoints it is often the very same object: `same` is the last one that was.
bool is_same(PyObject* value, PyObject* word, PyObject*& same) {
    if (value == word || value == same) return true;
    if (!PyUnicode_CheckExact(value) || PyUnicode_Compare(value, word) != 0) return false;
    same = value;
    return true;
}

// As above, where it is another word. Throws Unusual for what is none.
bool is_other(PyObject* value, const char* word, PyObject*& other) {
    if (value == other) return true;
    if (!PyUnicode_CheckExact(value)) throw Unusual();
    if (PyUnicode_CompareWithASCIIString(value, word) == 0) return false;
    other = value;
    return true;
}

enum { E_ID, E_READY, E_SYNCED, E_DRAINING, E_DIGEST, E_HEALTH, E_ENTRY, E_WARMUP, E_REPORT, E_REPORT_S, E_IN_FLIGHT, E_PENDING,
       E_UNREPORTED, E_UNREPORTED_TOKENS, E_SPEED, E_RECENT_MS, E_RECENT_S, NUM_E };
constexpr const char* ENDPOINT[NUM_E] = {
    "id", "ready", "synced", "draining", "digest", "health", "entry", "warmup", "report", "report_s", "num_in_flight", "pending_tokens",
    "_unreported", "_unreported_tokens", "learnt_ms_per_token", "_recent_ms", "_recent_s"};
enum { R_RUNNING, R_WAITING, R_FREE, R_SIZE, R_UNCACHED, NUM_R };
constexpr const char* REPORT[NUM_R] = {"running", "waiting", "free_blocks", "block_size", "uncached_tokens"};

// Numbers of the decision, as scoring and its neighbours have them.
struct Rules {
    double guard_factor, guard_slack, leave_ms, leave_share, tie_ms, tie_share, promised_weight, decode_ms, block_wait_ms;
    double speculative_life_s, silent_after_s, recent_life_s, default_ms_per_token, speed_same;
};
constexpr const char* RULES[] = {
    "guard_factor", "guard_slack", "leave_ms", "leave_share", "tie_ms", "tie_share", "promised_weight", "decode_ms", "block_wait_ms",
    "speculative_life_s", "silent_after_s", "recent_life_s", "default_ms_per_token", "speed_same"};
static_assert(sizeof(Rules) == sizeof(double) * std::size(RULES));

// One endpoint as the choice sees it.
struct Row {
    PyObject* id;  // owned by a Seen only
    int64_t matched, load, promised, free;
    double ms_per_token, cost;
};

// A snapshot that can be explained later.
struct Seen {
    PyObject_VAR_HEAD
    PyObject *explain, *model, *num_tokens;  // null until it may be called
    Row rows[1];
};

void seen_dealloc(PyObject* self) {
    Seen* mine = reinterpret_cast<Seen*>(self);
    for (Py_ssize_t i = 0; i < Py_SIZE(self); ++i) Py_XDECREF(mine->rows[i].id);
    Py_XDECREF(mine->explain), Py_XDECREF(mine->model), Py_XDECREF(mine->num_tokens);
    Py_TYPE(self)->tp_free(self);
}

PyObject* number_of(int64_t number) { return number == UNKNOWN ? Py_NewRef(Py_None) : PyLong_FromLongLong(number); }

template <class Make>
PyObject* column(Seen* seen, Make make) {
    Ref list(PyList_New(Py_SIZE(seen)));
    for (Py_ssize_t i = 0; list && i < Py_SIZE(seen); ++i) {
        PyObject* item = make(seen->rows[i]);
        if (item == nullptr) return nullptr;
        PyList_SET_ITEM(list.get(), i, item);
    }
    return list.release();
}

PyObject* seen_columns(PyObject* self, PyObject*) {
    Seen* mine = reinterpret_cast<Seen*>(self);
    return Py_BuildValue(
        "(NNNNNN)", column(mine, [](Row& row) { return Py_NewRef(row.id); }), column(mine, [](Row& row) { return number_of(row.matched); }),
        column(mine, [](Row& row) { return number_of(row.load); }), column(mine, [](Row& row) { return number_of(row.promised); }),
        column(mine, [](Row& row) { return number_of(row.free); }), column(mine, [](Row& row) { return PyFloat_FromDouble(row.ms_per_token); }));
}

PyObject* seen_call(PyObject* self, PyObject* args, PyObject* named) {
    const Seen* mine = reinterpret_cast<Seen*>(self);
    if (mine->explain == nullptr || PyTuple_GET_SIZE(args) || (named && PyDict_GET_SIZE(named)))
        return PyErr_SetString(PyExc_TypeError, "a snapshot of a choice is called without arguments"), nullptr;
    return PyObject_CallFunctionObjArgs(mine->explain, mine->model, mine->num_tokens, self, nullptr);
}

PyMethodDef SEEN_METHODS[] = {
    {"columns", seen_columns, METH_NOARGS, "The fields of usual_choice.Columns, in their order."},
    {nullptr, nullptr, 0, nullptr},
};

PyTypeObject SeenType = [] {
    PyTypeObject type{PyVarObject_HEAD_INIT(nullptr, 0)};
    type.tp_name = "quire_router_native.Seen";
    type.tp_doc = "The snapshot that a choice was made on.";
    type.tp_basicsize = offsetof(Seen, rows);
    type.tp_itemsize = sizeof(Row);
    type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION;
    type.tp_dealloc = seen_dealloc;
    type.tp_call = seen_call;
    type.tp_methods = SEEN_METHODS;
    return type;
}();

// Where an endpoint's blocks are.
struct Home {
    Py_ssize_t slot;  // -1: the index does not know it
    SentBlocks* sent;  // null: it was sent nothing
};

struct Chooser {
    PyObject_HEAD
    IndexObject* index;
    SentObject* sent;
    PyObject* draw;  // the random source's `random`
    Layout<NUM_E> endpoint;
    Layout<NUM_R> report;
    Layout<1> health, warmup, entry;
    Rules rules;
    bool is_busy;  // a random source that asks in its turn gets no answer
    std::vector<Row>* rows;
    std::vector<size_t>* slots;
    std::vector<size_t>* tied;
    std::vector<uint32_t>* depths;
    std::vector<Home>* homes;  // of the endpoints that were asked for last: mostly one model is asked for again and again
    PyObject* known;  // those endpoints; null: none
    uint64_t index_version, sent_version;  // what `homes` was looked up in
};

Chooser* as_chooser(PyObject* self) { return reinterpret_cast<Chooser*>(self); }

int chooser_traverse(PyObject* self, visitproc visit, void* arg) {
    const Chooser* mine = as_chooser(self);
    Py_VISIT(mine->draw);
    Py_VISIT(mine->known);
    return 0;
}

int chooser_clear(PyObject* self) {
    Py_CLEAR(as_chooser(self)->known);
    return 0;
}

void chooser_dealloc(PyObject* self) {
    PyObject_GC_UnTrack(self);
    Chooser* mine = as_chooser(self);
    Py_XDECREF(mine->index), Py_XDECREF(mine->sent), Py_XDECREF(mine->draw);
    Py_XDECREF(mine->known);
    for (PyTypeObject* type : {mine->endpoint.type, mine->report.type, mine->health.type, mine->warmup.type, mine->entry.type}) Py_XDECREF(type);
    delete mine->rows, delete mine->slots, delete mine->tied, delete mine->depths, delete mine->homes;
    Py_TYPE(self)->tp_free(self);
}

int read_rules(PyObject* given, Rules& rules) {
    double* field = reinterpret_cast<double*>(&rules);
    for (const char* name : RULES) {
        PyObject* value = PyDict_GetItemString(given, name);
        if (value == nullptr) return PyErr_Format(PyExc_TypeError, "no rule %s", name), -1;
        *field = PyFloat_AsDouble(value);
        if (*field++ == -1 && PyErr_Occurred()) return -1;
    }
    return 0;
}

PyObject* chooser_new(PyTypeObject* type, PyObject* args, PyObject*) {
    PyObject *index, *sent, *draw, *endpoint, *report, *health, *warmup, *entry, *rules;
    if (!PyArg_ParseTuple(args, "OOO(OOOOO)O!", &index, &sent, &draw, &endpoint, &report, &health, &warmup, &entry, &PyDict_Type, &rules))
        return nullptr;
    if (index_of(index) == nullptr || sent_of(sent) == nullptr) return nullptr;
    Ref self(type->tp_alloc(type, 0));
    if (!self) return nullptr;
    Chooser* made = as_chooser(self.get());
    made->index = reinterpret_cast<IndexObject*>(Py_NewRef(index));
    made->sent = reinterpret_cast<SentObject*>(Py_NewRef(sent));
    made->draw = Py_NewRef(draw);
    made->rows = new (std::nothrow) std::vector<Row>();
    made->slots = new (std::nothrow) std::vector<size_t>();
    made->tied = new (std::nothrow) std::vector<size_t>();
    made->depths = new (std::nothrow) std::vector<uint32_t>();
    made->homes = new (std::nothrow) std::vector<Home>();
    if (!made->rows || !made->slots || !made->tied || !made->depths || !made->homes) return PyErr_NoMemory();
    if (read_rules(rules, made->rules) < 0) return nullptr;
    if (made->endpoint.read(endpoint, ENDPOINT) < 0 || made->report.read(report, REPORT) < 0) return nullptr;
    if (made->health.read(health, {"is_ejected"}) < 0 || made->warmup.read(warmup, {"since_s"}) < 0) return nullptr;
    return made->entry.read(entry, {"role"}) < 0 ? nullptr : self.release();
}

// All but `matched` of the endpoint's row. Throws Unusual.
Row row_of(const Chooser& mine, const Asked& asked, PyObject* object) {
    const auto& of = mine.endpoint;
    of.checked(object);
    if (!truth(of.of(object, E_READY)) || !truth(of.of(object, E_SYNCED)) || truth(of.of(object, E_DRAINING))) throw Unusual();
    if (!is_same(of.of(object, E_DIGEST), asked.digest, asked.same_digest)) throw Unusual();
    if (truth(mine.health.of(mine.health.checked(of.of(object, E_HEALTH)), 0))) throw Unusual();
    if (!is_other(mine.entry.of(mine.entry.checked(of.of(object, E_ENTRY)), 0), "prefill", asked.other_role)) throw Unusual();
    if (asked.now_s - real(mine.warmup.of(mine.warmup.checked(of.of(object, E_WARMUP)), 0)) < asked.slow_start_s) throw Unusual();
    Row row{of.of(object, E_ID), 0, 0, 0, UNKNOWN, 0, 0};
    PyObject* report = of.of(object, E_REPORT);
    if (report == Py_None) {
        row.load = whole(of.of(object, E_IN_FLIGHT)), row.promised = whole(of.of(object, E_PENDING));
    } else {
        if (asked.now_s - real(of.of(object, E_REPORT_S)) > mine.rules.silent_after_s) throw Unusual();
        const auto& told = mine.report;
        told.checked(report);
        PyObject* unreported = of.of(object, E_UNREPORTED);
        if (!PyDict_CheckExact(unreported)) throw Unusual();
        row.load = whole(told.of(report, R_RUNNING)) + whole(told.of(report, R_WAITING)) + PyDict_GET_SIZE(unreported);
        row.promised = whole(told.of(report, R_UNCACHED)) + whole(of.of(object, E_UNREPORTED_TOKENS));
        const int64_t blocks = whole(told.of(report, R_FREE)), size = whole(told.of(report, R_SIZE));
        if (blocks < 0 || size < 0 || __builtin_mul_overflow(blocks, size, &row.free)) throw Unusual();
        row.free = std::min<int64_t>(row.free, MOST);  // more than any prompt needs
    }
    if (row.load > MOST / MOST_ENDPOINTS || row.load < 0 || row.promised > MOST || row.promised < -MOST) throw Unusual();
    PyObject* speed = of.of(object, E_SPEED);
    row.ms_per_token = speed == Py_None ? std::numeric_limits<double>::quiet_NaN() : real(speed);
    return row;
}

// As endpoints.pooled_speed.
void pool_speeds(std::vector<Row>& rows, const Rules& rules) {
    double total = 0;
    size_t number = 0;
    for (const Row& row : rows)
        if (!std::isnan(row.ms_per_token)) total += row.ms_per_token, ++number;
    const double mean = number ? total / double(number) : rules.default_ms_per_token;
    const double low = mean / rules.speed_same, high = mean * rules.speed_same;
    for (Row& row : rows)
        if (std::isnan(row.ms_per_token) || (low <= row.ms_per_token && row.ms_per_token <= high)) row.ms_per_token = mean;
}

// Looks up where the rows' blocks are. std::bad_alloc. -1 with an exception.
int look_up(Chooser& mine, const Asked& asked, const std::vector<Row>& rows) {
    if (mine.known == asked.endpoints && mine.index_version == mine.index->version && mine.sent_version == mine.sent->version) return 0;
    Py_CLEAR(mine.known);
    mine.homes->clear(), mine.slots->clear();
    for (const Row& row : rows) {
        const Py_ssize_t slot = place_of(mine.index->slots, row.id), place = place_of(mine.sent->places, row.id);
        if (slot == -2 || place == -2) return -1;
        if (slot >= 0) mine.slots->push_back(size_t(slot));
        mine.homes->push_back({slot, place < 0 ? nullptr : (*mine.sent->sent)[size_t(place)].get()});
    }
    mine.depths->resize(64 * (mine.index->index->num_slots() / 64 + 1));
    mine.index_version = mine.index->version, mine.sent_version = mine.sent->version;
    mine.known = Py_NewRef(asked.endpoints);
    return 0;
}

// The leading tokens that each is believed to hold. std::bad_alloc. -1 with an exception.
int note_matched(Chooser& mine, const Asked& asked, std::vector<Row>& rows) {
    KvIndex& index = *mine.index->index;
    if (look_up(mine, asked, rows) < 0) return -1;
    const Blocks blocks(asked.hashes);
    index.match(blocks, mine.slots->data(), mine.slots->size(), mine.depths->data());
    const double since_s = asked.now_s - mine.rules.speculative_life_s;
    const int64_t most = std::max<int64_t>(0, asked.num_tokens - 1);
    for (size_t i = 0; i < rows.size(); ++i) {
        const Home home = (*mine.homes)[i];
        const size_t held = home.slot < 0 ? 0 : (*mine.depths)[size_t(home.slot)];
        const size_t count = extended(index, home.slot, home.sent, blocks, held, since_s);
        int64_t matched;
        if (__builtin_mul_overflow(int64_t(count), asked.block_tokens, &matched)) throw Unusual();
        rows[i].matched = std::min(matched, most);
    }
    return blocks.check();
}

// As usual_choice._costs.
double cost_of(const Row& row, const Rules& rules, int64_t num_tokens) {
    const int64_t uncached = row.matched < num_tokens ? num_tokens - row.matched : 0;
    double cost = double(uncached) * row.ms_per_token + double(row.promised) * row.ms_per_token * rules.promised_weight +
                  double(row.load) * rules.decode_ms;
    if (row.free != UNKNOWN && row.free < uncached)
        cost += rules.block_wait_ms * (1 + double(uncached - row.free) / double(uncached));
    return cost;
}

// As usual_choice._least, among all with at least `longest` tokens. -1 with an exception.
Py_ssize_t least(Chooser& mine, const Asked& asked, const std::vector<Row>& rows, int64_t longest) {
    double lowest = std::numeric_limits<double>::infinity();
    size_t number = 0;
    for (const Row& row : rows)
        if (row.matched >= longest) lowest = std::min(lowest, row.cost), ++number;
    const double limit = lowest + mine.rules.tie_ms + mine.rules.tie_share * lowest;
    mine.tied->clear();
    for (size_t i = 0; i < rows.size(); ++i)
        if (rows[i].matched >= longest && (number == 1 || rows[i].cost <= limit)) mine.tied->push_back(i);
    if (mine.tied->empty()) throw Unusual();  // costs that are no numbers
    if (mine.tied->size() == 1) return Py_ssize_t(mine.tied->front());
    size_t best = 0;
    double best_recent = 0, best_drawn = 0;
    for (size_t n = 0; n < mine.tied->size(); ++n) {
        const size_t i = (*mine.tied)[n];
        PyObject* object = PyTuple_GET_ITEM(asked.endpoints, Py_ssize_t(i));
        const double then_s = real(mine.endpoint.of(object, E_RECENT_S));
        const double recent = real(mine.endpoint.of(object, E_RECENT_MS)) * std::exp((then_s - asked.now_s) / mine.rules.recent_life_s);
        const Ref drawn(PyObject_CallNoArgs(mine.draw));
        if (!drawn) return -1;
        const double number_drawn = PyFloat_AsDouble(drawn.get());
        if (number_drawn == -1 && PyErr_Occurred()) return -1;
        const auto is_less = [&] {
            if (rows[i].matched != rows[best].matched) return rows[i].matched > rows[best].matched;
            return recent != best_recent ? recent < best_recent : number_drawn < best_drawn;
        };
        if (n == 0 || is_less()) best = i, best_recent = recent, best_drawn = number_drawn;
    }
    return Py_ssize_t(best);
}

// As usual_choice._cheapest.
Py_ssize_t cheapest(Chooser& mine, const Asked& asked, std::vector<Row>& rows, int64_t longest) {
    for (Row& row : rows) row.cost = cost_of(row, mine.rules, asked.num_tokens);
    const Py_ssize_t best = least(mine, asked, rows, INT64_MIN);
    if (best < 0 || rows[size_t(best)].matched == longest) return best;
    const Py_ssize_t holder = least(mine, asked, rows, longest);
    if (holder < 0) return -1;
    const double stay_ms = rows[size_t(holder)].cost, leave_ms = rows[size_t(best)].cost;
    return stay_ms - leave_ms > std::max(mine.rules.leave_ms, mine.rules.leave_share * stay_ms) ? best : holder;
}

bool is_out_of_bounds(const std::vector<Row>& rows, const Rules& rules) {
    int64_t sum = 0, most = 0;
    for (const Row& row : rows) sum += row.load, most = std::max(most, row.load);
    const double mean = double(sum + 1) / double(rows.size());
    return double(most + 1) > std::max(rules.guard_factor * mean, mean + rules.guard_slack);
}

// As Endpoint.is_idle.
bool is_idle(const Chooser& mine, PyObject* object) {
    if (whole(mine.endpoint.of(object, E_IN_FLIGHT)) != 0) return false;
    PyObject* report = mine.endpoint.of(object, E_REPORT);
    if (report == Py_None) return true;
    mine.report.checked(report);  // other code may have run since the row was made
    return whole(mine.report.of(report, R_RUNNING)) + whole(mine.report.of(report, R_WAITING)) == 0;
}

// 0, or -1 with an exception. Throws Unusual.
int pick(Chooser& mine, const Asked& asked, Picked& picked) {
    const size_t number = size_t(PyTuple_GET_SIZE(asked.endpoints));
    std::vector<Row>& rows = *mine.rows;
    rows.clear();
    if (number == 0 || number > size_t(MOST_ENDPOINTS)) throw Unusual();
    for (size_t i = 0; i < number; ++i) rows.push_back(row_of(mine, asked, PyTuple_GET_ITEM(asked.endpoints, Py_ssize_t(i))));
    if (number > 1 && is_out_of_bounds(rows, mine.rules)) throw Unusual();
    pool_speeds(rows, mine.rules);
    picked.seen = Ref(reinterpret_cast<PyObject*>(PyObject_NewVar(Seen, &SeenType, Py_ssize_t(number))));
    if (!picked.seen) return -1;
    Seen* kept = reinterpret_cast<Seen*>(picked.seen.get());
    kept->explain = kept->model = kept->num_tokens = nullptr;
    for (size_t i = 0; i < number; ++i) kept->rows[i] = rows[i], Py_INCREF(rows[i].id);  // from here on other code may run
    if (note_matched(mine, asked, rows) < 0) return -1;
    for (size_t i = 0; i < number; ++i)
        kept->rows[i].matched = rows[i].matched, picked.longest = std::max(picked.longest, rows[i].matched);
    const Py_ssize_t best = number == 1 ? 0 : cheapest(mine, asked, rows, picked.longest);
    if (best < 0) return -1;
    picked.place = size_t(best), picked.number = number, picked.matched = rows[size_t(best)].matched;
    picked.is_idle = is_idle(mine, PyTuple_GET_ITEM(asked.endpoints, best));
    return 0;
}

// While it lives, nobody else uses the chooser's vectors. Throws Unusual if somebody does.
class Turn {
  public:
    explicit Turn(Chooser& chooser) : chooser_(chooser) {
        if (chooser.is_busy) throw Unusual();
        chooser.is_busy = true;
    }
    Turn(const Turn&) = delete;
    ~Turn() { chooser_.is_busy = false; }

  private:
    Chooser& chooser_;
};

}  // namespace

int pick_usual(PyObject* chooser, const Asked& asked, Picked& picked) {
    return guarded<int>(-1, [&] {
        try {
            const Turn turn(*as_chooser(chooser));
            return pick(*as_chooser(chooser), asked, picked) < 0 ? -1 : 1;
        } catch (const Unusual&) {
            return 0;
        }
    });
}

void make_explainable(PyObject* seen, PyObject* explain, PyObject* model, PyObject* num_tokens) {
    Seen* mine = reinterpret_cast<Seen*>(seen);
    mine->explain = Py_NewRef(explain), mine->model = Py_NewRef(model), mine->num_tokens = Py_NewRef(num_tokens);
}

PyObject* sent_of_chooser(PyObject* chooser) { return reinterpret_cast<PyObject*>(as_chooser(chooser)->sent); }

namespace {

PyObject* chooser_pick(PyObject* self, PyObject* const* args, Py_ssize_t number) {
    if (number != 7 || !PyTuple_CheckExact(args[0]) || !PyUnicode_CheckExact(args[1]))
        return PyErr_SetString(PyExc_TypeError, "pick(endpoints, digest, hashes, num_tokens, block_tokens, now_s, slow_start_s)"), nullptr;
    const Ref hashes(PySequence_Fast(args[2], "hashes are a sequence of ints"));
    if (!hashes) return nullptr;
    try {
        const Asked asked{args[0], args[1], hashes.get(), whole(args[3]), whole(args[4]), real(args[5]), PyFloat_AsDouble(args[6])};
        if (PyErr_Occurred()) return nullptr;
        Picked picked;
        const int is_usual = pick_usual(self, asked, picked);
        if (is_usual < 0) return nullptr;
        if (is_usual == 0) Py_RETURN_NONE;
        return Py_BuildValue("nLLO", Py_ssize_t(picked.place), static_cast<long long>(picked.matched), static_cast<long long>(picked.longest),
                             picked.seen.get());
    } catch (const Unusual&) {
        Py_RETURN_NONE;
    }
}

PyObject* chooser_digest(PyObject* self, PyObject* endpoints) {
    const auto& of = as_chooser(self)->endpoint;
    if (!PyTuple_CheckExact(endpoints)) return PyErr_SetString(PyExc_TypeError, "digest(endpoints)"), nullptr;
    PyObject *found = nullptr, *same = nullptr;
    try {
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(endpoints); ++i) {
            PyObject* digest = of.of(of.checked(PyTuple_GET_ITEM(endpoints, i)), E_DIGEST);
            if (found == nullptr && PyUnicode_CheckExact(digest)) found = digest;
            if (found == nullptr || !is_same(digest, found, same)) Py_RETURN_NONE;
        }
    } catch (const Unusual&) {
        Py_RETURN_NONE;
    }
    return Py_NewRef(found ? found : Py_None);
}

PyMethodDef CHOOSER_METHODS[] = {
    {"digest", chooser_digest, METH_O, "digest(endpoints): of their prompt bundle, if all of them have told one and the same; else None."},
    {"pick", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(chooser_pick)), METH_FASTCALL,
     "pick(endpoints, digest, hashes, num_tokens, block_tokens, now_s, slow_start_s) -> (place, matched, longest, seen), or None where "
     "something is out of the ordinary."},
    {nullptr, nullptr, 0, nullptr},
};

PyTypeObject ChooserType = [] {
    PyTypeObject type{PyVarObject_HEAD_INIT(nullptr, 0)};
    type.tp_name = "quire_router_native.UsualChoice";
    type.tp_doc = "UsualChoice(index, sent, random, (Endpoint, LoadReport, Health, Warmup, EndpointEntry), rules): see usual_choice.";
    type.tp_basicsize = sizeof(Chooser);
    type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC;
    type.tp_traverse = chooser_traverse;
    type.tp_clear = chooser_clear;
    type.tp_new = chooser_new;
    type.tp_dealloc = chooser_dealloc;
    type.tp_methods = CHOOSER_METHODS;
    return type;
}();

}  // namespace

bool is_chooser(PyObject* object) { return PyObject_TypeCheck(object, &ChooserType); }

}  // namespace quire

int add_usual_choice(PyObject* module) {
    if (PyType_Ready(&quire::SeenType) < 0) return -1;
    return PyModule_AddType(module, &quire::ChooserType);
}
