// Reads an answer of a worker that came whole in one read, and is plain.
//
// What it does not take, aiohttp's parser reads: it may be right, wrong, or not yet whole. So nothing is an error here.

#include <cstdint>
#include <cstring>

#include "http_text.h"
#include "parts.h"

namespace quire {
namespace {

constexpr size_t MAX_FIELD_BYTES = 8000;  // a little less than what aiohttp's parser refuses
constexpr size_t MAX_HEADERS = 128;
constexpr size_t MAX_LENGTH_DIGITS = 15;

struct Field {
    uint32_t name_at, name_size, value_at, value_size;
};

// ------------------------------------------------------------------------------------------------ the head

struct Head {
    int status = 0;
    size_t size = 0;  // with the empty line
    size_t num_fields = 0;
    Field fields[MAX_HEADERS];
    size_t num_lengths = 0;
    uint64_t length = 0;
    bool is_chunked = false;  // and says nothing else of how it is transferred
    bool is_events = false;
};

// The line that begins at `at`, without its end; `at` goes to the next one. False: it does not end with CRLF within the data.
bool next_line(std::string_view data, size_t* at, std::string_view* line) {
    const size_t left = data.size() - *at;
    const void* found = left ? std::memchr(data.data() + *at, '\r', left) : nullptr;
    if (found == nullptr) return false;
    const size_t end = size_t(static_cast<const char*>(found) - data.data());
    if (end + 1 >= data.size() || data[end + 1] != '\n') return false;
    *line = data.substr(*at, end - *at);
    *at = end + 2;
    return true;
}

bool is_plain(std::string_view text) {
    for (char c : text)
        if (!is_value_char(static_cast<unsigned char>(c))) return false;
    return true;
}

bool read_status(std::string_view line, Head* head) {
    constexpr std::string_view VERSION = "HTTP/1.1 ";
    if (line.size() < 13 || line.size() > MAX_FIELD_BYTES || line.substr(0, 9) != VERSION || line[12] != ' ' || !is_plain(line)) return false;
    int status = 0;
    for (size_t i = 9; i < 12; ++i) {
        if (line[i] < '0' || line[i] > '9') return false;
        status = status * 10 + (line[i] - '0');
    }
    head->status = status;
    return status >= 200 && status < 600 && status != 204 && status != 304;
}

// Note what a field says of the message. False: it is not plain.
bool note_field(std::string_view name, std::string_view value, Head* head) {
    switch (name.size()) {
        case 7:
            return !same_name(name, "trailer") && !same_name(name, "upgrade");
        case 10:
            return !same_name(name, "connection") || same_name(value, "keep-alive");
        case 12:
            if (same_name(name, "content-type")) {
                constexpr std::string_view EVENTS = "text/event-stream";
                head->is_events |= value.size() >= EVENTS.size() && same_name(value.substr(0, EVENTS.size()), EVENTS);
            }
            return true;
        case 14:
            if (!same_name(name, "content-length")) return true;
            if (value.empty() || value.size() > MAX_LENGTH_DIGITS) return false;
            for (char c : value) {
                if (c < '0' || c > '9') return false;
                head->length = head->length * 10 + uint64_t(c - '0');
            }
            return ++head->num_lengths == 1;
        case 16:
            return !same_name(name, "proxy-connection");
        case 17:
            if (!same_name(name, "transfer-encoding")) return true;
            if (head->is_chunked) return false;
            return head->is_chunked = same_name(value, "chunked");
        case 18:
            return !same_name(name, "sec-websocket-key1");
        default:
            return true;
    }
}

bool read_head(std::string_view data, Head* head) {
    size_t at = 0;
    std::string_view line;
    if (data.size() > UINT32_MAX || !next_line(data, &at, &line) || !read_status(line, head)) return false;
    while (next_line(data, &at, &line)) {
        if (line.empty()) {
            head->size = at;
            return true;
        }
        const size_t colon = line.find(':');
        if (colon == 0 || colon == std::string_view::npos || line.size() > MAX_FIELD_BYTES || head->num_fields == MAX_HEADERS) return false;
        const std::string_view name = line.substr(0, colon), value = stripped(line.substr(colon + 1));
        for (char c : name)
            if (!is_name_char(static_cast<unsigned char>(c))) return false;
        if (!is_plain(value) || !note_field(name, value, head)) return false;
        head->fields[head->num_fields++] = {
            uint32_t(name.data() - data.data()), uint32_t(name.size()), uint32_t(value.data() - data.data()), uint32_t(value.size())};
    }
    return false;
}

// ------------------------------------------------------------------------------------------------ its fields, for Python

struct Headers {
    PyObject_VAR_HEAD
    PyObject* data;  // bytes that the fields lie in
    Field fields[1];
};

std::string_view text_of(const Headers* self, uint32_t at, uint32_t size) { return {PyBytes_AS_STRING(self->data) + at, size}; }

PyObject* str_of(const Headers* self, uint32_t at, uint32_t size) {
    PyObject* made = PyUnicode_New(size, 127);
    if (made != nullptr && size) std::memcpy(PyUnicode_DATA(made), PyBytes_AS_STRING(self->data) + at, size);
    return made;
}

PyObject* name_of(const Headers* self, Py_ssize_t i) { return str_of(self, self->fields[i].name_at, self->fields[i].name_size); }
PyObject* value_of(const Headers* self, Py_ssize_t i) { return str_of(self, self->fields[i].value_at, self->fields[i].value_size); }

// The first field of that name from `start` on; the number of fields: there is none; -1: an exception is set.
Py_ssize_t find(const Headers* self, PyObject* name, Py_ssize_t start) {
    Py_ssize_t size;
    const char* text = PyUnicode_AsUTF8AndSize(name, &size);
    if (text == nullptr) return -1;
    const std::string_view wanted(text, size_t(size));
    Py_ssize_t i = start;
    while (i < Py_SIZE(self) && !same_name(text_of(self, self->fields[i].name_at, self->fields[i].name_size), wanted)) ++i;
    return i;
}

PyObject* headers_get(PyObject* object, PyObject* const* args, Py_ssize_t count) {
    auto* self = reinterpret_cast<Headers*>(object);
    if (count < 1 || count > 2) {
        PyErr_SetString(PyExc_TypeError, "get(name, default=None)");
        return nullptr;
    }
    const Py_ssize_t found = find(self, args[0], 0);
    if (found < 0) return nullptr;
    if (found < Py_SIZE(self)) return value_of(self, found);
    return Py_NewRef(count == 2 ? args[1] : Py_None);
}

PyObject* headers_subscript(PyObject* object, PyObject* name) {
    auto* self = reinterpret_cast<Headers*>(object);
    const Py_ssize_t found = find(self, name, 0);
    if (found < 0) return nullptr;
    if (found < Py_SIZE(self)) return value_of(self, found);
    PyErr_SetObject(PyExc_KeyError, name);
    return nullptr;
}

PyObject* headers_getall(PyObject* object, PyObject* const* args, Py_ssize_t count) {
    auto* self = reinterpret_cast<Headers*>(object);
    if (count < 1 || count > 2) {
        PyErr_SetString(PyExc_TypeError, "getall(name, default=...)");
        return nullptr;
    }
    PyObject* all = PyList_New(0);
    if (all == nullptr) return nullptr;
    Py_ssize_t i = -1;
    while ((i = find(self, args[0], i + 1)) >= 0 && i < Py_SIZE(self)) {
        PyObject* value = value_of(self, i);
        const int failed = value == nullptr ? -1 : PyList_Append(all, value);
        Py_XDECREF(value);
        if (failed) {
            Py_DECREF(all);
            return nullptr;
        }
    }
    if (i >= 0 && PyList_GET_SIZE(all)) return all;
    Py_DECREF(all);
    if (i < 0) return nullptr;
    if (count == 2) return Py_NewRef(args[1]);
    PyErr_SetObject(PyExc_KeyError, args[0]);
    return nullptr;
}

PyObject* headers_items(PyObject* object, PyObject*) {
    auto* self = reinterpret_cast<Headers*>(object);
    PyObject* items = PyList_New(Py_SIZE(self));
    if (items == nullptr) return nullptr;
    for (Py_ssize_t i = 0; i < Py_SIZE(self); ++i) {
        PyObject *name = name_of(self, i), *value = value_of(self, i);
        PyObject* item = name == nullptr || value == nullptr ? nullptr : PyTuple_Pack(2, name, value);
        Py_XDECREF(name);
        Py_XDECREF(value);
        if (item == nullptr) {
            Py_DECREF(items);
            return nullptr;
        }
        PyList_SET_ITEM(items, i, item);
    }
    return items;
}

PyObject* headers_keys(PyObject* object, PyObject*) {
    auto* self = reinterpret_cast<Headers*>(object);
    PyObject* names = PyList_New(Py_SIZE(self));
    if (names == nullptr) return nullptr;
    for (Py_ssize_t i = 0; i < Py_SIZE(self); ++i) {
        PyObject* name = name_of(self, i);
        if (name == nullptr) {
            Py_DECREF(names);
            return nullptr;
        }
        PyList_SET_ITEM(names, i, name);
    }
    return names;
}

PyObject* headers_iter(PyObject* object) {
    PyObject* names = headers_keys(object, nullptr);
    if (names == nullptr) return nullptr;
    PyObject* iterator = PyObject_GetIter(names);
    Py_DECREF(names);
    return iterator;
}

Py_ssize_t headers_length(PyObject* object) { return Py_SIZE(object); }

int headers_contains(PyObject* object, PyObject* name) {
    if (!PyUnicode_Check(name)) return 0;
    const Py_ssize_t found = find(reinterpret_cast<Headers*>(object), name, 0);
    return found < 0 ? -1 : found < Py_SIZE(object);
}

void headers_end(PyObject* object) {
    PyTypeObject* type = Py_TYPE(object);
    Py_XDECREF(reinterpret_cast<Headers*>(object)->data);
    type->tp_free(object);
    Py_DECREF(type);
}

template <typename F>
PyCFunction function(F* f) {
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(f));
}

PyMethodDef HEADERS_METHODS[] = {
    {"get", function(headers_get), METH_FASTCALL, "The first value of a name in any case, or the default."},
    {"getall", function(headers_getall), METH_FASTCALL, "All values of a name in any case, or the default; KeyError without one."},
    {"items", headers_items, METH_NOARGS, "[(name, value)] in their order."},
    {"keys", headers_keys, METH_NOARGS, "All names in their order."},
    {nullptr, nullptr, 0, nullptr},
};

PyType_Slot HEADERS_SLOTS[] = {
    {Py_tp_dealloc, reinterpret_cast<void*>(headers_end)},
    {Py_tp_methods, HEADERS_METHODS},
    {Py_tp_iter, reinterpret_cast<void*>(headers_iter)},
    {Py_mp_subscript, reinterpret_cast<void*>(headers_subscript)},
    {Py_mp_length, reinterpret_cast<void*>(headers_length)},
    {Py_sq_contains, reinterpret_cast<void*>(headers_contains)},
    {Py_tp_doc, const_cast<char*>("An answer's headers, as they were read: what is asked of a CIMultiDictProxy.")},
    {0, nullptr},
};

PyType_Spec HEADERS_SPEC = {
    "quire_router_native.AnswerHeaders", sizeof(Headers) - sizeof(Field), sizeof(Field),
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, HEADERS_SLOTS,
};

PyTypeObject* headers_type = nullptr;  // of the one module

PyObject* make_headers(PyObject* data, const Head& head) {
    auto* made = PyObject_NewVar(Headers, headers_type, Py_ssize_t(head.num_fields));
    if (made == nullptr) return nullptr;
    made->data = Py_NewRef(data);
    if (head.num_fields) std::memcpy(made->fields, head.fields, head.num_fields * sizeof(Field));
    return reinterpret_cast<PyObject*>(made);
}

PyObject* read_answer(PyObject*, PyObject* data) {
    if (!PyBytes_CheckExact(data)) {
        PyErr_SetString(PyExc_TypeError, "read_answer(data: bytes)");
        return nullptr;
    }
    const std::string_view text(PyBytes_AS_STRING(data), size_t(PyBytes_GET_SIZE(data)));
    Head head;
    if (!read_head(text, &head)) Py_RETURN_NONE;
    if (head.is_chunked) {
        if (head.num_lengths) Py_RETURN_NONE;
        return PyLong_FromSize_t(head.size);
    }
    if (head.num_lengths != 1) Py_RETURN_NONE;
    const uint64_t size = text.size() - head.size;
    if (head.length > size) return PyLong_FromLongLong(-int64_t(head.length - size));
    if (head.length < size || head.is_events) Py_RETURN_NONE;
    PyObject* headers = make_headers(data, head);
    PyObject* body = PyBytes_FromStringAndSize(text.data() + head.size, Py_ssize_t(head.length));
    PyObject* status = PyLong_FromLong(head.status);
    PyObject* answer = headers == nullptr || body == nullptr || status == nullptr ? nullptr : PyTuple_Pack(3, status, headers, body);
    Py_XDECREF(headers);
    Py_XDECREF(body);
    Py_XDECREF(status);
    return answer;
}

PyMethodDef METHODS[] = {
    {"read_answer", read_answer, METH_O,
     "read_answer(data): (status, headers, body) of one whole plain answer that is no stream of events; the size of a plain head\n"
     "whose body comes in chunks; the number of bytes that are missing of a plain answer, negated; None for all else."},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace
}  // namespace quire

int add_http_answer(PyObject* module) {
    PyObject* type = PyType_FromSpec(&quire::HEADERS_SPEC);
    if (type == nullptr) return -1;
    quire::headers_type = reinterpret_cast<PyTypeObject*>(type);  // kept for as long as the process
    return PyModule_AddFunctions(module, quire::METHODS);
}
