// Writes a request to a worker in one piece: the head from a client's headers and our own, and the body.
//
// Takes only what is plain; the twin in Python (`request_heads`) writes all else, and refuses what must not be written.

#include <cstring>
#include <memory>
#include <string>
#include <unordered_set>

#include "http_headers.h"
#include "http_text.h"
#include "python_ref.h"

namespace quire {
namespace {

constexpr size_t MAX_KNOWN_NAME = 64;

struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
};
using Names = std::unordered_set<std::string, Hash, std::equal_to<>>;

struct Rules {
    Names ends;
    Names keys;
    std::string prefix;
    std::string id_name;  // of the header with the request's id
};

struct RequestHeads {
    PyObject_HEAD
    Rules* rules;
};

// The characters of an ASCII str; nothing for any other object.
bool ascii_of(PyObject* object, std::string_view* text) {
    if (!PyUnicode_Check(object) || !PyUnicode_IS_COMPACT_ASCII(object)) {
        // a subclass of str keeps its characters apart
        if (!PyUnicode_Check(object) || PyUnicode_READY(object) < 0 || !PyUnicode_IS_ASCII(object)) return false;
    }
    *text = {static_cast<const char*>(PyUnicode_DATA(object)), size_t(PyUnicode_GET_LENGTH(object))};
    return true;
}

bool is_plain_name(std::string_view name) {
    if (name.empty()) return false;
    for (char c : name)
        if (!is_name_char(static_cast<unsigned char>(c))) return false;
    return true;
}

bool is_plain_value(std::string_view value) {
    for (char c : value)
        if (!is_value_char(static_cast<unsigned char>(c))) return false;
    return true;
}

void write_line(std::string& out, std::string_view name, std::string_view value) {
    out.append(name).append(": ", 2).append(value).append("\r\n", 2);
}

enum class Way { PASSES, IS_A_KEY, ENDS };

Way way_of(const Rules& rules, std::string_view name) {
    if (name.size() >= rules.prefix.size() && same_name(name.substr(0, rules.prefix.size()), rules.prefix)) return Way::ENDS;
    if (name.size() > MAX_KNOWN_NAME) return Way::PASSES;
    char lower[MAX_KNOWN_NAME];
    for (size_t i = 0; i < name.size(); ++i) lower[i] = lower_of(name[i]);
    const std::string_view known(lower, name.size());
    if (rules.ends.contains(known)) return Way::ENDS;
    return rules.keys.contains(known) ? Way::IS_A_KEY : Way::PASSES;
}

// Whether a header of the client's could be written, or was left out. Its name is a token.
bool pass(std::string& out, const Rules& rules, std::string_view name, std::string_view value, bool keep_key) {
    const Way way = way_of(rules, name);
    // what a client declares to be of its connection only goes as well: seldom anything that would have passed
    if (way == Way::ENDS) return !same_name(name, "connection") || same_name(stripped(value), "keep-alive");
    if (way == Way::IS_A_KEY && !keep_key) return true;
    if (!is_plain_value(value)) return false;
    write_line(out, name, value);
    return true;
}

// Whether the client's headers could be written, as they were read.
bool write_read(std::string& out, const Rules& rules, const Headers& headers, bool keep_key) {
    for (Py_ssize_t i = 0; i < Py_SIZE(&headers); ++i)
        if (!pass(out, rules, headers.name(i), headers.value(i), keep_key)) return false;
    return true;
}

// Whether the client's headers could be written, of any map.
bool write_passed(std::string& out, const Rules& rules, PyObject* headers, bool keep_key) {
    if (const Headers* read = as_headers(headers)) return write_read(out, rules, *read, keep_key);
    const Ref items(PyObject_CallMethod(headers, "items", nullptr));
    const Ref iterator(items ? PyObject_GetIter(items.get()) : nullptr);
    if (!iterator) return false;
    bool is_plain = true;
    while (is_plain) {
        const Ref item(PyIter_Next(iterator.get()));
        if (!item) break;
        std::string_view name, value;
        is_plain = PyTuple_Check(item.get()) && PyTuple_GET_SIZE(item.get()) == 2 && ascii_of(PyTuple_GET_ITEM(item.get(), 0), &name) &&
                   ascii_of(PyTuple_GET_ITEM(item.get(), 1), &value) && is_plain_name(name);
        if (is_plain) is_plain = pass(out, rules, name, value, keep_key);
    }
    return is_plain && !PyErr_Occurred();
}

// Whether our own headers, name after value after name, could be written.
bool write_told(std::string& out, PyObject* own) {
    const Py_ssize_t size = PyList_GET_SIZE(own);
    for (Py_ssize_t i = 0; i + 1 < size; i += 2) {
        std::string_view name, value;
        if (!ascii_of(PyList_GET_ITEM(own, i), &name) || !ascii_of(PyList_GET_ITEM(own, i + 1), &value)) return false;
        if (!is_plain_name(name) || !is_plain_value(value)) return false;
        write_line(out, name, value);
    }
    return size % 2 == 0;
}

PyObject* written(PyObject* self, PyObject* const* args) {
    const int keep_key = PyObject_IsTrue(args[2]);
    if (keep_key < 0) return nullptr;
    const Rules& rules = *reinterpret_cast<RequestHeads*>(self)->rules;
    const size_t size = size_t(PyBytes_GET_SIZE(args[5]));
    std::string out;
    out.reserve(1024);
    out.append(PyBytes_AS_STRING(args[0]), size_t(PyBytes_GET_SIZE(args[0])));
    write_line(out, "Content-Length", std::to_string(size));
    std::string_view id;
    bool is_plain = write_passed(out, rules, args[1], keep_key != 0) && ascii_of(args[3], &id) && is_plain_value(id);
    if (is_plain) {
        write_line(out, rules.id_name, id);
        is_plain = write_told(out, args[4]);
    }
    if (PyErr_Occurred()) return nullptr;
    if (!is_plain) Py_RETURN_NONE;
    out.append("\r\n", 2);
    PyObject* request = PyBytes_FromStringAndSize(nullptr, Py_ssize_t(out.size() + size));
    if (request == nullptr) return nullptr;
    char* at = PyBytes_AS_STRING(request);
    std::memcpy(at, out.data(), out.size());
    if (size) std::memcpy(at + out.size(), PyBytes_AS_STRING(args[5]), size);
    return request;
}

PyObject* write(PyObject* self, PyObject* const* args, Py_ssize_t count) {
    if (count != 6 || !PyBytes_Check(args[0]) || !PyList_Check(args[4]) || !PyBytes_Check(args[5])) {
        PyErr_SetString(PyExc_TypeError, "write(first: bytes, headers, keep_key, request_id, told: list, body: bytes)");
        return nullptr;
    }
    return guarded<PyObject*>(nullptr, [&] { return written(self, args); });
}

// The strs of an iterable.
bool take_names(PyObject* names, Names* into) {
    const Ref iterator(PyObject_GetIter(names));
    if (!iterator) return false;
    while (true) {
        const Ref name(PyIter_Next(iterator.get()));
        if (!name) return !PyErr_Occurred();
        std::string_view text;
        if (!ascii_of(name.get(), &text) || text.size() > MAX_KNOWN_NAME)
            return PyErr_SetString(PyExc_ValueError, "a header's name is ASCII and short"), false;
        into->emplace(text);
    }
}

PyObject* make(PyTypeObject* type, PyObject* args, PyObject*) {
    PyObject *ends, *keys;
    const char *prefix, *id_name;
    Py_ssize_t prefix_size, id_name_size;
    if (!PyArg_ParseTuple(args, "OOs#s#", &ends, &keys, &prefix, &prefix_size, &id_name, &id_name_size)) return nullptr;
    return guarded<PyObject*>(nullptr, [&]() -> PyObject* {
        auto rules = std::make_unique<Rules>(Rules{{}, {}, std::string(prefix, size_t(prefix_size)), std::string(id_name, size_t(id_name_size))});
        if (!take_names(ends, &rules->ends) || !take_names(keys, &rules->keys)) return nullptr;
        PyObject* self = type->tp_alloc(type, 0);
        if (self != nullptr) reinterpret_cast<RequestHeads*>(self)->rules = rules.release();
        return self;
    });
}

void end(PyObject* self) {
    PyTypeObject* type = Py_TYPE(self);
    delete reinterpret_cast<RequestHeads*>(self)->rules;
    type->tp_free(self);
    Py_DECREF(type);
}

PyMethodDef METHODS[] = {
    {"write", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(write)), METH_FASTCALL,
     "write(first, headers, keep_key, request_id, told, body): the request; None: something in it is not plain."},
    {nullptr, nullptr, 0, nullptr},
};

PyType_Slot SLOTS[] = {
    {Py_tp_new, reinterpret_cast<void*>(make)},
    {Py_tp_dealloc, reinterpret_cast<void*>(end)},
    {Py_tp_methods, METHODS},
    {Py_tp_doc, const_cast<char*>("RequestHeads(ends, keys, prefix, id_name): names in lower case that never pass, that pass as keys, the former's prefix, and the\n"
                                   "name of the header with a request's id.")},
    {0, nullptr},
};

PyType_Spec SPEC = {"quire_router_native.RequestHeads", sizeof(RequestHeads), 0, Py_TPFLAGS_DEFAULT, SLOTS};

}  // namespace
}  // namespace quire

int add_request_head(PyObject* module) {
    PyObject* type = PyType_FromSpec(&quire::SPEC);
    if (type == nullptr) return -1;
    const int done = PyModule_AddObjectRef(module, "RequestHeads", type);
    Py_DECREF(type);
    return done;
}
