// The extension module quire_router_native: each part adds its own names.

#include <initializer_list>

#include "parts.h"

namespace {

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "quire_router_native", "Parts of a request's way through the router.", -1, nullptr,
};

}  // namespace

PyMODINIT_FUNC PyInit_quire_router_native() {
    PyObject* module = PyModule_Create(&definition);
    if (module == nullptr) return nullptr;
    for (const auto& add : {
             &add_sha256,
             &add_request_head,
             &add_http_headers,
             &add_http_answer,
             &add_chunks,
             &add_replay_events,
             &add_relaying,
             &add_kv_index,
             &add_usual_choice,
             &add_placing,
             &add_passing,
             &add_counting,
             &add_metering,
             &add_client_sink,
             &add_prompt_cache,
             &add_plain_chat,
             &add_chat_body,
             &add_chat_reader,
             &add_plain_request,
             &add_chat_usage,
             &add_plain_answer,
             &add_event_line,
             &add_turn,
         }) {
        if (add(module) < 0) {
            Py_DECREF(module);
            return nullptr;
        }
    }
    return module;
}
