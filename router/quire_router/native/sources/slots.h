// Fields of Python objects whose classes have __slots__: such a field lies at a place in its object that its class tells.
#pragma once

#include "parts.h"

#include <structmember.h>

#include <utility>

#include "python_ref.h"

namespace quire {

// Something is out of the ordinary; no error.
struct Unusual {};

constexpr long long MOST = 1LL << 53;  // up to here doubles are exact, as Python's ints are

// A class with __slots__, and where its fields are.
template <size_t N>
struct Layout {
    PyTypeObject* type = nullptr;
    Py_ssize_t at[N] = {};

    // 0, or -1 with TypeError: such a class is not what this reads.
    int read(PyObject* cls, const char* const (&fields)[N]) {
        if (!PyType_Check(cls)) return PyErr_SetString(PyExc_TypeError, "a class was asked for"), -1;
        for (size_t i = 0; i < N; ++i) {
            const Ref found(PyObject_GetAttrString(cls, fields[i]));
            if (!found) return -1;
            const PyMemberDef* member = Py_IS_TYPE(found.get(), &PyMemberDescr_Type)
                                            ? reinterpret_cast<PyMemberDescrObject*>(found.get())->d_member
                                            : nullptr;
            const bool is_its = member != nullptr && PyType_IsSubtype(reinterpret_cast<PyTypeObject*>(cls), PyDescr_TYPE(found.get()));
            if (!is_its || member->type != T_OBJECT_EX) return PyErr_Format(PyExc_TypeError, "%s is no slot", fields[i]), -1;
            at[i] = member->offset;
        }
        type = reinterpret_cast<PyTypeObject*>(Py_NewRef(cls));
        return 0;
    }
    PyObject*& place(PyObject* object, size_t field) const {
        return *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(object) + at[field]);
    }
    PyObject* of(PyObject* object, size_t field) const {
        PyObject* value = place(object, field);
        if (value == nullptr) throw Unusual();
        return value;
    }
    PyObject* checked(PyObject* object) const {
        if (!PyObject_TypeCheck(object, type)) throw Unusual();
        return object;
    }
};

inline bool truth(PyObject* value) {
    if (value == Py_True) return true;
    if (value == Py_False) return false;
    throw Unusual();
}

inline double real(PyObject* value) {
    if (PyFloat_CheckExact(value)) return PyFloat_AS_DOUBLE(value);
    throw Unusual();
}

inline int64_t whole(PyObject* value) {
    if (!PyLong_CheckExact(value)) throw Unusual();
    int overflow = 0;
    const long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
    if (overflow || number > MOST || number < -MOST) throw Unusual();
    return number;
}

// Write a field. `owned`: a reference that it takes over.
inline void put(PyObject*& slot, PyObject* owned) { Py_XDECREF(std::exchange(slot, owned)); }

// A function as a table of methods wants it, whatever its arguments.
inline PyCFunction function(auto* any) { return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(any)); }

}  // namespace quire
