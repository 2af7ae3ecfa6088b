// Writes an answer that is whole, of headers that are plain text. Anything else is written in Python.

#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>

#include "parts.h"

namespace quire {
namespace {

constexpr size_t MAX_NAMES = 256, MAX_NAME_CHARS = 64;

struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
};

struct Name {
    bool passes = false, is_connection = false, is_type = false;
};
using Names = std::unordered_map<std::string, Name, Hash, std::equal_to<>>;

struct Writer {
    PyObject_HEAD
    PyObject* passes;  // str -> bool
    Names* names;
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
const Name* name_at(Writer* self, PyObject* text, std::string_view raw) {
    auto found = self->names->find(raw);
    if (found != self->names->end()) return &found->second;
    PyObject* said = PyObject_CallOneArg(self->passes, text);
    const int passes = said == nullptr ? -1 : PyObject_IsTrue(said);
    Py_XDECREF(said);
    if (passes < 0) return nullptr;
    if (self->names->size() >= MAX_NAMES) self->names->clear();
    const Name name{passes != 0, equals_lower(raw, "connection"), equals_lower(raw, "content-type")};
    return &self->names->insert_or_assign(std::string(raw), name).first->second;
}

void add(std::string& out, std::string_view name, std::string_view value) { out.append(name).append(": ").append(value).append("\r\n"); }

Outcome add_header(Writer* self, PyObject* item, std::string& out, bool& has_type) {
    std::string_view name, value;
    if (!PyTuple_CheckExact(item) || PyTuple_GET_SIZE(item) != 2) return Outcome::ODD;
    if (!as_ascii(PyTuple_GET_ITEM(item, 0), name) || !is_name(name)) return Outcome::ODD;
    if (!as_ascii(PyTuple_GET_ITEM(item, 1), value) || !is_value(value)) return Outcome::ODD;
    const Name* known = name_at(self, PyTuple_GET_ITEM(item, 0), name);
    if (known == nullptr) return Outcome::FAILED;
    if (known->is_connection && !equals_lower(value, "keep-alive")) return Outcome::ODD;  // it may name others
    if (!known->passes) return Outcome::PLAIN;
    has_type |= known->is_type;
    add(out, name, value);
    return Outcome::PLAIN;
}

Outcome add_headers(Writer* self, PyObject* headers, std::string& out, bool& has_type) {
    PyObject* items = PyObject_CallMethod(headers, "items", nullptr);
    PyObject* each = items == nullptr ? nullptr : PyObject_GetIter(items);
    Py_XDECREF(items);
    if (each == nullptr) return Outcome::FAILED;
    Outcome outcome = Outcome::PLAIN;
    while (outcome == Outcome::PLAIN) {
        PyObject* item = PyIter_Next(each);
        if (item == nullptr) {
            if (PyErr_Occurred()) outcome = Outcome::FAILED;
            break;
        }
        outcome = add_header(self, item, out, has_type);
        Py_DECREF(item);
    }
    Py_DECREF(each);
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

PyObject* written(Writer* self, PyObject* start, PyObject* headers, PyObject* own, PyObject* body) {
    std::string out;
    out.reserve(512);
    bool has_type = false;
    add(out, "Content-Length", std::to_string(PyBytes_GET_SIZE(body)));
    Outcome outcome = add_headers(self, headers, out, has_type);
    for (Py_ssize_t i = 0; outcome == Outcome::PLAIN && i < PyTuple_GET_SIZE(own); ++i) {
        PyObject* pair = PyTuple_GET_ITEM(own, i);
        std::string_view name, value;
        const bool is_plain = PyTuple_CheckExact(pair) && PyTuple_GET_SIZE(pair) == 2 && as_ascii(PyTuple_GET_ITEM(pair, 0), name) &&
                              is_name(name) && as_ascii(PyTuple_GET_ITEM(pair, 1), value) && is_value(value);
        if (is_plain) {
            add(out, name, value);
        } else {
            outcome = Outcome::ODD;
        }
    }
    if (outcome == Outcome::FAILED) return nullptr;
    if (outcome == Outcome::ODD) Py_RETURN_NONE;
    if (!has_type && PyBytes_GET_SIZE(body)) add(out, "Content-Type", "application/octet-stream");
    return joined(of_bytes(start), out, of_bytes(body));
}

PyObject* write(PyObject* object, PyObject* const* args, Py_ssize_t count) {
    if (count != 4 || !PyBytes_CheckExact(args[0]) || !PyTuple_CheckExact(args[2]) || !PyBytes_CheckExact(args[3])) {
        PyErr_SetString(PyExc_TypeError, "write(start: bytes, headers, own: tuple, body: bytes)");
        return nullptr;
    }
    try {
        return written(reinterpret_cast<Writer*>(object), args[0], args[1], args[2], args[3]);
    } catch (const std::bad_alloc&) {
        return PyErr_NoMemory();
    }
}

PyObject* make(PyTypeObject* type, PyObject* args, PyObject*) {
    PyObject* passes;
    if (!PyArg_ParseTuple(args, "O", &passes)) return nullptr;
    auto names = std::unique_ptr<Names>(new (std::nothrow) Names);
    if (!names) return PyErr_NoMemory();
    auto* self = reinterpret_cast<Writer*>(type->tp_alloc(type, 0));
    if (self == nullptr) return nullptr;
    self->passes = Py_NewRef(passes);
    self->names = names.release();
    return reinterpret_cast<PyObject*>(self);
}

void end(PyObject* object) {
    auto* self = reinterpret_cast<Writer*>(object);
    PyTypeObject* type = Py_TYPE(object);
    delete self->names;
    Py_XDECREF(self->passes);
    type->tp_free(object);
    Py_DECREF(type);
}

PyMethodDef METHODS[] = {
    {"write", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(write)), METH_FASTCALL,
     "write(start, headers, own, body): `start`, Content-Length, those of `headers` that pass, the pairs of `own`, and the body; None: "
     "something in it is not plain."},
    {nullptr, nullptr, 0, nullptr},
};

PyType_Slot SLOTS[] = {
    {Py_tp_new, reinterpret_cast<void*>(make)},
    {Py_tp_dealloc, reinterpret_cast<void*>(end)},
    {Py_tp_methods, METHODS},
    {Py_tp_doc, const_cast<char*>("AnswerWriter(passes): writes whole answers; passes(name) says whether a worker's header goes to clients.")},
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
