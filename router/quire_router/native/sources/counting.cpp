// Counting: what endpoints.Reservation does as its request goes on, and Endpoint.admit, prefilled and release with it: one call for each.
//
// Its three functions are methods for a class of reservations. All is read, and made, before the first field is written. What is not of the
// kind that is reckoned with is left to the endpoint's own methods.

#include <cmath>

#include "slots.h"

namespace quire {
namespace {

enum { R_ENDPOINT, R_UNCACHED, R_STARTED_S, R_WAITING, R_CLOSED, R_IS_TAKEN, R_IDLE_START, R_IS_TRIAL, NUM_R };
constexpr const char* RESERVATION[NUM_R] = {"endpoint", "uncached", "started_s", "waiting", "closed", "is_taken", "idle_start", "is_trial"};
enum { E_IN_FLIGHT, E_UNANSWERED, E_PENDING, E_REPORT_S, E_UNREPORTED, E_UNREPORTED_TOKENS, E_SPEED, E_RECENT_MS, E_RECENT_S, E_TRIAL,
       E_ON_CHANGE, NUM_E };
constexpr const char* ENDPOINT[NUM_E] = {"num_in_flight", "num_unanswered", "pending_tokens", "report_s", "_unreported", "_unreported_tokens",
                                         "learnt_ms_per_token", "_recent_ms", "_recent_s", "trial", "on_change"};

struct Counting {
    PyObject_HEAD
    Layout<NUM_R> reservation;
    Layout<NUM_E> endpoint;
    PyObject *admit, *prefilled, *release, *is_stream;  // names
    double report_lag_s, recent_life_s, default_ms_per_token, decode_ms;
    int64_t speed_min_tokens;
};

const Counting& as_counting(PyObject* self) { return *reinterpret_cast<Counting*>(self); }

void counting_dealloc(PyObject* self) {
    const Counting& mine = as_counting(self);
    Py_XDECREF(mine.reservation.type), Py_XDECREF(mine.endpoint.type);
    Py_XDECREF(mine.admit), Py_XDECREF(mine.prefilled), Py_XDECREF(mine.release), Py_XDECREF(mine.is_stream);
    Py_TYPE(self)->tp_free(self);
}

PyObject* counting_new(PyTypeObject* type, PyObject* args, PyObject*) {
    PyObject *reservation, *endpoint;
    double lag_s, life_s, default_ms, decode_ms;
    long long min_tokens;
    if (!PyArg_ParseTuple(args, "OOddddL", &reservation, &endpoint, &lag_s, &life_s, &default_ms, &decode_ms, &min_tokens)) return nullptr;
    Ref self(type->tp_alloc(type, 0));
    if (!self) return nullptr;
    Counting& made = *reinterpret_cast<Counting*>(self.get());
    made.report_lag_s = lag_s, made.recent_life_s = life_s, made.default_ms_per_token = default_ms, made.decode_ms = decode_ms;
    made.speed_min_tokens = min_tokens;
    made.admit = PyUnicode_InternFromString("admit"), made.prefilled = PyUnicode_InternFromString("prefilled");
    made.release = PyUnicode_InternFromString("release"), made.is_stream = PyUnicode_InternFromString("is_stream");
    if (!made.admit || !made.prefilled || !made.release || !made.is_stream) return nullptr;
    if (made.reservation.read(reservation, RESERVATION) < 0 || made.endpoint.read(endpoint, ENDPOINT) < 0) return nullptr;
    return self.release();
}

// A number of an endpoint, to be written later.
class Number {
  public:
    // Throws Unusual for what is no int, std::bad_alloc.
    Number(PyObject*& slot, int64_t change) : slot_(slot), made_(PyLong_FromLongLong(whole(slot ? slot : throw Unusual()) + change)) {
        if (!made_) throw std::bad_alloc();
    }
    void write() { put(slot_, made_.release()); }

  private:
    PyObject*& slot_;
    Ref made_;
};

// One request at its endpoint.
struct Counted {
    const Counting& mine;
    PyObject *self, *endpoint;

    Counted(const Counting& counting, PyObject* reservation) : mine(counting), self(reservation) {
        if (!PyObject_TypeCheck(self, mine.reservation.type)) throw Unusual();
        endpoint = mine.reservation.of(self, R_ENDPOINT);
    }
    PyObject*& its(size_t field) const { return mine.endpoint.place(endpoint, field); }
    bool is(size_t field) const { return truth(mine.reservation.of(self, field)); }
    void set(size_t field, PyObject* value) const { put(mine.reservation.place(self, field), Py_NewRef(value)); }
    PyObject* unreported() const {
        PyObject* found = mine.endpoint.of(endpoint, E_UNREPORTED);
        return PyDict_CheckExact(found) ? found : throw Unusual();
    }
};

// As Endpoint.admit. 0, or -1 with an exception. Throws Unusual, std::bad_alloc.
int admit(const Counted& one) {
    const Counting& mine = one.mine;
    mine.endpoint.checked(one.endpoint);
    const int64_t uncached = whole(mine.reservation.of(one.self, R_UNCACHED));
    PyObject* started = mine.reservation.of(one.self, R_STARTED_S);
    const double started_s = real(started);
    const bool is_unreported = started_s > real(mine.endpoint.of(one.endpoint, E_REPORT_S)) - mine.report_lag_s;
    if (one.is(R_IS_TRIAL)) throw Unusual();
    PyObject *speed = mine.endpoint.of(one.endpoint, E_SPEED), *unreported = one.unreported();
    double ms = speed == Py_None ? 0 : real(speed);
    if (ms == 0) ms = mine.default_ms_per_token;
    const double kept = std::exp((real(mine.endpoint.of(one.endpoint, E_RECENT_S)) - started_s) / mine.recent_life_s);
    const double recent_ms = real(mine.endpoint.of(one.endpoint, E_RECENT_MS)) * kept + (double(uncached) * ms + mine.decode_ms);
    Number in_flight(one.its(E_IN_FLIGHT), 1), unanswered(one.its(E_UNANSWERED), 1), pending(one.its(E_PENDING), uncached);
    Number tokens(one.its(E_UNREPORTED_TOKENS), is_unreported ? uncached : 0);
    Ref recent(PyFloat_FromDouble(recent_ms));
    if (!recent || (is_unreported && PyDict_SetItem(unreported, one.self, Py_None) < 0)) return -1;
    in_flight.write(), unanswered.write(), pending.write(), tokens.write();
    put(one.its(E_RECENT_MS), recent.release());
    put(one.its(E_RECENT_S), Py_NewRef(started));
    return 0;
}

// As Endpoint.prefilled of one that waits, and Endpoint.release but for telling of it. 0, or -1 with an exception. Throws as above.
int count_down(const Counted& one, bool is_over) {
    const Counting& mine = one.mine;
    mine.endpoint.checked(one.endpoint);
    const bool was_waiting = one.is(R_WAITING);
    const int64_t uncached = was_waiting ? whole(mine.reservation.of(one.self, R_UNCACHED)) : 0;
    PyObject *unreported = one.unreported(), *trial = mine.endpoint.of(one.endpoint, E_TRIAL);
    const int is_unreported = PyDict_Contains(unreported, one.self);
    if (is_unreported < 0) return -1;
    Number unanswered(one.its(E_UNANSWERED), was_waiting ? -1 : 0), pending(one.its(E_PENDING), -uncached);
    Number tokens(one.its(E_UNREPORTED_TOKENS), is_unreported ? -uncached : 0), in_flight(one.its(E_IN_FLIGHT), is_over ? -1 : 0);
    if (is_over && is_unreported && PyDict_DelItem(unreported, one.self) < 0) return -1;
    unanswered.write(), pending.write(), tokens.write(), in_flight.write();
    one.set(R_WAITING, Py_False);
    if (!is_over) return 0;
    one.set(R_CLOSED, Py_True);
    if (trial == one.self) put(one.its(E_TRIAL), Py_NewRef(Py_None));
    return 0;
}

// What `count` returns; 1 if it is the endpoint's own method that has to do it.
template <class Count>
int counted(Count count) {
    return guarded<int>(-1, [&] {
        try {
            return count();
        } catch (const Unusual&) {
            return 1;
        }
    });
}

bool is_ours(const Counting& mine, PyObject* reservation) {
    if (PyObject_TypeCheck(reservation, mine.reservation.type)) return true;
    return PyErr_SetString(PyExc_TypeError, "not a reservation"), false;
}

PyObject* told_endpoint(const Counting& mine, PyObject* reservation, PyObject* method) {
    const Ref endpoint = Ref::borrowed(mine.reservation.place(reservation, R_ENDPOINT));
    if (!endpoint) return PyErr_SetString(PyExc_AttributeError, "endpoint"), nullptr;
    return PyObject_CallMethodOneArg(endpoint.get(), method, reservation);
}

// A flag of a reservation: 0, 1, or -1 with an exception.
int flag(const Counting& mine, PyObject* reservation, size_t field) {
    PyObject* value = mine.reservation.place(reservation, field);
    if (value == nullptr) return PyErr_SetString(PyExc_AttributeError, RESERVATION[field]), -1;
    return PyObject_IsTrue(value);
}

PyObject* take(PyObject* self, PyObject* reservation) {
    const Counting& mine = as_counting(self);
    if (!is_ours(mine, reservation)) return nullptr;
    const int is_taken = flag(mine, reservation, R_IS_TAKEN);
    if (is_taken < 0) return nullptr;
    if (is_taken) Py_RETURN_NONE;
    put(mine.reservation.place(reservation, R_IS_TAKEN), Py_NewRef(Py_True));
    const int done = counted([&] { return admit(Counted(mine, reservation)); });
    if (done > 0) return told_endpoint(mine, reservation, mine.admit);
    return done < 0 ? nullptr : Py_NewRef(Py_None);
}

PyObject* give_back(PyObject* self, PyObject* reservation) {
    const Counting& mine = as_counting(self);
    if (!is_ours(mine, reservation)) return nullptr;
    const int is_taken = flag(mine, reservation, R_IS_TAKEN), is_closed = flag(mine, reservation, R_CLOSED);
    if (is_taken < 0 || is_closed < 0) return nullptr;
    if (!is_taken || is_closed) Py_RETURN_NONE;
    const int done = counted([&] { return count_down(Counted(mine, reservation), true); });
    if (done > 0) return told_endpoint(mine, reservation, mine.release);
    if (done < 0) return nullptr;
    const Ref endpoint = Ref::borrowed(mine.reservation.place(reservation, R_ENDPOINT));
    const Ref tell = Ref::borrowed(mine.endpoint.place(endpoint.get(), E_ON_CHANGE));
    if (!tell) return PyErr_SetString(PyExc_AttributeError, "on_change"), nullptr;
    const Ref told(PyObject_CallOneArg(tell.get(), endpoint.get()));
    return told ? Py_NewRef(Py_None) : nullptr;
}

PyObject* first_byte(PyObject* self, PyObject* const* args, Py_ssize_t number, PyObject* names) {
    const Counting& mine = as_counting(self);
    const bool is_sound = number == 2 && names && PyTuple_GET_SIZE(names) == 1 && PyUnicode_Compare(PyTuple_GET_ITEM(names, 0), mine.is_stream) == 0;
    if (!is_sound) return PyErr_SetString(PyExc_TypeError, "first_byte(now_s, *, is_stream)"), nullptr;
    if (!is_ours(mine, args[0])) return nullptr;
    const int done = counted([&] {
        const Counted one(mine, args[0]);
        mine.endpoint.checked(one.endpoint);
        return one.is(R_WAITING) ? count_down(one, false) : 0;
    });
    if (done < 0) return nullptr;
    if (done > 0 && !Ref(told_endpoint(mine, args[0], mine.prefilled))) return nullptr;
    const int is_stream = PyObject_IsTrue(args[2]), is_idle = is_stream > 0 ? flag(mine, args[0], R_IDLE_START) : 0;
    if (is_stream < 0 || is_idle < 0) return nullptr;
    if (!is_idle) Py_RETURN_NONE;
    const Ref endpoint = Ref::borrowed(mine.reservation.place(args[0], R_ENDPOINT));
    const double now_s = PyFloat_AsDouble(args[1]);
    PyObject *uncached = mine.reservation.place(args[0], R_UNCACHED), *started = mine.reservation.place(args[0], R_STARTED_S);
    if (!endpoint || !uncached || !started) return PyErr_SetString(PyExc_AttributeError, "uncached"), nullptr;
    const double tokens = PyFloat_AsDouble(uncached), started_s = PyFloat_AsDouble(started);
    if (PyErr_Occurred()) return nullptr;
    if (tokens < double(mine.speed_min_tokens)) Py_RETURN_NONE;
    const Ref told(PyObject_CallMethod(endpoint.get(), "learn_speed", "d", (now_s - started_s) * 1000.0 / tokens));
    return told ? Py_NewRef(Py_None) : nullptr;
}

PyMethodDef FUNCTIONS[] = {
    {"take", take, METH_O, "As endpoints.Reservation.take."},
    {"give_back", give_back, METH_O, "As endpoints.Reservation.give_back."},
    {"first_byte", function(first_byte), METH_FASTCALL | METH_KEYWORDS, "As endpoints.Reservation.first_byte."},
};

// The functions as methods for a class, by their names.
PyObject* counting_methods(PyObject* self, PyObject*) {
    Ref all(PyDict_New());
    for (PyMethodDef& one : FUNCTIONS) {
        const Ref made(all ? PyCFunction_New(&one, self) : nullptr), method(made ? PyInstanceMethod_New(made.get()) : nullptr);
        if (!method || PyDict_SetItemString(all.get(), one.ml_name, method.get()) < 0) return nullptr;
    }
    return all.release();
}

PyMethodDef METHODS[] = {
    {"methods", counting_methods, METH_NOARGS, "methods(): take, give_back and first_byte, by name, for a class of reservations."},
    {nullptr, nullptr, 0, nullptr},
};

PyTypeObject CountingType = [] {
    PyTypeObject type{PyVarObject_HEAD_INIT(nullptr, 0)};
    type.tp_name = "quire_router_native.Counting";
    type.tp_doc = "Counting(Reservation, Endpoint, report_lag_s, recent_life_s, default_ms_per_token, decode_ms, speed_min_tokens).";
    type.tp_basicsize = sizeof(Counting);
    type.tp_flags = Py_TPFLAGS_DEFAULT;
    type.tp_new = counting_new;
    type.tp_dealloc = counting_dealloc;
    type.tp_methods = METHODS;
    return type;
}();

}  // namespace
}  // namespace quire

int add_counting(PyObject* module) { return PyModule_AddType(module, &quire::CountingType); }
