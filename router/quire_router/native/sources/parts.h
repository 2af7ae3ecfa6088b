// What module.cpp puts together. Every function: 0, or -1 with a Python exception set.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

int add_sha256(PyObject* module);
int add_request_head(PyObject* module);
int add_http_headers(PyObject* module);
int add_http_answer(PyObject* module);
int add_chunks(PyObject* module);
int add_replay_events(PyObject* module);
int add_relaying(PyObject* module);
int add_kv_index(PyObject* module);
int add_usual_choice(PyObject* module);
int add_placing(PyObject* module);
int add_passing(PyObject* module);
int add_counting(PyObject* module);
int add_metering(PyObject* module);
int add_client_sink(PyObject* module);
int add_prompt_cache(PyObject* module);
int add_plain_chat(PyObject* module);
int add_chat_body(PyObject* module);
int add_chat_reader(PyObject* module);
int add_plain_request(PyObject* module);
int add_chat_usage(PyObject* module);
int add_plain_answer(PyObject* module);
int add_event_line(PyObject* module);
int add_turn(PyObject* module);
