// A reference to a Python object that is let go of at the end of its scope, and what turns C++'s lack of memory into Python's.
#pragma once

#include <new>
#include <stdexcept>
#include <utility>

#include "parts.h"

namespace quire {

class Ref {
   public:
    Ref() = default;
    explicit Ref(PyObject* owned) : object_(owned) {}
    static Ref borrowed(PyObject* object) { return Ref(Py_XNewRef(object)); }
    Ref(Ref&& other) noexcept : object_(other.release()) {}
    Ref& operator=(Ref&& other) noexcept {
        std::swap(object_, other.object_);
        return *this;
    }
    Ref(const Ref&) = delete;
    ~Ref() { Py_XDECREF(object_); }

    explicit operator bool() const { return object_ != nullptr; }
    PyObject* get() const { return object_; }
    PyObject* release() { return std::exchange(object_, nullptr); }

   private:
    PyObject* object_ = nullptr;
};

// What `work` returns; `failed`, with a Python exception set, if memory runs out or something is longer than can be.
template <typename Result, typename Work>
Result guarded(Result failed, Work work) noexcept {
    try {
        return work();
    } catch (const std::bad_alloc&) {
        PyErr_NoMemory();
    } catch (const std::length_error&) {
        PyErr_NoMemory();
    }
    return failed;
}

}  // namespace quire
