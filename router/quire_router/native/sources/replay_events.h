// Takes the usual events of a stream for its record.
#pragma once

#include <string_view>

#include "parts.h"

namespace quire {

// As `Replay.take` of `part`, which is bytes. A new reference; None: some events are not usual, and nothing was noted; null with an exception
// set. Throws std::bad_alloc, std::length_error.
PyObject* take_usual(PyObject* replay, PyObject* part, Py_ssize_t max_bytes, Py_ssize_t max_choices, std::string_view mark);

}  // namespace quire
