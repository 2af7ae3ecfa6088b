// Writes the fields of a log line as quire_contract.telemetry.EventLine does; what is not plain is asked of Python.

#include <cmath>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <vector>

#include "python_ref.h"

namespace quire {
namespace {

constexpr size_t MAX_VALUE_CHARS = 2000;

struct Label {
    std::string text;
    bool is_secret;
};

struct Writer {
    PyObject_HEAD
    PyObject* labels;  // tuple of (str, bool), as given
    PyObject* pair;    // (label, value, is_secret) -> str
    std::vector<Label>* made;
};

bool as_ascii(PyObject* text, std::string_view& found) {
    if (!PyUnicode_CheckExact(text) || !PyUnicode_IS_ASCII(text)) return false;
    found = {static_cast<const char*>(PyUnicode_DATA(text)), size_t(PyUnicode_GET_LENGTH(text))};
    return true;
}

// As it is, in quotation marks, or to be asked of Python.
enum class Form { BARE, QUOTED, OTHER };

Form form_of(std::string_view text) {
    if (text.size() > MAX_VALUE_CHARS) return Form::OTHER;
    bool is_bare = !text.empty(), has_escapes = false;
    for (char c : text) {
        if (c < 0x20 || c == 0x7f) return Form::OTHER;
        if (c == ' ' || c == '"' || c == '=') is_bare = false;
        if (c == '"' || c == '\\') has_escapes = true;
    }
    if (is_bare) return Form::BARE;
    return has_escapes ? Form::OTHER : Form::QUOTED;
}

// Tenths, as many as six digits show, are what most numbers here are.
bool add_tenths(double number, std::string& out) {
    constexpr double MOST = 99999.0;
    if (!(number > 0.0 && number < MOST)) return false;
    const long tenths = std::lround(number * 10.0);
    if (double(tenths) / 10.0 != number) return false;
    out.append(std::to_string(tenths / 10));
    if (tenths % 10) out.append({'.', char('0' + tenths % 10)});
    return true;
}

// Whether the value was added; false leaves `out` as it was.
bool add_plain(PyObject* value, std::string& out, const std::string& label) {
    std::string_view text;
    if (as_ascii(value, text)) {
        const Form form = form_of(text);
        if (form == Form::OTHER) return false;
        out.append(label);
        if (form == Form::QUOTED) out.push_back('"');
        out.append(text);
        if (form == Form::QUOTED) out.push_back('"');
        return true;
    }
    if (PyLong_CheckExact(value)) {
        int overflow = 0;
        const long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
        if (overflow) return false;
        out.append(label).append(std::to_string(number));
        return true;
    }
    if (PyFloat_CheckExact(value)) {
        const size_t before = out.size();
        out.append(label);
        if (add_tenths(PyFloat_AS_DOUBLE(value), out)) return true;
        out.resize(before);
        char* number = PyOS_double_to_string(PyFloat_AS_DOUBLE(value), 'g', 6, 0, nullptr);
        if (number == nullptr) {
            PyErr_Clear();
            return false;
        }
        const std::unique_ptr<char, void (*)(void*)> freed(number, PyMem_Free);
        out.append(label).append(number);
        return true;
    }
    return false;
}

enum class Outcome { DONE, NO_TEXT, FAILED };

Outcome add_text(PyObject* text, std::string& out) {
    Py_ssize_t size = 0;
    const char* data = PyUnicode_Check(text) ? PyUnicode_AsUTF8AndSize(text, &size) : nullptr;
    if (data == nullptr) {  // a lone surrogate
        PyErr_Clear();
        return Outcome::NO_TEXT;
    }
    out.append(data, size_t(size));
    return Outcome::DONE;
}

// By Python.
Outcome add_other(Writer* self, size_t place, PyObject* value, std::string& out) {
    PyObject* label = PyTuple_GET_ITEM(self->labels, Py_ssize_t(place));
    const Ref text(PyObject_CallFunctionObjArgs(self->pair, PyTuple_GET_ITEM(label, 0), value, PyTuple_GET_ITEM(label, 1), nullptr));
    return text ? add_text(text.get(), out) : Outcome::FAILED;
}

Outcome add_all(Writer* self, PyObject* begin, PyObject* values, std::string& out) {
    Outcome outcome = add_text(begin, out);
    for (size_t i = 0; outcome == Outcome::DONE && i < self->made->size(); ++i) {
        PyObject* value = PyTuple_GET_ITEM(values, Py_ssize_t(i));
        if (value == Py_None) continue;
        const Label& label = (*self->made)[i];
        out.push_back(' ');
        if (!label.is_secret && add_plain(value, out, label.text)) continue;
        outcome = add_other(self, i, value, out);
    }
    return outcome;
}

PyObject* written(Writer* self, PyObject* begin, PyObject* values) {
    std::string out;
    out.reserve(512);
    switch (add_all(self, begin, values, out)) {
        case Outcome::FAILED: return nullptr;
        case Outcome::NO_TEXT: Py_RETURN_NONE;
        case Outcome::DONE: break;
    }
    return PyUnicode_FromStringAndSize(out.data(), Py_ssize_t(out.size()));
}

PyObject* write(PyObject* object, PyObject* const* args, Py_ssize_t count) {
    auto* self = reinterpret_cast<Writer*>(object);
    if (count != 2 || !PyUnicode_Check(args[0]) || !PyTuple_CheckExact(args[1])) {
        PyErr_SetString(PyExc_TypeError, "write(begin: str, values: tuple)");
        return nullptr;
    }
    if (size_t(PyTuple_GET_SIZE(args[1])) != self->made->size()) {
        PyErr_SetString(PyExc_ValueError, "there are as many values as labels");
        return nullptr;
    }
    try {
        return written(self, args[0], args[1]);
    } catch (const std::bad_alloc&) {
        return PyErr_NoMemory();
    }
}

std::unique_ptr<std::vector<Label>> labels_of(PyObject* labels) {
    auto made = std::make_unique<std::vector<Label>>();
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(labels); ++i) {
        PyObject* label = PyTuple_GET_ITEM(labels, i);
        std::string_view text;
        if (!PyTuple_CheckExact(label) || PyTuple_GET_SIZE(label) != 2 || !as_ascii(PyTuple_GET_ITEM(label, 0), text)) return nullptr;
        made->push_back({std::string(text), PyTuple_GET_ITEM(label, 1) != Py_False});
    }
    return made;
}

PyObject* make(PyTypeObject* type, PyObject* args, PyObject*) {
    PyObject *labels, *pair;
    if (!PyArg_ParseTuple(args, "O!O", &PyTuple_Type, &labels, &pair)) return nullptr;
    std::unique_ptr<std::vector<Label>> made;
    try {
        made = labels_of(labels);
    } catch (const std::bad_alloc&) {
        return PyErr_NoMemory();
    }
    if (!made) {
        PyErr_SetString(PyExc_ValueError, "labels are pairs of ASCII and bool");
        return nullptr;
    }
    auto* self = reinterpret_cast<Writer*>(type->tp_alloc(type, 0));
    if (self == nullptr) return nullptr;
    self->labels = Py_NewRef(labels);
    self->pair = Py_NewRef(pair);
    self->made = made.release();
    return reinterpret_cast<PyObject*>(self);
}

void end(PyObject* object) {
    auto* self = reinterpret_cast<Writer*>(object);
    PyTypeObject* type = Py_TYPE(object);
    delete self->made;
    Py_XDECREF(self->labels);
    Py_XDECREF(self->pair);
    type->tp_free(object);
    Py_DECREF(type);
}

PyMethodDef METHODS[] = {
    {"write", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(write)), METH_FASTCALL,
     "write(begin, values): `begin`, and each value that is not None behind its label, with spaces between; None: it cannot be encoded."},
    {nullptr, nullptr, 0, nullptr},
};

PyType_Slot SLOTS[] = {
    {Py_tp_new, reinterpret_cast<void*>(make)},
    {Py_tp_dealloc, reinterpret_cast<void*>(end)},
    {Py_tp_methods, METHODS},
    {Py_tp_doc, const_cast<char*>("LineWriter(labels, pair): writes lines with these labels, (text, is_secret); pair(label, value, is_secret) "
                                  "writes what is not plain.")},
    {0, nullptr},
};
PyType_Spec SPEC = {"quire_router_native.LineWriter", sizeof(Writer), 0, Py_TPFLAGS_DEFAULT, SLOTS};

}  // namespace
}  // namespace quire

int add_event_line(PyObject* module) {
    PyObject* type = PyType_FromSpec(&quire::SPEC);
    if (type == nullptr) return -1;
    const int added = PyModule_AddObjectRef(module, "LineWriter", type);
    Py_DECREF(type);
    return added;
}
