// PromptCache for other parts.
#pragma once

#include "python_ref.h"

namespace quire {

extern PyTypeObject PromptCacheType, PromptJobType;

// The blocks of the prompt that `pieces` make up, read by a PromptEncoder; None if more than `most` characters of it are new to the
// PromptCache. nullptr with an exception.
PyObject* read_at_once(
    PyObject* cache, PyObject* encoder, PyObject* pieces, PyObject* adapter, PyObject* salt, bool is_framed, size_t most
);

}  // namespace quire
