// What module.cpp puts together. Every function: 0, or -1 with a Python exception set.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

int add_sha256(PyObject* module);
int add_plain_request(PyObject* module);
int add_plain_answer(PyObject* module);
int add_event_line(PyObject* module);
