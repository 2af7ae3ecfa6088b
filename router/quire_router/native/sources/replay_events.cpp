// Takes the usual events of a stream out of its record's comment lines, and notes those, on the fields of the record's Python object.
//
// Usual: lines ": t <choice> <ids>" and then data. The twin (`replay.Replay`) takes all else, and owns every field.

#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "python_ref.h"
#include "replay_events.h"

namespace quire {
namespace {

constexpr std::string_view TOKENS = ": t ";

struct Interned {
    PyObject *usage, *output, *num_bytes, *ids, *finished, *last_choice, *last, *num_events, *died;
};
Interned names;

struct Said {
    std::string_view choice, ids;
};

struct Events {
    std::vector<Said> said;
    std::string kept;           // what the client gets, if that is not all
    std::string_view last;      // the last event that counts, as the client gets it
    Py_ssize_t num_events = 0;  // that count
    size_t said_bytes = 0;
    bool is_all = true;  // nothing was taken out
};

// Look at events that all end with an empty line. False: one of them is not usual.
bool read_events(std::string_view part, Events* events) {
    for (size_t start = 0; start < part.size();) {
        const size_t end = part.find("\n\n", start) + 2;
        std::string_view event = part.substr(start, end - start);
        bool is_cut = false;
        while (event.substr(0, 2) == ": ") {
            if (event.substr(0, TOKENS.size()) != TOKENS) return false;
            const size_t line = event.find('\n');
            const std::string_view said = event.substr(TOKENS.size(), line - TOKENS.size());
            const size_t space = said.find(' ');
            const bool has_ids = space != std::string_view::npos;
            events->said.push_back({has_ids ? said.substr(0, space) : said, has_ids ? said.substr(space + 1) : std::string_view()});
            events->said_bytes += said.size();
            event.remove_prefix(line + 1);
            is_cut = true;
        }
        if (is_cut && events->is_all) {
            events->is_all = false;
            events->kept.reserve(part.size());
            events->kept.assign(part.substr(0, start));
        }
        if (is_cut && event.size() == 1) {
            start = end;
            continue;  // comment lines only
        }
        if (event.front() == ':') return false;
        ++events->num_events;
        events->last = event;
        if (!events->is_all) events->kept.append(event);
        start = end;
    }
    return true;
}

Py_ssize_t number_of(PyObject* replay, PyObject* name) {
    PyObject* value = PyObject_GetAttr(replay, name);
    if (value == nullptr) return -1;
    const Py_ssize_t number = PyLong_AsSsize_t(value);
    Py_DECREF(value);
    return number;
}

bool set_number(PyObject* object, PyObject* name, Py_ssize_t number) {
    PyObject* value = PyLong_FromSsize_t(number);
    if (value == nullptr) return false;
    const int failed = PyObject_SetAttr(object, name, value);
    Py_DECREF(value);
    return failed == 0;
}

bool set_bytes(PyObject* object, PyObject* name, std::string_view text) {
    PyObject* value = PyBytes_FromStringAndSize(text.data(), Py_ssize_t(text.size()));
    if (value == nullptr) return false;
    const int failed = PyObject_SetAttr(object, name, value);
    Py_DECREF(value);
    return failed == 0;
}

// 1: they may be remembered; 0: there may be no room; -1: an exception is set.
int has_room(PyObject* replay, const Events& events, PyObject* ids, Py_ssize_t held, Py_ssize_t max_bytes, Py_ssize_t max_choices) {
    PyObject* finished = PyObject_GetAttr(replay, names.finished);
    if (finished == nullptr) return -1;
    const Py_ssize_t num_finished = PySet_Size(finished);
    Py_DECREF(finished);
    if (num_finished < 0) return -1;
    if (!PyDict_CheckExact(ids)) return 0;
    return held <= max_bytes - Py_ssize_t(events.said_bytes) && num_finished <= max_choices &&
           PyDict_GET_SIZE(ids) + Py_ssize_t(events.said.size()) <= max_choices;
}

bool append(PyObject* held, std::string_view ids) {
    const Py_ssize_t size = PyByteArray_GET_SIZE(held);
    if (PyByteArray_Resize(held, size + 1 + Py_ssize_t(ids.size())) < 0) return false;
    char* at = PyByteArray_AS_STRING(held) + size;
    *at = ',';
    if (!ids.empty()) std::memcpy(at + 1, ids.data(), ids.size());
    return true;
}

// Remember the tokens of one line.
bool keep(PyObject* ids_of, const Said& said) {
    PyObject* choice = PyBytes_FromStringAndSize(said.choice.data(), Py_ssize_t(said.choice.size()));
    if (choice == nullptr) return false;
    PyObject* held = PyDict_GetItemWithError(ids_of, choice);
    bool done;
    if (held != nullptr && PyByteArray_CheckExact(held)) {
        done = append(held, said.ids);
    } else if (held != nullptr || PyErr_Occurred()) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "ids are kept in bytearrays");
        done = false;
    } else {
        PyObject* made = PyByteArray_FromStringAndSize(said.ids.data(), Py_ssize_t(said.ids.size()));
        done = made != nullptr && PyDict_SetItem(ids_of, choice, made) == 0;
        Py_XDECREF(made);
    }
    Py_DECREF(choice);
    return done;
}

Py_ssize_t num_tokens(const Events& events) {
    Py_ssize_t number = 0;
    for (const Said& said : events.said) {
        ++number;
        for (char c : said.ids) number += c == ',';
    }
    return number;
}

// Note what was said. 1: done; 0: nothing was changed, there may be no room; -1: an exception is set.
int note(PyObject* replay, const Events& events, Py_ssize_t max_bytes, Py_ssize_t max_choices) {
    const Py_ssize_t held = number_of(replay, names.num_bytes);
    if (held < 0 && PyErr_Occurred()) return -1;
    PyObject* ids_of = PyObject_GetAttr(replay, names.ids);
    if (ids_of == nullptr) return -1;
    int done = has_room(replay, events, ids_of, held, max_bytes, max_choices);
    if (done == 1) {
        for (const Said& said : events.said)
            if (!keep(ids_of, said)) {
                done = -1;
                break;
            }
    }
    Py_DECREF(ids_of);
    if (done != 1) return done;
    PyObject* usage = PyObject_GetAttr(replay, names.usage);
    if (usage == nullptr) return -1;
    const Py_ssize_t output = number_of(usage, names.output);
    const bool is_noted = !PyErr_Occurred() && set_number(usage, names.output, output + num_tokens(events)) &&
                          set_number(replay, names.num_bytes, held + Py_ssize_t(events.said_bytes)) &&
                          set_bytes(replay, names.last_choice, events.said.back().choice);
    Py_DECREF(usage);
    return is_noted ? 1 : -1;
}

}  // namespace

PyObject* take_usual(PyObject* replay, PyObject* given, Py_ssize_t max_bytes, Py_ssize_t max_choices, std::string_view mark) {
    const std::string_view part(PyBytes_AS_STRING(given), size_t(PyBytes_GET_SIZE(given)));
    if (part.size() < 2 || part.substr(part.size() - 2) != "\n\n" || part.find("\n\n\n") != std::string_view::npos) Py_RETURN_NONE;
    if (memmem(part.data(), part.size(), mark.data(), mark.size()) != nullptr) Py_RETURN_NONE;
    Events events;
    if (!read_events(part, &events)) Py_RETURN_NONE;
    PyObject* died = PyObject_GetAttr(replay, names.died);
    if (died == nullptr) return nullptr;
    const bool is_alive = died == Py_False;
    Py_DECREF(died);
    if (!is_alive) Py_RETURN_NONE;
    if (!events.said.empty()) {
        const int noted = note(replay, events, max_bytes, max_choices);
        if (noted < 0) return nullptr;
        if (noted == 0) Py_RETURN_NONE;
    }
    if (events.num_events) {
        const Py_ssize_t before = number_of(replay, names.num_events);
        if (PyErr_Occurred() || !set_number(replay, names.num_events, before + events.num_events)) return nullptr;
        if (!set_bytes(replay, names.last, events.last)) return nullptr;
    }
    if (events.is_all) return Py_NewRef(given);
    return PyBytes_FromStringAndSize(events.kept.data(), Py_ssize_t(events.kept.size()));
}

namespace {

PyObject* take_events(PyObject*, PyObject* const* args, Py_ssize_t count) {
    if (count != 5 || !PyBytes_Check(args[1]) || !PyBytes_Check(args[4])) {
        PyErr_SetString(PyExc_TypeError, "take_events(replay, part: bytes, max_bytes, max_choices, mark: bytes)");
        return nullptr;
    }
    const std::string_view mark(PyBytes_AS_STRING(args[4]), size_t(PyBytes_GET_SIZE(args[4])));
    const Py_ssize_t max_bytes = PyLong_AsSsize_t(args[2]), max_choices = PyLong_AsSsize_t(args[3]);
    if (PyErr_Occurred()) return nullptr;
    return guarded<PyObject*>(nullptr, [&] { return take_usual(args[0], args[1], max_bytes, max_choices, mark); });
}

PyMethodDef METHODS[] = {
    {"take_events", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(take_events)), METH_FASTCALL,
     "take_events(replay, part, max_bytes, max_choices, mark): as `Replay.take`; None: not all of it is usual, and nothing was noted."},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace
}  // namespace quire

int add_replay_events(PyObject* module) {
    using quire::names;
    const std::pair<PyObject**, const char*> wanted[] = {
        {&names.usage, "usage"},         {&names.output, "output"}, {&names.num_bytes, "_num_bytes"},   {&names.ids, "_ids"},
        {&names.finished, "_finished"},  {&names.last_choice, "_last_choice"}, {&names.last, "_last"}, {&names.num_events, "num_events"},
        {&names.died, "died"},
    };
    for (const auto& [at, text] : wanted) {
        *at = PyUnicode_InternFromString(text);
        if (*at == nullptr) return -1;
    }
    return PyModule_AddFunctions(module, quire::METHODS);
}
