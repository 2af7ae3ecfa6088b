// Passing: what passing.Passing decides and notes of a usual call: one model, nobody waits, and the worker that had room last has room again.
//
// All is read, and looked at, before the first field is written. Whatever is not so is left to Python.

#include <algorithm>
#include <cmath>

#include "slots.h"

namespace quire {
namespace {

enum { C_TARGETS, C_PATH, NUM_C };
constexpr const char* CALL[NUM_C] = {"targets", "path"};
enum { L_ARRIVALS, L_MODELS, L_GRANTED, L_HINT, L_WAITS, NUM_L };
constexpr const char* LINE[NUM_L] = {"arrivals", "models", "granted", "hint", "waits"};
enum { A_TOTAL, A_COUNTS, A_AT, A_FIRST, NUM_A };
constexpr const char* ARRIVALS[NUM_A] = {"total", "_counts", "_at", "_first"};
enum { W_COUNTS, W_ENDS_S, NUM_W };
constexpr const char* WAITS[NUM_W] = {"_counts", "_ends_s"};
enum { E_READY, E_DRAINING, E_HEALTH, E_ENTRY, E_REPORT, E_REPORT_S, E_IN_FLIGHT, E_PENDING, NUM_E };
constexpr const char* ENDPOINT[NUM_E] = {"ready", "draining", "health", "entry", "report", "report_s", "num_in_flight", "pending_tokens"};
enum { R_RUNNING, R_WAITING, R_SEQS, R_TOTAL, R_FREE, R_SIZE, NUM_R };
constexpr const char* REPORT[NUM_R] = {"running", "waiting", "max_num_seqs", "total_blocks", "free_blocks", "block_size"};

struct Passing {
    PyObject_HEAD
    PyObject *clock, *otherwise, *light_paths;
    PyObject* ways;  // model -> (line, endpoints); null before the first configuration
    PyObject* one;
    long window_s;
    double lost_after_s, kv_use_limit;
    int64_t in_flight_per_worker;
    Layout<NUM_C> call;
    Layout<NUM_L> line;
    Layout<NUM_A> arrivals;
    Layout<NUM_W> waits;
    Layout<NUM_E> endpoint;
    Layout<1> health, entry;
    Layout<NUM_R> report;
};

Passing* as_passing(PyObject* self) { return reinterpret_cast<Passing*>(self); }

int passing_traverse(PyObject* self, visitproc visit, void* arg) {
    const Passing* mine = as_passing(self);
    Py_VISIT(mine->clock);
    Py_VISIT(mine->otherwise);
    Py_VISIT(mine->ways);
    return 0;
}

int passing_clear(PyObject* self) {
    Py_CLEAR(as_passing(self)->clock);
    Py_CLEAR(as_passing(self)->otherwise);
    Py_CLEAR(as_passing(self)->ways);
    return 0;
}

void passing_dealloc(PyObject* self) {
    PyObject_GC_UnTrack(self);
    passing_clear(self);
    const Passing* mine = as_passing(self);
    Py_XDECREF(mine->light_paths), Py_XDECREF(mine->one);
    for (PyTypeObject* type : {mine->call.type, mine->line.type, mine->arrivals.type, mine->waits.type, mine->endpoint.type, mine->health.type,
                               mine->entry.type, mine->report.type})
        Py_XDECREF(type);
    Py_TYPE(self)->tp_free(self);
}

PyObject* passing_new(PyTypeObject* type, PyObject* args, PyObject*) {
    PyObject *clock, *otherwise, *light_paths, *classes[8];
    long window_s;
    double lost_after_s;
    if (!PyArg_ParseTuple(args, "OOO!(OOOOOOOO)ld", &clock, &otherwise, &PyFrozenSet_Type, &light_paths, &classes[0], &classes[1], &classes[2],
                          &classes[3], &classes[4], &classes[5], &classes[6], &classes[7], &window_s, &lost_after_s))
        return nullptr;
    if (window_s < 1) return PyErr_SetString(PyExc_TypeError, "a window of no seconds"), nullptr;
    Ref self(type->tp_alloc(type, 0));
    if (!self) return nullptr;
    Passing& made = *as_passing(self.get());
    made.clock = Py_NewRef(clock), made.otherwise = Py_NewRef(otherwise), made.light_paths = Py_NewRef(light_paths);
    made.window_s = window_s, made.lost_after_s = lost_after_s;
    if ((made.one = PyLong_FromLong(1)) == nullptr) return nullptr;
    if (made.call.read(classes[0], CALL) < 0 || made.line.read(classes[1], LINE) < 0) return nullptr;
    if (made.arrivals.read(classes[2], ARRIVALS) < 0 || made.waits.read(classes[3], WAITS) < 0) return nullptr;
    if (made.endpoint.read(classes[4], ENDPOINT) < 0 || made.health.read(classes[5], {"is_ejected"}) < 0) return nullptr;
    if (made.entry.read(classes[6], {"role"}) < 0 || made.report.read(classes[7], REPORT) < 0) return nullptr;
    return self.release();
}

PyObject* passing_apply(PyObject* self, PyObject* args) {
    PyObject* ways;
    long long in_flight_per_worker;
    double kv_use_limit;
    if (!PyArg_ParseTuple(args, "O!Ld", &PyDict_Type, &ways, &in_flight_per_worker, &kv_use_limit)) return nullptr;
    Passing& mine = *as_passing(self);
    mine.in_flight_per_worker = in_flight_per_worker, mine.kv_use_limit = kv_use_limit;
    Py_XDECREF(std::exchange(mine.ways, Py_NewRef(ways)));
    Py_RETURN_NONE;
}

// As reach.Reach.has_room of the worker that had room last. Throws Unusual where Python has to look.
void check_room(const Passing& mine, PyObject* object, double now_s) {
    const auto& of = mine.endpoint;
    of.checked(object);
    if (!truth(of.of(object, E_READY)) || truth(of.of(object, E_DRAINING))) throw Unusual();
    if (truth(mine.health.of(mine.health.checked(of.of(object, E_HEALTH)), 0))) throw Unusual();
    PyObject* role = mine.entry.of(mine.entry.checked(of.of(object, E_ENTRY)), 0);
    if (!PyUnicode_CheckExact(role) || PyUnicode_CompareWithASCIIString(role, "prefill") == 0) throw Unusual();
    PyObject* report = of.of(object, E_REPORT);
    if (report == Py_None || now_s - real(of.of(object, E_REPORT_S)) > mine.lost_after_s) throw Unusual();
    const auto& told = mine.report;
    told.checked(report);
    if (whole(told.of(report, R_WAITING)) != 0) throw Unusual();
    const int64_t seqs = whole(told.of(report, R_SEQS)), most = seqs ? seqs : mine.in_flight_per_worker;
    if (whole(of.of(object, E_IN_FLIGHT)) + whole(told.of(report, R_RUNNING)) >= most) throw Unusual();
    const int64_t total = whole(told.of(report, R_TOTAL)), used = total - whole(told.of(report, R_FREE));
    const double tokens = (mine.kv_use_limit * double(total) - double(used)) * double(whole(told.of(report, R_SIZE)));
    if (!(tokens > double(whole(of.of(object, E_PENDING)))) && total > 0) throw Unusual();
}

// The number at a place of a list of ints, to be raised by one. Throws Unusual.
PyObject* counter(PyObject* list, Py_ssize_t place) {
    if (!PyList_CheckExact(list) || place >= PyList_GET_SIZE(list)) throw Unusual();
    whole(PyList_GET_ITEM(list, place));
    return list;
}

// The target, or null with an exception. Throws Unusual.
PyObject* target_of(const Passing& mine, PyObject* call) {
    PyObject *targets = mine.call.of(mine.call.checked(call), C_TARGETS), *path = mine.call.of(call, C_PATH);
    if (mine.ways == nullptr || !PyTuple_CheckExact(targets) || PyTuple_GET_SIZE(targets) != 1) throw Unusual();
    PyObject* target = PyTuple_GET_ITEM(targets, 0);
    if (!PyUnicode_CheckExact(target) || !PyUnicode_CheckExact(path) || PySet_Contains(mine.light_paths, path) != 0) throw Unusual();
    const Ref told(PyObject_CallNoArgs(mine.clock));
    if (!told) return nullptr;
    const double now_s = real(told.get());
    if (!(now_s >= 0 && now_s < double(MOST))) throw Unusual();
    PyObject* way = PyDict_GetItemWithError(mine.ways, target);
    if (way == nullptr || !PyTuple_CheckExact(way) || PyTuple_GET_SIZE(way) != 2) throw Unusual();
    PyObject *line = mine.line.checked(PyTuple_GET_ITEM(way, 0)), *endpoints = PyTuple_GET_ITEM(way, 1);

    PyObject *models = mine.line.of(line, L_MODELS), *arrivals = mine.arrivals.checked(mine.line.of(line, L_ARRIVALS));
    if (!PyDict_CheckExact(models) || PyDict_Contains(models, target) != 0 || whole(mine.line.of(line, L_GRANTED)) != 0) throw Unusual();
    const int64_t hint = whole(mine.line.of(line, L_HINT)), second = int64_t(now_s);
    if (!PyTuple_CheckExact(endpoints) || hint < 0 || hint >= PyTuple_GET_SIZE(endpoints)) throw Unusual();
    if (mine.arrivals.of(arrivals, A_FIRST) == Py_None || whole(mine.arrivals.of(arrivals, A_AT)) != second) throw Unusual();
    PyObject* waits = mine.waits.checked(mine.line.of(line, L_WAITS));
    if (now_s >= real(mine.waits.of(waits, W_ENDS_S))) throw Unusual();
    const Py_ssize_t place = Py_ssize_t(second % mine.window_s);
    PyObject *come = counter(mine.arrivals.of(arrivals, A_COUNTS), place), *passed = counter(mine.waits.of(waits, W_COUNTS), 0);
    const int64_t total = whole(mine.arrivals.of(arrivals, A_TOTAL));
    check_room(mine, PyTuple_GET_ITEM(endpoints, hint), now_s);

    Ref all(PyLong_FromLongLong(total + 1)), here(PyNumber_Add(PyList_GET_ITEM(come, place), mine.one));
    Ref at_once(PyNumber_Add(PyList_GET_ITEM(passed, 0), mine.one));
    if (!all || !here || !at_once) return nullptr;
    PyList_SetItem(come, place, here.release());
    PyList_SetItem(passed, 0, at_once.release());  // SlidingHistogram.note of no time at all
    Py_XDECREF(std::exchange(mine.arrivals.place(arrivals, A_TOTAL), all.release()));
    return Py_NewRef(target);
}

PyObject* passing_target_of(PyObject* self, PyObject* call) {
    const Passing& mine = *as_passing(self);
    try {
        return target_of(mine, call);
    } catch (const Unusual&) {
        if (PyErr_Occurred()) return nullptr;
        return PyObject_CallOneArg(mine.otherwise, call);
    }
}

PyMethodDef METHODS[] = {
    {"apply", passing_apply, METH_VARARGS, "apply({model: (line, endpoints)}, in_flight_per_worker, kv_use_limit): another configuration."},
    {"target_of", passing_target_of, METH_O, "target_of(call): see passing.Passing."},
    {nullptr, nullptr, 0, nullptr},
};

PyTypeObject PassingType = [] {
    PyTypeObject type{PyVarObject_HEAD_INIT(nullptr, 0)};
    type.tp_name = "quire_router_native.Passing";
    type.tp_doc = "Passing(clock, otherwise, light_paths, classes, window_s, lost_after_s): see passing.Passing.";
    type.tp_basicsize = sizeof(Passing);
    type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC;
    type.tp_traverse = passing_traverse;
    type.tp_clear = passing_clear;
    type.tp_new = passing_new;
    type.tp_dealloc = passing_dealloc;
    type.tp_methods = METHODS;
    return type;
}();

}  // namespace
}  // namespace quire

int add_passing(PyObject* module) { return PyModule_AddType(module, &quire::PassingType); }
