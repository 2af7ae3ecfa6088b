// The shape and contents of a chat of plain messages, straight from a decoded body: what `prompt_input`, `template_message` and
// `chat_shapes.shape_of` make of it between them.

#include "plain_chat.h"

namespace quire {
namespace {

enum Name {
    MESSAGES, ADD_GENERATION_PROMPT, CONTINUE_FINAL_MESSAGE, CHAT_TEMPLATE_KWARGS, REASONING_EFFORT, TOOLS, TRUNCATE_PROMPT_TOKENS,
    ADD_SPECIAL_TOKENS, ROLE, CONTENT, NAME, TOOL_CALL_ID, REASONING_CONTENT, REASONING, TOOL_CALLS, NUM_NAMES,
};
constexpr const char* SPELT[NUM_NAMES] = {
    "messages", "add_generation_prompt", "continue_final_message", "chat_template_kwargs", "reasoning_effort", "tools",
    "truncate_prompt_tokens", "add_special_tokens", "role", "content", "name", "tool_call_id", "reasoning_content", "reasoning", "tool_calls",
};
PyObject* names[NUM_NAMES];

// 1: it is None. -1 with an exception.
int is_none(PyObject* object, Name name) {
    const Ref value(PyObject_GetAttr(object, names[name]));
    return value ? value.get() == Py_None : -1;
}

int are_none(PyObject* object, std::initializer_list<Name> wanted) {
    for (const Name name : wanted)
        if (const int answer = is_none(object, name); answer <= 0) return answer;
    return 1;
}

// Role into `role`, content into `content`: 1; 0: the message has more than these; -1 with an exception.
int read_message(PyObject* message, Ref& role, Ref& content) {
    content = Ref(PyObject_GetAttr(message, names[CONTENT]));
    if (!content) return -1;
    if (!PyUnicode_CheckExact(content.get())) return 0;
    role = Ref(PyObject_GetAttr(message, names[ROLE]));
    return role ? are_none(message, {NAME, TOOL_CALL_ID, REASONING_CONTENT, REASONING, TOOL_CALLS}) : -1;
}

// plain_chat(fields, template name) -> (shape, contents) | None
PyObject* plain_chat(PyObject*, PyObject* const* args, Py_ssize_t num_args) {
    if (num_args != 2) return PyErr_SetString(PyExc_TypeError, "2 arguments are wanted"), nullptr;
    Ref shape, contents;
    const int is_plain = read_plain_chat(args[0], args[1], shape, contents);
    if (is_plain < 0) return nullptr;
    if (!is_plain) Py_RETURN_NONE;
    return PyTuple_Pack(2, shape.get(), contents.get());
}

PyMethodDef METHODS[] = {
    {"plain_chat", reinterpret_cast<PyCFunction>(plain_chat), METH_FASTCALL,
     "plain_chat(fields, template): shape and contents of a chat of plain messages without arguments; None: it is no such chat."},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

int read_plain_chat(PyObject* fields, PyObject* template_name, Ref& shape, Ref& contents) {
    const Ref messages(PyObject_GetAttr(fields, names[MESSAGES]));
    if (!messages) return -1;
    if (!PyList_CheckExact(messages.get())) return 0;
    const int usual = are_none(
        fields, {CONTINUE_FINAL_MESSAGE, CHAT_TEMPLATE_KWARGS, REASONING_EFFORT, TOOLS, TRUNCATE_PROMPT_TOKENS, ADD_SPECIAL_TOKENS}
    );
    if (usual <= 0) return usual;
    const Ref opens(PyObject_GetAttr(fields, names[ADD_GENERATION_PROMPT]));
    if (!opens) return -1;
    const Py_ssize_t count = PyList_GET_SIZE(messages.get());
    shape = Ref(PyTuple_New(count + 2));
    contents = Ref(PyList_New(count));
    if (!shape || !contents) return -1;
    PyTuple_SET_ITEM(shape.get(), 0, Py_NewRef(template_name));
    PyTuple_SET_ITEM(shape.get(), 1, Py_NewRef(opens.get() == Py_None ? Py_True : opens.get()));
    for (Py_ssize_t i = 0; i < count; ++i) {
        if (PyList_GET_SIZE(messages.get()) != count) return 0;
        Ref role, content;
        const int is_plain = read_message(Ref::borrowed(PyList_GET_ITEM(messages.get(), i)).get(), role, content);
        if (is_plain <= 0) return is_plain;
        PyTuple_SET_ITEM(shape.get(), i + 2, role.release());
        PyList_SET_ITEM(contents.get(), i, content.release());
    }
    return 1;
}

}  // namespace quire

int add_plain_chat(PyObject* module) {
    using namespace quire;
    for (int i = 0; i < NUM_NAMES; ++i)
        if ((names[i] = PyUnicode_InternFromString(SPELT[i])) == nullptr) return -1;
    return PyModule_AddFunctions(module, METHODS);
}
