// The headers of a message as they were read: what is asked of a CIMultiDictProxy, answered from the message's own text. Writers in C++ read
// them without an object for each.
#pragma once

#include <cstdint>
#include <cstring>
#include <string_view>

#include "parts.h"

namespace quire {

struct HeaderField {
    PyObject* name;  // as it is spelled for Python, ASCII; nullptr: as it stands in the text
    uint32_t name_at, name_size, value_at, value_size;
};

struct Headers {
    PyObject_VAR_HEAD
    PyObject* text;  // bytes that the fields lie in
    HeaderField fields[1];

    std::string_view name(Py_ssize_t i) const {
        const HeaderField& field = fields[i];
        if (field.name == nullptr) return {PyBytes_AS_STRING(text) + field.name_at, field.name_size};
        return {static_cast<const char*>(PyUnicode_DATA(field.name)), field.name_size};
    }
    std::string_view value(Py_ssize_t i) const { return {PyBytes_AS_STRING(text) + fields[i].value_at, fields[i].value_size}; }
};

// Of fields whose names are tokens and whose values are plain (`http_text.h`), in `text`; takes a reference of its own to each name.
PyObject* make_headers(PyObject* text, const HeaderField* fields, size_t num_fields);

// `object` as what it is; nullptr: something else.
const Headers* as_headers(PyObject* object);

}  // namespace quire
