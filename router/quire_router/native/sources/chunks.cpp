// Follows a body in HTTP's chunks (RFC 9112, 7.1) beside the parser that reads it, and takes from it what needs no parser.
//
// As long as what arrives is whole chunks of data after whole chunks of data, their data is all there is in them: a parser that was
// shown none of them is where it would be had it read them. Anything else is the parser's: a chunk that is not whole yet, the last
// chunk, extensions, trailers, and what is no chunk. A stream of events hardly ever holds more than the last of these.

#include "chunks.h"

#include <new>

namespace quire {
namespace {

constexpr int MAX_DIGITS = 15;

struct Chunks {
    PyObject_HEAD
    Chunking state;
};

PyTypeObject* chunks_type = nullptr;

int digit_of(unsigned char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

}  // namespace

size_t Chunking::follow(const char* data, size_t size, char* out) {
    size_t copied = 0;
    for (size_t i = 0; i < size && at != At::LOST;) {
        const auto c = static_cast<unsigned char>(data[i]);
        switch (at) {
            case At::SIZE: {
                const int digit = digit_of(c);
                if (digit >= 0 && num_digits < MAX_DIGITS) {
                    left = left * 16 + uint64_t(digit);
                    ++num_digits;
                } else {
                    at = c == '\r' && num_digits ? At::SIZE_LF : At::LOST;
                }
                ++i;
                break;
            }
            case At::SIZE_LF:
                at = c != '\n' ? At::LOST : left ? At::DATA : At::LAST_CR;
                num_digits = 0;
                ++i;
                break;
            case At::DATA: {
                const size_t part = size - i < left ? size - i : size_t(left);
                if (out != nullptr) std::memcpy(out + copied, data + i, part);
                copied += part;
                num_bytes += part;
                left -= part;
                if (!left) at = At::DATA_CR;
                i += part;
                break;
            }
            case At::DATA_CR:
                at = c == '\r' ? At::DATA_LF : At::LOST;
                ++i;
                break;
            case At::DATA_LF:
                at = c == '\n' ? At::SIZE : At::LOST;
                ++i;
                break;
            case At::LAST_CR:
                at = c == '\r' ? At::LAST_LF : At::LOST;
                ++i;
                break;
            case At::LAST_LF:
                at = c == '\n' ? At::DONE : At::LOST;
                ++i;
                break;
            case At::DONE:
            case At::LOST:
                at = At::LOST;
                break;
        }
    }
    return copied;
}

Chunking* chunking_of(PyObject* object) {
    return chunks_type != nullptr && Py_IS_TYPE(object, chunks_type) ? &reinterpret_cast<Chunks*>(object)->state : nullptr;
}

namespace {

PyObject* feed(PyObject* object, PyObject* data) {
    Chunking& state = reinterpret_cast<Chunks*>(object)->state;
    if (!PyBytes_CheckExact(data)) {
        PyErr_SetString(PyExc_TypeError, "feed(data: bytes)");
        return nullptr;
    }
    const char* text = PyBytes_AS_STRING(data);
    const size_t size = size_t(PyBytes_GET_SIZE(data));
    if (!state.may_take(text, size)) {
        state.follow(text, size, nullptr);
        Py_RETURN_NONE;
    }
    PyObject* part = PyBytes_FromStringAndSize(nullptr, Py_ssize_t(size));
    if (part == nullptr) return nullptr;
    const size_t copied = state.follow(text, size, PyBytes_AS_STRING(part));
    if (!state.is_between()) {
        Py_DECREF(part);
        Py_RETURN_NONE;
    }
    if (_PyBytes_Resize(&part, Py_ssize_t(copied)) < 0) return nullptr;
    return part;
}

PyObject* num_bytes(PyObject* self, void*) { return PyLong_FromUnsignedLongLong(reinterpret_cast<Chunks*>(self)->state.num_bytes); }

PyObject* is_done(PyObject* self, void*) { return PyBool_FromLong(reinterpret_cast<Chunks*>(self)->state.at == At::DONE); }

PyObject* make(PyTypeObject* type, PyObject*, PyObject*) {
    PyObject* self = type->tp_alloc(type, 0);
    if (self != nullptr) new (&reinterpret_cast<Chunks*>(self)->state) Chunking();
    return self;
}

void end(PyObject* self) {
    PyTypeObject* type = Py_TYPE(self);
    type->tp_free(self);
    Py_DECREF(type);
}

PyMethodDef METHODS[] = {
    {"feed", feed, METH_O, "feed(data): the data of the whole chunks that this is; None: it is the parser's."},
    {nullptr, nullptr, 0, nullptr},
};

PyGetSetDef FIELDS[] = {
    {"num_bytes", num_bytes, nullptr, "Of data, in all that was fed.", nullptr},
    {"is_done", is_done, nullptr, "Whether what was fed ends with the body's end, and no byte later.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

PyType_Slot SLOTS[] = {
    {Py_tp_new, reinterpret_cast<void*>(make)},
    {Py_tp_dealloc, reinterpret_cast<void*>(end)},
    {Py_tp_methods, METHODS},
    {Py_tp_getset, FIELDS},
    {Py_tp_doc, const_cast<char*>("Chunks(): follows one body.")},
    {0, nullptr},
};

PyType_Spec SPEC = {"quire_router_native.Chunks", sizeof(Chunks), 0, Py_TPFLAGS_DEFAULT, SLOTS};

}  // namespace
}  // namespace quire

int add_chunks(PyObject* module) {
    PyObject* type = PyType_FromSpec(&quire::SPEC);
    if (type == nullptr) return -1;
    quire::chunks_type = reinterpret_cast<PyTypeObject*>(type);  // kept as long as the process
    return PyModule_AddObjectRef(module, "Chunks", type);
}
