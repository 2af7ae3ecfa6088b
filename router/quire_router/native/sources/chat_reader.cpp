// Reads chats of plain messages, of a shape that is known and with little text that is new, in one call: the shape (`plain_chat`), what the
// template writes (`chat_shapes`), and the blocks (`PromptCache`).

#include "plain_chat.h"
#include "prompt_cache.h"
#include "prompt_encoder.h"

namespace quire {
namespace {

struct Reader {
    PyObject_HEAD
    PyObject *cache, *encoder;
    PyObject* shapes;  // the ShapeMemory
    PyObject* known_pieces;  // of ChatTemplate: where a shape is not simple
    PyObject* template_name;
    size_t max_chars, max_new_chars;
};

PyObject *traces_name, *num_hits_name, *simple_name, *one;

// The trace of a shape that says without a question how it is written, as Trace.simple: 1. 0: there is none; -1 with an exception.
int find_simple(const Reader& reader, PyObject* shape, Ref& simple) {
    const Ref traces(PyObject_GetAttr(reader.shapes, traces_name));
    if (!traces) return -1;
    if (!PyDict_CheckExact(traces.get())) return 0;
    const Ref known = Ref::borrowed(PyDict_GetItemWithError(traces.get(), shape));
    if (!known) return PyErr_Occurred() ? -1 : 0;
    if (!PyList_CheckExact(known.get()) || PyList_GET_SIZE(known.get()) == 0) return 0;
    const Ref first = Ref::borrowed(PyList_GET_ITEM(known.get(), 0));
    simple = Ref(PyObject_GetAttr(first.get(), simple_name));
    if (!simple) return -1;
    PyObject* pair = simple.get();
    return PyTuple_CheckExact(pair) && PyTuple_GET_SIZE(pair) == 2 && PyList_CheckExact(PyTuple_GET_ITEM(pair, 0))
        && PyTuple_CheckExact(PyTuple_GET_ITEM(pair, 1));
}

int count_hit(const Reader& reader) {
    const Ref before(PyObject_GetAttr(reader.shapes, num_hits_name));
    const Ref after(before ? PyNumber_Add(before.get(), one) : nullptr);
    return after ? PyObject_SetAttr(reader.shapes, num_hits_name, after.get()) : -1;
}

// The frame with contents in it: 1. 0: it would be too long; -1 with an exception.
int fill(const Reader& reader, PyObject* simple, PyObject* contents, Ref& pieces) {
    PyObject *frame = PyTuple_GET_ITEM(simple, 0), *places = PyTuple_GET_ITEM(simple, 1);
    const Py_ssize_t size = PyList_GET_SIZE(frame), num_places = PyTuple_GET_SIZE(places);
    pieces = Ref(PyList_GetSlice(frame, 0, size));
    if (!pieces) return -1;
    for (Py_ssize_t i = 0; i < num_places; ++i) {
        const Py_ssize_t index = PyLong_AsSsize_t(PyTuple_GET_ITEM(places, i));
        if (index < 0 || index >= PyList_GET_SIZE(contents) || 2 * i + 1 >= PyList_GET_SIZE(pieces.get())) {
            if (!PyErr_Occurred()) PyErr_SetString(PyExc_IndexError, "simple: no such content, or no place for it");
            return -1;
        }
        if (PyList_SetItem(pieces.get(), 2 * i + 1, Py_NewRef(PyList_GET_ITEM(contents, index))) < 0) return -1;
    }
    size_t num_chars = 0;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(pieces.get()); ++i) {
        const Py_ssize_t length = PyUnicode_GetLength(PyList_GET_ITEM(pieces.get(), i));
        if (length < 0) return -1;
        num_chars += size_t(length);
    }
    return num_chars <= reader.max_chars;
}

// 1: `pieces`. 0: they are not known; -1 with an exception.
int pieces_of(const Reader& reader, PyObject* fields, Ref& pieces) {
    Ref shape, contents, simple;
    const int is_plain = read_plain_chat(fields, reader.template_name, shape, contents);
    if (is_plain <= 0) return is_plain;
    const int is_simple = find_simple(reader, shape.get(), simple);
    if (is_simple < 0) return -1;
    if (is_simple) {
        const int fits = fill(reader, simple.get(), contents.get(), pieces);
        return fits <= 0 ? fits : count_hit(reader) < 0 ? -1 : 1;
    }
    PyObject* const args[] = {shape.get(), contents.get()};
    pieces = Ref(PyObject_Vectorcall(reader.known_pieces, args, 2, nullptr));
    return pieces ? pieces.get() != Py_None : -1;
}

// read(fields, adapter, salt) -> PromptBlocks | None
PyObject* read(PyObject* self, PyObject* const* args, Py_ssize_t num_args) {
    if (num_args != 3) return PyErr_SetString(PyExc_TypeError, "3 arguments are wanted"), nullptr;
    const Reader& reader = *reinterpret_cast<Reader*>(self);
    Ref pieces;
    const int is_known = pieces_of(reader, args[0], pieces);
    if (is_known < 0) return nullptr;
    if (!is_known) Py_RETURN_NONE;
    return read_at_once(reader.cache, reader.encoder, pieces.get(), args[1], args[2], false, reader.max_new_chars);
}

void end(PyObject* object) {
    auto* self = reinterpret_cast<Reader*>(object);
    PyTypeObject* type = Py_TYPE(object);
    Py_XDECREF(self->cache);
    Py_XDECREF(self->encoder);
    Py_XDECREF(self->shapes);
    Py_XDECREF(self->known_pieces);
    Py_XDECREF(self->template_name);
    type->tp_free(object);
    Py_DECREF(type);
}

PyObject* make(PyTypeObject* type, PyObject* args, PyObject* kwargs) {
    static const char* const NAMES[] = {"cache", "encoder", "shapes", "known_pieces", "template", "max_chars", "max_new_chars", nullptr};
    PyObject *cache, *encoder, *shapes, *known_pieces, *template_name;
    Py_ssize_t max_chars, max_new_chars;
    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "O!O!OOUnn", const_cast<char**>(NAMES), &PromptCacheType, &cache, &PromptEncoderType, &encoder, &shapes, &known_pieces,
            &template_name, &max_chars, &max_new_chars
        ))
        return nullptr;
    if (max_chars < 0 || max_new_chars < 0) return PyErr_SetString(PyExc_ValueError, "limits are not negative"), nullptr;
    auto* self = reinterpret_cast<Reader*>(type->tp_alloc(type, 0));
    if (self == nullptr) return nullptr;
    self->cache = Py_NewRef(cache);
    self->encoder = Py_NewRef(encoder);
    self->shapes = Py_NewRef(shapes);
    self->known_pieces = Py_NewRef(known_pieces);
    self->template_name = Py_NewRef(template_name);
    self->max_chars = size_t(max_chars);
    self->max_new_chars = size_t(max_new_chars);
    return reinterpret_cast<PyObject*>(self);
}

PyMethodDef METHODS[] = {
    {"read", reinterpret_cast<PyCFunction>(read), METH_FASTCALL,
     "read(fields, adapter, salt): the prompt's blocks; None: it is no such chat, or more of it is new."},
    {nullptr, nullptr, 0, nullptr},
};

PyType_Slot SLOTS[] = {
    {Py_tp_new, reinterpret_cast<void*>(make)},
    {Py_tp_dealloc, reinterpret_cast<void*>(end)},
    {Py_tp_methods, METHODS},
    {Py_tp_doc, const_cast<char*>("ChatReader(cache, encoder, shapes, known_pieces, template, max_chars, max_new_chars): reads usual chats.")},
    {0, nullptr},
};
PyType_Spec SPEC = {"quire_router_native.ChatReader", sizeof(Reader), 0, Py_TPFLAGS_DEFAULT, SLOTS};

}  // namespace
}  // namespace quire

int add_chat_reader(PyObject* module) {
    using namespace quire;
    const struct { PyObject*& name; const char* spelt; } wanted[] = {{traces_name, "traces"}, {num_hits_name, "num_hits"}, {simple_name, "simple"}};
    for (const auto& one_of : wanted)
        if ((one_of.name = PyUnicode_InternFromString(one_of.spelt)) == nullptr) return -1;
    if ((one = PyLong_FromLong(1)) == nullptr) return -1;
    PyObject* type = PyType_FromSpec(&SPEC);
    if (type == nullptr) return -1;
    const int added = PyModule_AddObjectRef(module, "ChatReader", type);
    Py_DECREF(type);
    return added;
}
