// Relaying: what worker_connection.WorkerConnection._give and relay.Relay._take_part do with a usual read of a stream, in one step.
//
// Usual: whole chunks, with whole events, of a worker whose answer is read to here and whose client keeps up. Nothing is written to any
// object before that is known; all else is left to the twin, which has the same read from its beginning.

#include <algorithm>
#include <string>
#include <vector>

#include "chunks.h"
#include "client_sink.h"
#include "replay_events.h"
#include "slots.h"

namespace quire {
namespace {

enum { R_CONTENT, R_CUTTER, R_REPLAY, R_GUARD, R_SINK, R_LATENCY, R_NOW, R_TURN, R_IS_TAKING, R_IS_FULL, NUM_R };
constexpr const char* RELAY[NUM_R] = {"_content", "_cutter", "_replay", "_guard", "_sink", "_latency", "_now", "_turn", "_is_taking", "is_full"};
enum { S_BUFFER, S_TOTAL_BYTES, S_CURSOR, NUM_S };
constexpr const char* READER[NUM_S] = {"_buffer", "total_bytes", "_cursor"};
constexpr const char* CONNECTION[1] = {"_reading_paused"};
constexpr const char* GUARD[1] = {"since_s"};
constexpr const char* CUTTER[1] = {"held"};
enum { P_TAKE_EVENTS, P_IS_OVER, NUM_P };
constexpr const char* REPLAY[NUM_P] = {"_take_events", "is_over"};
constexpr const char* LATENCY[1] = {"inter_token"};
enum { H_COUNTS, H_ENDS_S, NUM_H };
constexpr const char* HISTOGRAM[NUM_H] = {"_counts", "_ends_s"};

struct Rules {
    Layout<NUM_R> relay;
    Layout<NUM_S> reader;
    Layout<1> connection, guard, cutter, latency;
    Layout<NUM_P> replay;
    Layout<NUM_H> histogram;
    std::vector<double> bounds_s;
    double least_s = 0;
    Py_ssize_t max_bytes = 0, max_choices = 0;
    std::string mark;

    ~Rules() {
        Py_XDECREF(relay.type), Py_XDECREF(reader.type), Py_XDECREF(connection.type), Py_XDECREF(guard.type);
        Py_XDECREF(cutter.type), Py_XDECREF(latency.type), Py_XDECREF(replay.type), Py_XDECREF(histogram.type);
    }
};

struct Relaying {
    PyObject_HEAD
    Rules* rules;
};

struct Interned {
    PyObject *payload, *done, *set_result, *note_wait;
};
Interned names;

// What a read is, before anything was done with it.
struct Read {
    const Rules& rules;
    PyObject* relay;
    Ref content, guard, sink, latency, replay, turn;
    Chunking after;
    Ref part;           // of the stream
    Ref total, cursor;  // of the reader, once it was taken

    Read(const Rules& known, PyObject* asked) : rules(known), relay(known.relay.checked(asked)) {}
    Ref its(size_t field) const { return Ref::borrowed(rules.relay.of(relay, field)); }
};

// Everything that would make it unusual. Throws Unusual, std::bad_alloc. False: an exception is set.
bool look(Read* read, PyObject* connection, const Chunking& chunking, PyObject* data) {
    const Rules& rules = read->rules;
    const char* text = PyBytes_AS_STRING(data);
    const size_t size = size_t(PyBytes_GET_SIZE(data));
    if (!chunking.may_take(text, size)) throw Unusual();
    if (truth(rules.relay.of(read->relay, R_IS_TAKING))) throw Unusual();
    if (truth(rules.connection.of(rules.connection.checked(connection), 0))) throw Unusual();
    PyObject* held = rules.cutter.of(rules.cutter.checked(rules.relay.of(read->relay, R_CUTTER)), 0);
    if (!PyByteArray_CheckExact(held) || PyByteArray_GET_SIZE(held)) throw Unusual();
    read->content = read->its(R_CONTENT), read->guard = read->its(R_GUARD), read->sink = read->its(R_SINK);
    read->latency = read->its(R_LATENCY), read->replay = read->its(R_REPLAY), read->turn = read->its(R_TURN);
    rules.guard.checked(read->guard.get()), rules.latency.checked(read->latency.get());
    PyObject* content = rules.reader.checked(read->content.get());
    if (read->replay.get() != Py_None) {
        PyObject* replay = rules.replay.checked(read->replay.get());
        if (rules.replay.of(replay, P_TAKE_EVENTS) == Py_None || truth(rules.replay.of(replay, P_IS_OVER))) throw Unusual();
    }
    Chunking tried = chunking;
    const size_t length = tried.follow(text, size, nullptr);
    const int64_t total = whole(rules.reader.of(content, S_TOTAL_BYTES));
    if (!tried.is_between() || length < 2 || uint64_t(total) + length != tried.num_bytes) throw Unusual();
    read->after = tried;
    const Py_ssize_t num_unread = PyObject_Size(rules.reader.of(content, S_BUFFER));
    if (num_unread < 0) return false;
    if (num_unread) throw Unusual();
    const Ref payload(PyObject_GetAttr(connection, names.payload));
    if (!payload) return false;
    if (payload.get() != content) throw Unusual();
    const Ref is_done(PyObject_CallMethodNoArgs(read->turn.get(), names.done));
    if (!is_done) return false;
    if (truth(is_done.get())) throw Unusual();
    read->part = Ref(PyBytes_FromStringAndSize(nullptr, Py_ssize_t(length)));
    read->total = Ref(PyLong_FromLongLong(total + int64_t(length)));
    read->cursor = Ref(PyLong_FromLongLong(whole(rules.reader.of(content, S_CURSOR)) + int64_t(length)));
    if (!read->part || !read->total || !read->cursor) return false;
    char* out = PyBytes_AS_STRING(read->part.get());
    tried = chunking;
    tried.follow(text, size, out);
    if (out[length - 1] != '\n' || out[length - 2] != '\n') throw Unusual();
    return true;
}

// As StreamLatency.note_wait. False: an exception is set.
bool note_wait(const Rules& rules, PyObject* latency, PyObject* asked, PyObject* now) {
    try {
        const double now_s = real(now), waited_s = now_s - real(asked);
        if (!(waited_s > rules.least_s)) return true;
        PyObject* histogram = rules.histogram.checked(rules.latency.of(latency, 0));
        PyObject* counts = rules.histogram.of(histogram, H_COUNTS);
        const auto bucket = std::lower_bound(rules.bounds_s.begin(), rules.bounds_s.end(), waited_s) - rules.bounds_s.begin();
        if (!(now_s < real(rules.histogram.of(histogram, H_ENDS_S))) || !PyList_CheckExact(counts) || bucket >= PyList_GET_SIZE(counts))
            throw Unusual();
        PyObject* more = PyLong_FromLongLong(whole(PyList_GET_ITEM(counts, bucket)) + 1);
        return more != nullptr && PyList_SetItem(counts, bucket, more) == 0;
    } catch (const Unusual&) {
        return bool(Ref(PyObject_CallMethodObjArgs(latency, names.note_wait, asked, now, nullptr)));
    }
}

// Whether the sink may be given more: 1, 0, or -1 with an exception set.
int give(PyObject* sink, PyObject* part) {
    if (is_client_sink(sink)) return give_to_client(sink, part);
    const Ref told(PyObject_CallOneArg(sink, part));
    return told ? PyObject_IsTrue(told.get()) : -1;
}

// Do it. Throws Unusual, before anything was changed, if its events are not usual; std::bad_alloc. False: an exception is set.
bool pass(Read* read, Chunking* chunking) {
    const Rules& rules = read->rules;
    if (read->replay.get() != Py_None) {
        Ref taken(take_usual(read->replay.get(), read->part.get(), rules.max_bytes, rules.max_choices, rules.mark));
        if (!taken) return false;
        if (taken.get() == Py_None) throw Unusual();
        read->part = std::move(taken);
    }
    *chunking = read->after;
    const Ref now(PyObject_CallNoArgs(read->its(R_NOW).get()));
    if (!now) return false;
    const Ref asked = Ref::borrowed(rules.guard.of(read->guard.get(), 0));
    const bool is_waiting = !PyFloat_CheckExact(asked.get()) || PyFloat_AS_DOUBLE(asked.get()) != Py_HUGE_VAL;
    if (is_waiting && !note_wait(rules, read->latency.get(), asked.get(), now.get())) return false;
    const int may_more = PyBytes_GET_SIZE(read->part.get()) ? give(read->sink.get(), read->part.get()) : 1;
    if (may_more < 0) return false;
    if (may_more) {
        put(rules.guard.place(read->guard.get(), 0), Py_NewRef(now.get()));
    } else {
        put(rules.relay.place(read->relay, R_IS_FULL), Py_NewRef(Py_True));
        if (!Ref(PyObject_CallMethodOneArg(read->turn.get(), names.set_result, Py_None))) return false;
    }
    put(rules.reader.place(read->content.get(), S_TOTAL_BYTES), read->total.release());
    put(rules.reader.place(read->content.get(), S_CURSOR), read->cursor.release());
    return true;
}

PyObject* take(PyObject* self, PyObject* const* args, Py_ssize_t number) {
    if (number == 4 && args[2] == Py_None) Py_RETURN_FALSE;  // nothing follows this body
    Chunking* chunking = number == 4 ? chunking_of(args[2]) : nullptr;
    if (chunking == nullptr || !PyBytes_CheckExact(args[3])) {
        PyErr_SetString(PyExc_TypeError, "take(relay, connection, chunks, data: bytes)");
        return nullptr;
    }
    const Rules& rules = *reinterpret_cast<Relaying*>(self)->rules;
    return guarded<PyObject*>(nullptr, [&]() -> PyObject* {
        try {
            const Ref relay = Ref::borrowed(args[0]), chunks = Ref::borrowed(args[2]);  // a sink may let go of them
            Read read(rules, relay.get());
            if (!look(&read, args[1], *chunking, args[3]) || !pass(&read, chunking)) return nullptr;
            Py_RETURN_TRUE;
        } catch (const Unusual&) {
            Py_RETURN_FALSE;
        }
    });
}

// 0, or -1 with an exception set. Throws std::bad_alloc.
int fill(Rules* rules, PyObject* classes, PyObject* bounds, const char* mark, Py_ssize_t mark_size) {
    PyObject *relay, *reader, *connection, *guard, *cutter, *replay, *latency, *histogram;
    if (!PyArg_ParseTuple(classes, "OOOOOOOO", &relay, &reader, &connection, &guard, &cutter, &replay, &latency, &histogram)) return -1;
    if (rules->relay.read(relay, RELAY) < 0 || rules->reader.read(reader, READER) < 0 || rules->connection.read(connection, CONNECTION) < 0 ||
        rules->guard.read(guard, GUARD) < 0 || rules->cutter.read(cutter, CUTTER) < 0 || rules->replay.read(replay, REPLAY) < 0 ||
        rules->latency.read(latency, LATENCY) < 0 || rules->histogram.read(histogram, HISTOGRAM) < 0)
        return -1;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(bounds); ++i) {
        const double bound = PyFloat_AsDouble(PyTuple_GET_ITEM(bounds, i));
        if (bound == -1 && PyErr_Occurred()) return -1;
        rules->bounds_s.push_back(bound);
    }
    rules->mark.assign(mark, size_t(mark_size));
    return 0;
}

PyObject* make(PyTypeObject* type, PyObject* args, PyObject*) {
    PyObject *classes, *bounds;
    double least_s;
    Py_ssize_t max_bytes, max_choices, mark_size;
    const char* mark;
    if (!PyArg_ParseTuple(args, "O!O!dnny#", &PyTuple_Type, &classes, &PyTuple_Type, &bounds, &least_s, &max_bytes, &max_choices, &mark, &mark_size))
        return nullptr;
    Ref self(type->tp_alloc(type, 0));
    if (!self) return nullptr;
    return guarded<PyObject*>(nullptr, [&]() -> PyObject* {
        Rules* rules = reinterpret_cast<Relaying*>(self.get())->rules = new Rules();
        rules->least_s = least_s, rules->max_bytes = max_bytes, rules->max_choices = max_choices;
        return fill(rules, classes, bounds, mark, mark_size) < 0 ? nullptr : self.release();
    });
}

void end(PyObject* self) {
    PyTypeObject* type = Py_TYPE(self);
    delete reinterpret_cast<Relaying*>(self)->rules;
    type->tp_free(self);
    Py_DECREF(type);
}

PyMethodDef METHODS[] = {
    {"take", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(take)), METH_FASTCALL,
     "take(relay, connection, chunks, data): whether it was usual, and is done; if not, nothing was."},
    {nullptr, nullptr, 0, nullptr},
};

PyType_Slot SLOTS[] = {
    {Py_tp_new, reinterpret_cast<void*>(make)},
    {Py_tp_dealloc, reinterpret_cast<void*>(end)},
    {Py_tp_methods, METHODS},
    {Py_tp_doc, const_cast<char*>("Relaying(classes, bounds_s, least_s, max_bytes, max_choices, mark): for all relays; see relay.Relay.")},
    {0, nullptr},
};

PyType_Spec SPEC = {"quire_router_native.Relaying", sizeof(Relaying), 0, Py_TPFLAGS_DEFAULT, SLOTS};

}  // namespace
}  // namespace quire

int add_relaying(PyObject* module) {
    using quire::names;
    const std::pair<PyObject**, const char*> wanted[] = {
        {&names.payload, "_payload"}, {&names.done, "done"}, {&names.set_result, "set_result"}, {&names.note_wait, "note_wait"},
    };
    for (const auto& [at, text] : wanted) {
        *at = PyUnicode_InternFromString(text);
        if (*at == nullptr) return -1;
    }
    PyObject* type = PyType_FromSpec(&quire::SPEC);
    if (type == nullptr) return -1;
    const int done = PyModule_AddObjectRef(module, "Relaying", type);
    Py_DECREF(type);
    return done;
}
