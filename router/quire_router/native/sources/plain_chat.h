// The shape and contents of a chat of plain messages.
#pragma once

#include "python_ref.h"

namespace quire {

// Into `shape`, a tuple, and `contents`, a list of str, for the template of that name: 1. 0: it is no plain chat; -1 with an exception.
int read_plain_chat(PyObject* fields, PyObject* template_name, Ref& shape, Ref& contents);

}  // namespace quire
