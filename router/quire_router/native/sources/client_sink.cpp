// Writes parts of a stream to its client's connection, each as a chunk, and counts the events in them: `delivery.sink_of`'s twin.

#include "client_sink.h"

#include <structmember.h>

#include <cstddef>
#include <cstring>
#include <string_view>
#include <utility>

#include "python_ref.h"

namespace quire {
namespace {

struct Sink {
    PyObject_HEAD
    PyObject* protocol;
    Py_ssize_t num_events;
    char is_chunked;
};

struct Interned {
    PyObject *transport, *is_closing, *write, *writing_paused;
};
Interned names;

Py_ssize_t count_events(std::string_view part) {
    Py_ssize_t number = 0;
    for (size_t at = 0; (at = part.find("\n\n", at)) != std::string_view::npos; at += 2) ++number;
    return number;
}

// "<size in hex>CRLF<part>CRLF".
PyObject* chunk_of(std::string_view part) {
    constexpr char DIGITS[] = "0123456789abcdef";
    char size[2 * sizeof(size_t)];
    size_t at = sizeof size;
    size_t left = part.size();
    do {
        size[--at] = DIGITS[left % 16];
        left /= 16;
    } while (left);
    const size_t num_digits = sizeof size - at;
    PyObject* chunk = PyBytes_FromStringAndSize(nullptr, Py_ssize_t(num_digits + part.size() + 4));
    if (chunk == nullptr) return nullptr;
    char* out = PyBytes_AS_STRING(chunk);
    std::memcpy(out, size + at, num_digits);
    std::memcpy(out + num_digits, "\r\n", 2);
    if (!part.empty()) std::memcpy(out + num_digits + 2, part.data(), part.size());
    std::memcpy(out + num_digits + 2 + part.size(), "\r\n", 2);
    return chunk;
}

// 1, 0, or -1 with an exception set.
int is_true(PyObject* value) {
    if (value == nullptr) return -1;
    const int truth = PyObject_IsTrue(value);
    Py_DECREF(value);
    return truth;
}

// Whether it was written: 1, 0, or -1 with an exception set.
int write_to(PyObject* transport, Sink* self, PyObject* part) {
    if (transport == Py_None) return 0;
    const int is_closing = is_true(PyObject_CallMethodNoArgs(transport, names.is_closing));
    if (is_closing) return is_closing < 0 ? -1 : 0;
    const std::string_view text(PyBytes_AS_STRING(part), size_t(PyBytes_GET_SIZE(part)));
    PyObject* data = self->is_chunked ? chunk_of(text) : Py_NewRef(part);
    if (data == nullptr) return -1;
    PyObject* done = PyObject_CallMethodOneArg(transport, names.write, data);
    Py_DECREF(data);
    if (done == nullptr) return -1;
    Py_DECREF(done);
    self->num_events += count_events(text);
    return 1;
}

PyTypeObject* sink_type = nullptr;

}  // namespace

bool is_client_sink(PyObject* sink) { return sink_type != nullptr && Py_IS_TYPE(sink, sink_type); }

int give_to_client(PyObject* sink, PyObject* part) {
    auto* self = reinterpret_cast<Sink*>(sink);
    if (self->protocol == nullptr) return 0;  // a collector of cycles was here
    const Ref protocol = Ref::borrowed(self->protocol);
    const Ref transport(PyObject_GetAttr(protocol.get(), names.transport));
    if (!transport) return -1;
    const int written = write_to(transport.get(), self, part);
    if (written <= 0) return written;
    const int is_paused = is_true(PyObject_GetAttr(protocol.get(), names.writing_paused));
    return is_paused < 0 ? -1 : !is_paused;
}

namespace {

PyObject* call(PyObject* object, PyObject* args, PyObject*) {
    if (PyTuple_GET_SIZE(args) != 1 || !PyBytes_Check(PyTuple_GET_ITEM(args, 0))) {
        PyErr_SetString(PyExc_TypeError, "sink(part: bytes)");
        return nullptr;
    }
    const int may_more = give_to_client(object, PyTuple_GET_ITEM(args, 0));
    return may_more < 0 ? nullptr : PyBool_FromLong(may_more);
}

PyObject* make(PyTypeObject* type, PyObject* args, PyObject*) {
    PyObject* protocol;
    int is_chunked;
    if (!PyArg_ParseTuple(args, "Op", &protocol, &is_chunked)) return nullptr;
    auto* self = reinterpret_cast<Sink*>(type->tp_alloc(type, 0));
    if (self == nullptr) return nullptr;
    self->protocol = Py_NewRef(protocol);
    self->is_chunked = char(is_chunked);
    return reinterpret_cast<PyObject*>(self);
}

int traverse(PyObject* object, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(reinterpret_cast<Sink*>(object)->protocol);
    return 0;
}

int clear(PyObject* object) {
    Py_CLEAR(reinterpret_cast<Sink*>(object)->protocol);
    return 0;
}

void end(PyObject* object) {
    PyTypeObject* type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    clear(object);
    type->tp_free(object);
    Py_DECREF(type);
}

PyMemberDef FIELDS[] = {
    {"num_events", T_PYSSIZET, offsetof(Sink, num_events), READONLY, "In what was written."},
    {nullptr, 0, 0, 0, nullptr},
};

PyType_Slot SLOTS[] = {
    {Py_tp_new, reinterpret_cast<void*>(make)},
    {Py_tp_dealloc, reinterpret_cast<void*>(end)},
    {Py_tp_traverse, reinterpret_cast<void*>(traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(clear)},
    {Py_tp_call, reinterpret_cast<void*>(call)},
    {Py_tp_members, FIELDS},
    {Py_tp_doc, const_cast<char*>("ClientSink(protocol, is_chunked): called with a part, whether it may be given more at once.")},
    {0, nullptr},
};

PyType_Spec SPEC = {"quire_router_native.ClientSink", sizeof(Sink), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, SLOTS};

}  // namespace
}  // namespace quire

int add_client_sink(PyObject* module) {
    using quire::names;
    const std::pair<PyObject**, const char*> wanted[] = {
        {&names.transport, "transport"}, {&names.is_closing, "is_closing"}, {&names.write, "write"}, {&names.writing_paused, "writing_paused"},
    };
    for (const auto& [at, text] : wanted) {
        *at = PyUnicode_InternFromString(text);
        if (*at == nullptr) return -1;
    }
    PyObject* type = PyType_FromSpec(&quire::SPEC);
    if (type == nullptr) return -1;
    quire::sink_type = reinterpret_cast<PyTypeObject*>(type);  // kept as long as the process
    return PyModule_AddObjectRef(module, "ClientSink", type);
}
