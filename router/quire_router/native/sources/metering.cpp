// Metering: what limits.meters reserves of a tenant's meters, settles and shows, one call for each; the loops there are its twins.
//
// All is looked at before the first field is written. What is not of the kind that is reckoned with (a balance of many billions, a meter
// that is counted only) is left to the twins.

#include "slots.h"

namespace quire {
namespace {

enum { M_HELD, M_RESERVED, M_TOTAL, M_SPARE, M_IS_USED, M_WINDOW_S, M_REFUSED_UNTIL_S, M_LIMIT, M_LIMIT_TEXT, M_FREE, NUM_M };
constexpr const char* METER[NUM_M] = {"held", "reserved", "total", "spare", "is_used", "window_s", "refused_until_s", "limit", "limit_text", "free"};
constexpr long long ENOUGH = MOST / 4;  // sums of a few of these are what `whole` takes

struct Metering {
    PyObject_HEAD
    Layout<NUM_M> meter;
    long long only_held;
    PyObject *never, *whole_window;  // 0.0; how long until a minute's limit is there again
};

Metering& as_metering(PyObject* self) { return *reinterpret_cast<Metering*>(self); }

void metering_dealloc(PyObject* self) {
    Metering& mine = as_metering(self);
    Py_XDECREF(mine.meter.type), Py_XDECREF(mine.never), Py_XDECREF(mine.whole_window);
    Py_TYPE(self)->tp_free(self);
}

PyObject* metering_new(PyTypeObject* type, PyObject* args, PyObject*) {
    PyObject* meter;
    long long only_held;
    const char* whole_window;
    if (!PyArg_ParseTuple(args, "OLs", &meter, &only_held, &whole_window)) return nullptr;
    Ref self(type->tp_alloc(type, 0));
    if (!self) return nullptr;
    Metering& made = as_metering(self.get());
    made.only_held = only_held;
    made.never = PyFloat_FromDouble(0.0), made.whole_window = PyUnicode_FromString(whole_window);
    if (!made.never || !made.whole_window || made.meter.read(meter, METER) < 0) return nullptr;
    return self.release();
}

long long small(PyObject* value) {
    const long long number = whole(value);
    if (number > ENOUGH || number < -ENOUGH) throw Unusual();
    return number;
}

PyObject* number(long long value) {
    PyObject* made = PyLong_FromLongLong(value);
    return made ? made : throw std::bad_alloc();
}

// One meter, and what is asked of it.
struct Demand {
    const Metering& mine;
    PyObject* meter;
    long long asked, held, reserved, spare;

    Demand(const Metering& metering, PyObject* item) : mine(metering) {
        if (!PyTuple_CheckExact(item) || PyTuple_GET_SIZE(item) != 2) throw Unusual();
        meter = mine.meter.checked(PyTuple_GET_ITEM(item, 0));
        asked = small(PyTuple_GET_ITEM(item, 1));
        held = small(mine.meter.of(meter, M_HELD)), reserved = small(mine.meter.of(meter, M_RESERVED)), spare = small(mine.meter.of(meter, M_SPARE));
    }
    void set(size_t field, PyObject* owned) const { put(mine.meter.place(meter, field), owned); }
};

constexpr Py_ssize_t MANY = 8;  // there are six meters

// A demand for each; throws Unusual for what is no list or tuple of them, or names a meter twice.
struct Demands {
    Py_ssize_t size;
    alignas(Demand) char room[MANY * sizeof(Demand)];

    Demands(const Metering& mine, PyObject* all) {
        const bool is_list = PyList_CheckExact(all);
        if (!is_list && !PyTuple_CheckExact(all)) throw Unusual();
        size = is_list ? PyList_GET_SIZE(all) : PyTuple_GET_SIZE(all);
        if (size > MANY) throw Unusual();
        for (Py_ssize_t i = 0; i < size; ++i) {
            const Demand* one = new (room + i * sizeof(Demand)) Demand(mine, is_list ? PyList_GET_ITEM(all, i) : PyTuple_GET_ITEM(all, i));
            for (const Demand* other = begin(); other != one; ++other)
                if (other->meter == one->meter) throw Unusual();
        }
    }
    const Demand* begin() const { return reinterpret_cast<const Demand*>(room); }
    const Demand* end() const { return begin() + size; }
};

// What `work` returns; None for the twin.
template <class Work>
PyObject* usual(Work work) {
    return guarded<PyObject*>(nullptr, [&] {
        try {
            return work();
        } catch (const Unusual&) {
            return Py_NewRef(Py_None);
        }
    });
}

PyObject* reserve(PyObject* self, PyObject* asked) {
    return usual([&] {
        const Demands demands(as_metering(self), asked);
        for (const Demand& one : demands)
            if (one.held - one.reserved < one.asked) return PyLong_FromLong(0);
        bool is_low = false;
        for (const Demand& one : demands) {
            one.set(M_RESERVED, number(one.reserved + one.asked));
            one.set(M_IS_USED, Py_NewRef(Py_True));
            is_low = is_low || one.spare > 2 * (one.held - one.reserved - one.asked);
        }
        return PyLong_FromLong(is_low ? 2 : 1);
    });
}

PyObject* settle(PyObject* self, PyObject* const* args, Py_ssize_t count) {
    if (count != 2) return PyErr_SetString(PyExc_TypeError, "settle(demands, spent)"), nullptr;
    return usual([&] {
        const Metering& mine = as_metering(self);
        const Demands demands(mine, args[0]);
        const long long spent = small(args[1]);
        long long totals[MANY] = {}, gone[MANY] = {};
        Py_ssize_t at = 0;
        for (const Demand& one : demands) {
            gone[at] = whole(mine.meter.of(one.meter, M_WINDOW_S)) == mine.only_held ? 0 : spent;
            totals[at++] = whole(mine.meter.of(one.meter, M_TOTAL));
        }
        bool is_idle = false;
        at = 0;
        for (const Demand& one : demands) {
            const long long held = one.held - gone[at], reserved = one.reserved - one.asked;
            one.set(M_TOTAL, number(totals[at] + gone[at]));
            one.set(M_RESERVED, number(reserved));
            one.set(M_HELD, number(held));
            if (one.asked > gone[at]) one.set(M_REFUSED_UNTIL_S, Py_NewRef(mine.never));
            is_idle = is_idle || (one.spare == 0 && held > reserved);
            ++at;
        }
        return PyBool_FromLong(is_idle);
    });
}

PyObject* show(PyObject* self, PyObject* const* args, Py_ssize_t count) {
    if (count != 3) return PyErr_SetString(PyExc_TypeError, "show(headers, meter, names)"), nullptr;
    return usual([&] {
        const Metering& mine = as_metering(self);
        PyObject *headers = args[0], *meter = mine.meter.checked(args[1]), *names = args[2];
        if (!PyDict_CheckExact(headers) || !PyTuple_CheckExact(names) || PyTuple_GET_SIZE(names) != 3) throw Unusual();
        const long long limit = whole(mine.meter.of(meter, M_LIMIT));
        PyObject* known = mine.meter.of(meter, M_FREE);
        const long long free = known == Py_None ? limit - whole(mine.meter.of(meter, M_TOTAL)) : whole(known);
        const long long left = free + whole(mine.meter.of(meter, M_HELD)) - whole(mine.meter.of(meter, M_RESERVED));
        const Ref text(PyUnicode_FromFormat("%lld", left < 0 ? 0 : left < limit ? left : limit));
        const Ref told = Ref::borrowed(mine.meter.of(meter, M_LIMIT_TEXT));
        const bool is_set = text && PyDict_SetItem(headers, PyTuple_GET_ITEM(names, 0), told.get()) == 0 &&
                            PyDict_SetItem(headers, PyTuple_GET_ITEM(names, 1), text.get()) == 0 &&
                            PyDict_SetItem(headers, PyTuple_GET_ITEM(names, 2), mine.whole_window) == 0;
        return is_set ? Py_NewRef(Py_True) : nullptr;
    });
}

PyMethodDef METHODS[] = {
    {"reserve", reserve, METH_O, "reserve(demands): 0 if not all of it is at hand, 1 if it is reserved, 2 if that leaves little. None: ask the twin."},
    {"settle", function(settle), METH_FASTCALL, "settle(demands, spent): so much of each; whether something held is asked for by nobody. None: ask the twin."},
    {"show", function(show), METH_FASTCALL, "show(headers, meter, names): a minute's limit. None: ask the twin."},
    {nullptr, nullptr, 0, nullptr},
};

PyTypeObject MeteringType = [] {
    PyTypeObject type{PyVarObject_HEAD_INIT(nullptr, 0)};
    type.tp_name = "quire_router_native.Metering";
    type.tp_doc = "Metering(Meter, only_held, whole_window).";
    type.tp_basicsize = sizeof(Metering);
    type.tp_flags = Py_TPFLAGS_DEFAULT;
    type.tp_new = metering_new;
    type.tp_dealloc = metering_dealloc;
    type.tp_methods = METHODS;
    return type;
}();

}  // namespace
}  // namespace quire

int add_metering(PyObject* module) { return PyModule_AddType(module, &quire::MeteringType); }
