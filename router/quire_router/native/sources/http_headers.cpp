// The type of `http_headers.h`, for Python.

#include "http_headers.h"

#include "http_text.h"

namespace quire {
namespace {

PyTypeObject* headers_type = nullptr;  // of the one module

const Headers* of(PyObject* object) { return reinterpret_cast<const Headers*>(object); }

PyObject* str_of(std::string_view text) {
    PyObject* made = PyUnicode_New(Py_ssize_t(text.size()), 127);
    if (made != nullptr && !text.empty()) std::memcpy(PyUnicode_DATA(made), text.data(), text.size());
    return made;
}

PyObject* name_of(const Headers* self, Py_ssize_t i) {
    return self->fields[i].name == nullptr ? str_of(self->name(i)) : Py_NewRef(self->fields[i].name);
}
PyObject* value_of(const Headers* self, Py_ssize_t i) { return str_of(self->value(i)); }

PyObject* item_of(const Headers* self, Py_ssize_t i) {
    PyObject *name = name_of(self, i), *value = value_of(self, i);
    PyObject* item = name == nullptr || value == nullptr ? nullptr : PyTuple_Pack(2, name, value);
    Py_XDECREF(name);
    Py_XDECREF(value);
    return item;
}

// The first field of that name from `start` on; the number of fields: there is none; -1: an exception is set.
Py_ssize_t find(const Headers* self, PyObject* name, Py_ssize_t start) {
    Py_ssize_t size;
    const char* text = PyUnicode_AsUTF8AndSize(name, &size);
    if (text == nullptr) return -1;
    const std::string_view wanted(text, size_t(size));
    Py_ssize_t i = start;
    while (i < Py_SIZE(self) && !same_name(self->name(i), wanted)) ++i;
    return i;
}

PyObject* get(PyObject* object, PyObject* const* args, Py_ssize_t count) {
    if (count < 1 || count > 2) {
        PyErr_SetString(PyExc_TypeError, "get(name, default=None)");
        return nullptr;
    }
    const Headers* self = of(object);
    const Py_ssize_t found = find(self, args[0], 0);
    if (found < 0) return nullptr;
    if (found < Py_SIZE(self)) return value_of(self, found);
    return Py_NewRef(count == 2 ? args[1] : Py_None);
}

PyObject* subscript(PyObject* object, PyObject* name) {
    const Headers* self = of(object);
    const Py_ssize_t found = find(self, name, 0);
    if (found < 0) return nullptr;
    if (found < Py_SIZE(self)) return value_of(self, found);
    PyErr_SetObject(PyExc_KeyError, name);
    return nullptr;
}

PyObject* getall(PyObject* object, PyObject* const* args, Py_ssize_t count) {
    if (count < 1 || count > 2) {
        PyErr_SetString(PyExc_TypeError, "getall(name, default=...)");
        return nullptr;
    }
    const Headers* self = of(object);
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

using Part = PyObject* (*)(const Headers*, Py_ssize_t);

PyObject* list_of(PyObject* object, Part part_of) {
    PyObject* parts = PyList_New(Py_SIZE(object));
    if (parts == nullptr) return nullptr;
    for (Py_ssize_t i = 0; i < Py_SIZE(object); ++i) {
        PyObject* part = part_of(of(object), i);
        if (part == nullptr) {
            Py_DECREF(parts);
            return nullptr;
        }
        PyList_SET_ITEM(parts, i, part);
    }
    return parts;
}

PyObject* items(PyObject* object, PyObject*) { return list_of(object, item_of); }
PyObject* keys(PyObject* object, PyObject*) { return list_of(object, name_of); }
PyObject* values(PyObject* object, PyObject*) { return list_of(object, value_of); }

PyObject* iter(PyObject* object) {
    PyObject* names = list_of(object, name_of);
    if (names == nullptr) return nullptr;
    PyObject* iterator = PyObject_GetIter(names);
    Py_DECREF(names);
    return iterator;
}

Py_ssize_t length(PyObject* object) { return Py_SIZE(object); }

int contains(PyObject* object, PyObject* name) {
    if (!PyUnicode_Check(name)) return 0;
    const Py_ssize_t found = find(of(object), name, 0);
    return found < 0 ? -1 : found < Py_SIZE(object);
}

void end(PyObject* object) {
    PyTypeObject* type = Py_TYPE(object);
    const Headers* self = of(object);
    for (Py_ssize_t i = 0; i < Py_SIZE(self); ++i) Py_XDECREF(self->fields[i].name);
    Py_XDECREF(self->text);
    type->tp_free(object);
    Py_DECREF(type);
}

template <typename F>
PyCFunction function(F* f) {
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(f));
}

PyMethodDef METHODS[] = {
    {"get", function(get), METH_FASTCALL, "The first value of a name in any case, or the default."},
    {"getone", subscript, METH_O, "The first value of a name in any case; KeyError without one."},
    {"getall", function(getall), METH_FASTCALL, "All values of a name in any case, or the default; KeyError without one."},
    {"items", items, METH_NOARGS, "[(name, value)] in their order."},
    {"keys", keys, METH_NOARGS, "All names in their order."},
    {"values", values, METH_NOARGS, "All values in their order."},
    {nullptr, nullptr, 0, nullptr},
};

PyType_Slot SLOTS[] = {
    {Py_tp_dealloc, reinterpret_cast<void*>(end)},
    {Py_tp_methods, METHODS},
    {Py_tp_iter, reinterpret_cast<void*>(iter)},
    {Py_mp_subscript, reinterpret_cast<void*>(subscript)},
    {Py_mp_length, reinterpret_cast<void*>(length)},
    {Py_sq_contains, reinterpret_cast<void*>(contains)},
    {Py_tp_doc, const_cast<char*>("A message's headers, as they were read: what is asked of a CIMultiDictProxy.")},
    {0, nullptr},
};

PyType_Spec SPEC = {
    "quire_router_native.Headers", offsetof(Headers, fields), sizeof(HeaderField),
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, SLOTS,
};

}  // namespace

PyObject* make_headers(PyObject* text, const HeaderField* fields, size_t num_fields) {
    auto* made = PyObject_NewVar(Headers, headers_type, Py_ssize_t(num_fields));
    if (made == nullptr) return nullptr;
    made->text = Py_NewRef(text);
    if (num_fields) std::memcpy(made->fields, fields, num_fields * sizeof(HeaderField));
    for (size_t i = 0; i < num_fields; ++i) Py_XINCREF(fields[i].name);
    return reinterpret_cast<PyObject*>(made);
}

const Headers* as_headers(PyObject* object) { return Py_IS_TYPE(object, headers_type) ? of(object) : nullptr; }

}  // namespace quire

int add_http_headers(PyObject*) {
    PyObject* type = PyType_FromSpec(&quire::SPEC);
    if (type == nullptr) return -1;
    quire::headers_type = reinterpret_cast<PyTypeObject*>(type);  // kept for as long as the process
    return 0;
}
