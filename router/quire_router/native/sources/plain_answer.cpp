// Writes an answer that is whole, of headers that are plain text. Anything else is written in Python.

#include <cstring>
#include <ctime>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>

#include "hash.h"
#include "http_headers.h"
#include "python_ref.h"

namespace quire {
namespace {

constexpr size_t MAX_NAMES = 256, MAX_NAME_CHARS = 64, MAX_ADDABLE = 8;
constexpr Py_ssize_t NUM_OWN = 3;

struct Hash {  // keyed: strangers choose the names
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return hash_bytes(text.data(), text.size(), 0); }
};

struct Name {
    bool passes = false, is_connection = false, is_type = false;
};
using Names = std::unordered_map<std::string, Name, Hash, std::equal_to<>>;

struct Writer {
    PyObject_HEAD
    PyObject* passes;    // str -> bool
    PyObject* start_of;  // (status, second) -> bytes
    PyObject* own;       // tuple of NUM_OWN names
    Names* names;
    PyObject* status;  // of `start`, the beginning of the last answer
    time_t second;
    PyObject* start;
    PyObject* addable[MAX_ADDABLE];  // names that layers added before and may add; it holds them, so none is at another's place
    size_t num_addable;
};

enum class Outcome { PLAIN, ODD, FAILED };

bool as_ascii(PyObject* text, std::string_view& found) {
    if (!PyUnicode_Check(text) || !PyUnicode_IS_ASCII(text)) return false;
    found = {static_cast<const char*>(PyUnicode_DATA(text)), size_t(PyUnicode_GET_LENGTH(text))};
    return true;
}

bool is_value(std::string_view text) {
    for (char c : text)
        if ((c < 0x20 && c != '\t') || c == 0x7f) return false;
    return true;
}

bool is_name(std::string_view text) {
    if (text.empty() || text.size() > MAX_NAME_CHARS) return false;
    for (char c : text)
        if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_')) return false;
    return true;
}

bool equals_lower(std::string_view text, std::string_view lowered) {
    if (text.size() != lowered.size()) return false;
    for (size_t i = 0; i < text.size(); ++i)
        if ((text[i] >= 'A' && text[i] <= 'Z' ? text[i] + 32 : text[i]) != lowered[i]) return false;
    return true;
}

// What is known of a name; nullptr with an exception set: failed.
const Name* name_at(Writer* self, std::string_view raw) {
    auto found = self->names->find(raw);
    if (found != self->names->end()) return &found->second;
    const Ref text(PyUnicode_FromStringAndSize(raw.data(), Py_ssize_t(raw.size())));
    const Ref said(text ? PyObject_CallOneArg(self->passes, text.get()) : nullptr);
    const int passes = said ? PyObject_IsTrue(said.get()) : -1;
    if (passes < 0) return nullptr;
    if (self->names->size() >= MAX_NAMES) self->names->clear();
    const Name name{passes != 0, equals_lower(raw, "connection"), equals_lower(raw, "content-type")};
    return &self->names->insert_or_assign(std::string(raw), name).first->second;
}

void add(std::string& out, std::string_view name, std::string_view value) { out.append(name).append(": ").append(value).append("\r\n"); }

bool equals_in_any_case(std::string_view one, std::string_view other) {
    if (one.size() != other.size()) return false;
    for (size_t i = 0; i < one.size(); ++i) {
        const auto lowered = [](char c) { return c >= 'A' && c <= 'Z' ? char(c + 32) : c; };
        if (lowered(one[i]) != lowered(other[i])) return false;
    }
    return true;
}

// Whether the dict has the name, in any case.
bool has_name(PyObject* added, std::string_view name) {
    PyObject *key, *value;
    Py_ssize_t at = 0;
    while (PyDict_Next(added, &at, &key, &value)) {
        std::string_view known;
        if (as_ascii(key, known) && equals_in_any_case(known, name)) return true;
    }
    return false;
}

Outcome add_header(
    Writer* self, std::string_view name, std::string_view value, PyObject* added, std::string& out, bool& has_type) {
    if (!is_name(name) || !is_value(value)) return Outcome::ODD;
    const Name* known = name_at(self, name);
    if (known == nullptr) return Outcome::FAILED;
    if (known->is_connection && !equals_lower(value, "keep-alive")) return Outcome::ODD;  // it may name others
    if (!known->passes) return Outcome::PLAIN;
    if (has_name(added, name)) return Outcome::ODD;  // what was added takes its place
    has_type |= known->is_type;
    add(out, name, value);
    return Outcome::PLAIN;
}

Outcome add_item(Writer* self, PyObject* item, PyObject* added, std::string& out, bool& has_type) {
    std::string_view name, value;
    if (!PyTuple_CheckExact(item) || PyTuple_GET_SIZE(item) != 2) return Outcome::ODD;
    if (!as_ascii(PyTuple_GET_ITEM(item, 0), name) || !as_ascii(PyTuple_GET_ITEM(item, 1), value)) return Outcome::ODD;
    return add_header(self, name, value, added, out, has_type);
}

// Those of an answer that was read here.
Outcome add_read(Writer* self, const Headers& headers, PyObject* added, std::string& out, bool& has_type) {
    Outcome outcome = Outcome::PLAIN;
    for (Py_ssize_t i = 0; outcome == Outcome::PLAIN && i < Py_SIZE(&headers); ++i)
        outcome = add_header(self, headers.name(i), headers.value(i), added, out, has_type);
    return outcome;
}

Outcome add_headers(Writer* self, PyObject* headers, PyObject* added, std::string& out, bool& has_type) {
    if (const Headers* read = as_headers(headers)) return add_read(self, *read, added, out, has_type);
    const Ref items(PyObject_CallMethod(headers, "items", nullptr));
    const Ref each(items ? PyObject_GetIter(items.get()) : nullptr);
    if (!each) return Outcome::FAILED;
    Outcome outcome = Outcome::PLAIN;
    while (outcome == Outcome::PLAIN) {
        const Ref item(PyIter_Next(each.get()));
        if (!item) {
            if (PyErr_Occurred()) outcome = Outcome::FAILED;
            break;
        }
        outcome = add_item(self, item.get(), added, out, has_type);
    }
    return outcome;
}

PyObject* joined(std::string_view start, std::string_view head, std::string_view body) {
    PyObject* whole = PyBytes_FromStringAndSize(nullptr, Py_ssize_t(start.size() + head.size() + 2 + body.size()));
    if (whole == nullptr) return nullptr;
    char* at = PyBytes_AS_STRING(whole);
    for (std::string_view part : {start, head, std::string_view("\r\n"), body}) {
        std::memcpy(at, part.data(), part.size());
        at += part.size();
    }
    return whole;
}

std::string_view of_bytes(PyObject* data) { return {PyBytes_AS_STRING(data), size_t(PyBytes_GET_SIZE(data))}; }

// The lines that all answers of a status and a second begin with; a new reference, nullptr: failed.
PyObject* start_of(Writer* self, PyObject* status) {
    const time_t now = std::time(nullptr);
    if (self->start == nullptr || now != self->second || status != self->status) {
        PyObject* made = PyObject_CallFunction(self->start_of, "OL", status, static_cast<long long>(now));
        if (made == nullptr || !PyBytes_CheckExact(made)) {
            if (made != nullptr) PyErr_SetString(PyExc_TypeError, "an answer begins with bytes");
            Py_XDECREF(made);
            return nullptr;
        }
        self->second = now;
        Py_XSETREF(self->status, Py_NewRef(status));
        Py_XSETREF(self->start, made);
    }
    return Py_NewRef(self->start);
}

Outcome add_own(Writer* self, PyObject* const* values, std::string& out) {
    for (Py_ssize_t i = 0; i < NUM_OWN; ++i) {
        std::string_view name, value;
        as_ascii(PyTuple_GET_ITEM(self->own, i), name);
        if (!as_ascii(values[i], value) || !is_value(value)) return Outcome::ODD;
        add(out, name, value);
    }
    return Outcome::PLAIN;
}

// Whether a layer may add a header of this name: none of `own`, no type of the body.
bool is_addable(Writer* self, PyObject* key) {
    for (size_t i = 0; i < self->num_addable; ++i)
        if (self->addable[i] == key) return true;
    std::string_view name, own;
    if (!as_ascii(key, name) || !is_name(name)) return false;
    for (Py_ssize_t i = 0; i < NUM_OWN; ++i)
        if (as_ascii(PyTuple_GET_ITEM(self->own, i), own) && equals_in_any_case(name, own)) return false;
    for (std::string_view other : {"connection", "content-length", "content-type", "date", "server"})
        if (equals_lower(name, other)) return false;
    if (self->num_addable < MAX_ADDABLE) self->addable[self->num_addable++] = Py_NewRef(key);
    return true;
}

// Names and values that the router's layers add.
Outcome add_added(Writer* self, PyObject* added, std::string& out) {
    PyObject *key, *text;
    Py_ssize_t at = 0;
    while (PyDict_Next(added, &at, &key, &text)) {
        std::string_view name, value;
        if (!is_addable(self, key) || !as_ascii(key, name) || !as_ascii(text, value) || !is_value(value)) return Outcome::ODD;
        add(out, name, value);
    }
    return Outcome::PLAIN;
}

PyObject* written(Writer* self, PyObject* status, PyObject* headers, PyObject* const* own, PyObject* body, PyObject* added) {
    std::string out;
    out.reserve(512);
    bool has_type = false;
    add(out, "Content-Length", std::to_string(PyBytes_GET_SIZE(body)));
    Outcome outcome = add_headers(self, headers, added, out, has_type);
    if (outcome == Outcome::PLAIN) outcome = add_own(self, own, out);
    if (outcome == Outcome::PLAIN) outcome = add_added(self, added, out);
    if (outcome == Outcome::FAILED) return nullptr;
    if (outcome == Outcome::ODD) Py_RETURN_NONE;
    if (!has_type && PyBytes_GET_SIZE(body)) add(out, "Content-Type", "application/octet-stream");
    PyObject* start = start_of(self, status);
    PyObject* whole = start == nullptr ? nullptr : joined(of_bytes(start), out, of_bytes(body));
    Py_XDECREF(start);
    return whole;
}

PyObject* write(PyObject* object, PyObject* const* args, Py_ssize_t count) {
    if (count != 4 + NUM_OWN || !PyLong_CheckExact(args[0]) || !PyBytes_CheckExact(args[2 + NUM_OWN]) ||
        !PyDict_CheckExact(args[3 + NUM_OWN])) {
        PyErr_SetString(PyExc_TypeError, "write(status: int, headers, a value for each name of our own, body: bytes, added: dict)");
        return nullptr;
    }
    try {
        return written(reinterpret_cast<Writer*>(object), args[0], args[1], args + 2, args[2 + NUM_OWN], args[3 + NUM_OWN]);
    } catch (const std::bad_alloc&) {
        return PyErr_NoMemory();
    }
}

PyObject* make(PyTypeObject* type, PyObject* args, PyObject*) {
    PyObject *passes, *start_of, *own;
    if (!PyArg_ParseTuple(args, "OOO!", &passes, &start_of, &PyTuple_Type, &own)) return nullptr;
    bool are_names = PyTuple_GET_SIZE(own) == NUM_OWN;
    for (Py_ssize_t i = 0; are_names && i < NUM_OWN; ++i) {
        std::string_view name;
        are_names = as_ascii(PyTuple_GET_ITEM(own, i), name) && is_name(name);
    }
    if (!are_names) {
        PyErr_SetString(PyExc_ValueError, "the last argument is three names");
        return nullptr;
    }
    auto names = std::unique_ptr<Names>(new (std::nothrow) Names);
    if (!names) return PyErr_NoMemory();
    auto* self = reinterpret_cast<Writer*>(type->tp_alloc(type, 0));
    if (self == nullptr) return nullptr;
    self->passes = Py_NewRef(passes);
    self->start_of = Py_NewRef(start_of);
    self->own = Py_NewRef(own);
    self->status = self->start = nullptr;
    self->second = 0;
    self->num_addable = 0;
    self->names = names.release();
    return reinterpret_cast<PyObject*>(self);
}

void end(PyObject* object) {
    auto* self = reinterpret_cast<Writer*>(object);
    PyTypeObject* type = Py_TYPE(object);
    delete self->names;
    for (PyObject* held : {self->passes, self->start_of, self->own, self->status, self->start}) Py_XDECREF(held);
    for (size_t i = 0; i < self->num_addable; ++i) Py_DECREF(self->addable[i]);
    type->tp_free(object);
    Py_DECREF(type);
}

PyMethodDef METHODS[] = {
    {"write", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(write)), METH_FASTCALL,
     "write(status, headers, *own, body, added): the first lines, Content-Length, those of `headers` that pass, our own of these values, "
     "the names and values of `added`, and the body; None: something in it is not plain."},
    {nullptr, nullptr, 0, nullptr},
};

PyType_Slot SLOTS[] = {
    {Py_tp_new, reinterpret_cast<void*>(make)},
    {Py_tp_dealloc, reinterpret_cast<void*>(end)},
    {Py_tp_methods, METHODS},
    {Py_tp_doc, const_cast<char*>("AnswerWriter(passes, start_of, own): writes whole answers. passes(name): whether a worker's header goes to "
                                  "clients; start_of(status, second): what answers begin with; own: three names of our own.")},
    {0, nullptr},
};
PyType_Spec SPEC = {"quire_router_native.AnswerWriter", sizeof(Writer), 0, Py_TPFLAGS_DEFAULT, SLOTS};

}  // namespace
}  // namespace quire

int add_plain_answer(PyObject* module) {
    PyObject* type = PyType_FromSpec(&quire::SPEC);
    if (type == nullptr) return -1;
    const int added = PyModule_AddObjectRef(module, "AnswerWriter", type);
    Py_DECREF(type);
    return added;
}
