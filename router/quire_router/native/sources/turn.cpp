// What a task waits at, and is woken from at once: `turn.Turn`'s twin.

#include "parts.h"

#include <structmember.h>

#include <cstddef>
#include <utility>

#include "python_ref.h"

namespace quire {
namespace {

struct Turn {
    PyObject_HEAD
    PyObject* loop;
    PyObject* value;  // nothing: None
    PyObject* error;
    PyObject* wake;  // of the task that waits
    PyObject* context;
    char is_done;
    char is_blocking;  // how a task knows what it may wait for
};

struct Known {
    PyObject *call_soon, *context_only;  // a method's name, and that of its one keyword argument
    PyObject *cancelled, *current_task;
    PyObject* running;  // loop -> the task that runs; nothing: `current_task` is to be asked
};
Known known;

Turn* turn_of(PyObject* object) { return reinterpret_cast<Turn*>(object); }

void put(PyObject** at, PyObject* object) { Py_XSETREF(*at, Py_XNewRef(object)); }

// ------------------------------------------------------------------------------------------------ waking

// 1, 0, or -1 with an exception set.
int is_any_task_running(PyObject* loop) {
    if (known.running != nullptr) {
        const PyObject* task = PyDict_GetItemWithError(known.running, loop);
        return task != nullptr ? task != Py_None : PyErr_Occurred() ? -1 : 0;
    }
    const Ref task(PyObject_CallOneArg(known.current_task, loop));
    return task ? task.get() != Py_None : -1;
}

// In the event loop's next round.
bool wake_soon(Turn* self) {
    const Ref wake(std::exchange(self->wake, nullptr));
    if (!wake || self->loop == nullptr) return true;  // without a loop: a collector of cycles was here
    PyObject* args[] = {self->loop, wake.get(), reinterpret_cast<PyObject*>(self), self->context ? self->context : Py_None};
    const Ref handle(PyObject_VectorcallMethod(known.call_soon, args, 3, known.context_only));
    return bool(handle);
}

PyObject* end_with(Turn* self, PyObject** at, PyObject* object) {
    self->is_done = 1;
    put(at, object);
    if (!wake_soon(self)) return nullptr;
    Py_RETURN_NONE;
}

PyObject* set_result(PyObject* object, PyObject* value) { return end_with(turn_of(object), &turn_of(object)->value, value); }

PyObject* set_exception(PyObject* object, PyObject* error) {
    if (!PyExceptionInstance_Check(error)) {
        PyErr_SetString(PyExc_TypeError, "set_exception(error: BaseException)");
        return nullptr;
    }
    return end_with(turn_of(object), &turn_of(object)->error, error);
}

PyObject* wake(PyObject* object, PyObject* value) {
    Turn* self = turn_of(object);
    int is_later = self->wake == nullptr || self->context == nullptr || self->loop == nullptr;
    if (!is_later) is_later = is_any_task_running(self->loop);
    if (is_later < 0) return nullptr;
    if (is_later) return set_result(object, value);
    self->is_done = 1;
    put(&self->value, value);
    const Ref go_on(std::exchange(self->wake, nullptr)), context = Ref::borrowed(self->context);
    if (PyContext_Enter(context.get()) < 0) return nullptr;
    const Ref done(PyObject_CallOneArg(go_on.get(), object));
    if (PyContext_Exit(context.get()) < 0 || !done) return nullptr;
    Py_RETURN_NONE;
}

PyObject* cancel(PyObject* object, PyObject* const*, Py_ssize_t, PyObject*) {
    Turn* self = turn_of(object);
    if (self->is_done) Py_RETURN_FALSE;
    const Ref error(PyObject_CallNoArgs(known.cancelled));
    if (!error) return nullptr;
    const Ref done(set_exception(object, error.get()));
    if (!done) return nullptr;
    Py_RETURN_TRUE;
}

// ------------------------------------------------------------------------------------------------ waiting

PyObject* add_done_callback(PyObject* object, PyObject* const* args, Py_ssize_t count, PyObject* keywords) {
    Turn* self = turn_of(object);
    const Py_ssize_t num_keywords = keywords == nullptr ? 0 : PyTuple_GET_SIZE(keywords);
    const bool is_named = num_keywords == 1 && PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(keywords, 0), "context") == 0;
    if (count != 1 || (num_keywords && !is_named)) {
        PyErr_SetString(PyExc_TypeError, "add_done_callback(wake, *, context=None)");
        return nullptr;
    }
    PyObject* context = num_keywords && args[1] != Py_None ? args[1] : nullptr;
    if (context != nullptr && !PyContext_CheckExact(context)) {
        PyErr_SetString(PyExc_TypeError, "context: a contextvars.Context, or None");
        return nullptr;
    }
    put(&self->wake, args[0]);
    put(&self->context, context);
    if (self->is_done && !wake_soon(self)) return nullptr;
    Py_RETURN_NONE;
}

PyObject* result(PyObject* object, PyObject*) {
    const Turn* self = turn_of(object);
    if (self->error != nullptr && Py_IS_TYPE(self->error, reinterpret_cast<PyTypeObject*>(known.cancelled))) {
        PyErr_SetNone(known.cancelled);  // another one: what is raised holds the task's frames, and they hold this
        return nullptr;
    }
    if (self->error != nullptr) {
        PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(self->error)), self->error);
        return nullptr;
    }
    return Py_NewRef(self->value ? self->value : Py_None);
}

PySendResult send(PyObject* object, PyObject*, PyObject** given) {
    Turn* self = turn_of(object);
    if (!self->is_done) {
        self->is_blocking = 1;
        *given = Py_NewRef(object);
        return PYGEN_NEXT;
    }
    *given = result(object, nullptr);
    return *given == nullptr ? PYGEN_ERROR : PYGEN_RETURN;
}

// As `send`, for who asks as one does of any iterator.
PyObject* next(PyObject* object) {
    PyObject* given = nullptr;
    const PySendResult how = send(object, Py_None, &given);
    if (how != PYGEN_RETURN) return given;
    const Ref value(given), end(PyObject_CallOneArg(PyExc_StopIteration, given));
    if (end) PyErr_SetObject(PyExc_StopIteration, end.get());
    return nullptr;
}

PyObject* get_loop(PyObject* object, PyObject*) { return Py_NewRef(turn_of(object)->loop ? turn_of(object)->loop : Py_None); }

PyObject* done(PyObject* object, PyObject*) { return PyBool_FromLong(turn_of(object)->is_done); }

PyObject* exception(PyObject* object, PyObject*) {
    const Turn* self = turn_of(object);
    return Py_NewRef(self->error ? self->error : Py_None);
}

PyObject* begin_anew(PyObject* object, PyObject*) {
    Turn* self = turn_of(object);
    self->is_done = 0;
    Py_CLEAR(self->value);
    Py_CLEAR(self->error);
    Py_RETURN_NONE;
}

// ------------------------------------------------------------------------------------------------ the type

PyObject* make(PyTypeObject* type, PyObject* args, PyObject*) {
    PyObject* loop;
    if (!PyArg_ParseTuple(args, "O", &loop)) return nullptr;
    PyObject* self = type->tp_alloc(type, 0);
    if (self != nullptr) turn_of(self)->loop = Py_NewRef(loop);
    return self;
}

int traverse(PyObject* object, visitproc visit, void* arg) {
    const Turn* self = turn_of(object);
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->loop);
    Py_VISIT(self->value);
    Py_VISIT(self->error);
    Py_VISIT(self->wake);
    Py_VISIT(self->context);
    return 0;
}

int clear(PyObject* object) {
    Turn* self = turn_of(object);
    Py_CLEAR(self->loop);
    Py_CLEAR(self->value);
    Py_CLEAR(self->error);
    Py_CLEAR(self->wake);
    Py_CLEAR(self->context);
    return 0;
}

void end(PyObject* object) {
    PyTypeObject* type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    clear(object);
    type->tp_free(object);
    Py_DECREF(type);
}

template <typename F>
PyCFunction function(F* f) {
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(f));
}

PyMethodDef METHODS[] = {
    {"wake", wake, METH_O, "Let the task run now with this value, up to where it waits next; where some task runs already, soon."},
    {"begin_anew", begin_anew, METH_NOARGS, "Wait once more, after the last wait is over."},
    {"get_loop", get_loop, METH_NOARGS, "Its task's."},
    {"add_done_callback", function(add_done_callback), METH_FASTCALL | METH_KEYWORDS, "Called by the task that waits."},
    {"done", done, METH_NOARGS, "Whether its task was woken."},
    {"result", result, METH_NOARGS, "What came, or what was set instead, raised."},
    {"exception", exception, METH_NOARGS, "Why nothing came. None: something did."},
    {"set_result", set_result, METH_O, "Wake the task soon."},
    {"set_exception", set_exception, METH_O, "Wake the task soon: it is raised there."},
    {"cancel", function(cancel), METH_FASTCALL | METH_KEYWORDS, "Wake the task soon, to its end. False: it was woken before."},
    {nullptr, nullptr, 0, nullptr},
};

PyMemberDef FIELDS[] = {
    {"_asyncio_future_blocking", T_BOOL, offsetof(Turn, is_blocking), 0, "Whether a task that was given it may wait."},
    {nullptr, 0, 0, 0, nullptr},
};

PyType_Slot SLOTS[] = {
    {Py_tp_new, reinterpret_cast<void*>(make)},
    {Py_tp_dealloc, reinterpret_cast<void*>(end)},
    {Py_tp_traverse, reinterpret_cast<void*>(traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(clear)},
    {Py_tp_iter, reinterpret_cast<void*>(PyObject_SelfIter)},
    {Py_tp_iternext, reinterpret_cast<void*>(next)},
    {Py_am_await, reinterpret_cast<void*>(PyObject_SelfIter)},
    {Py_am_send, reinterpret_cast<void*>(send)},
    {Py_tp_methods, METHODS},
    {Py_tp_members, FIELDS},
    {Py_tp_doc, const_cast<char*>("Turn(loop): one wait of one task at a time.")},
    {0, nullptr},
};

PyType_Spec SPEC = {"quire_router_native.Turn", sizeof(Turn), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, SLOTS};

}  // namespace
}  // namespace quire

int add_turn(PyObject* module) {
    using quire::known;
    const quire::Ref tasks(PyImport_ImportModule("asyncio.tasks")), errors(PyImport_ImportModule("asyncio.exceptions"));
    if (!tasks || !errors) return -1;
    known.call_soon = PyUnicode_InternFromString("call_soon");
    known.context_only = Py_BuildValue("(N)", PyUnicode_InternFromString("context"));
    known.cancelled = PyObject_GetAttrString(errors.get(), "CancelledError");
    known.current_task = PyObject_GetAttrString(tasks.get(), "current_task");
    if (!known.call_soon || !known.context_only || !known.cancelled || !known.current_task) return -1;
#if PY_VERSION_HEX < 0x030E0000  // later ones keep it elsewhere
    known.running = PyObject_GetAttrString(tasks.get(), "_current_tasks");
    if (known.running == nullptr || !PyDict_CheckExact(known.running)) {
        PyErr_Clear();
        Py_CLEAR(known.running);
    }
#endif
    PyObject* type = PyType_FromSpec(&quire::SPEC);
    if (type == nullptr) return -1;
    const int done = PyModule_AddObjectRef(module, "Turn", type);
    Py_DECREF(type);
    return done;
}
