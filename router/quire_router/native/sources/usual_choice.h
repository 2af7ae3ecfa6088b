// The usual case of a choice, for other parts. See usual_choice.cpp.
#pragma once

#include "parts.h"
#include "python_ref.h"

namespace quire {

// What is asked.
struct Asked {
    PyObject* endpoints;  // a tuple
    PyObject* digest;
    PyObject* hashes;
    int64_t num_tokens, block_tokens;
    double now_s, slow_start_s;
    mutable PyObject *same_digest = nullptr, *other_role = nullptr;  // seen before
};

// The endpoint that was chosen, and on what.
struct Picked {
    size_t place = 0, number = 0;  // among so many
    int64_t matched = 0, longest = 0;
    bool is_idle = false;  // as Endpoint.is_idle
    Ref seen;
};

// 1; 0 where something is out of the ordinary; -1 with an exception. `chooser` is a UsualChoice.
int pick_usual(PyObject* chooser, const Asked& asked, Picked& picked);
bool is_chooser(PyObject* object);
// From now on `seen` may be called without arguments, and gives what explain(model, num_tokens, seen) does.
void make_explainable(PyObject* seen, PyObject* explain, PyObject* model, PyObject* num_tokens);
// The tables that it looks into; borrowed.
PyObject* sent_of_chooser(PyObject* chooser);

}  // namespace quire
