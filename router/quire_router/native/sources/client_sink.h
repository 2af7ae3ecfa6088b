// Gives a part of a stream to its client's connection.
#pragma once

#include "parts.h"

namespace quire {

// Whether it is a ClientSink of this module.
bool is_client_sink(PyObject* sink);
// As calling such a sink with `part`, which is bytes: whether it may be given more at once, 1 or 0; -1 with an exception set.
int give_to_client(PyObject* sink, PyObject* part);

}  // namespace quire
