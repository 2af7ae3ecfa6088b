// Reads an answer of a worker that came whole in one read, and is plain.
//
// What it does not take, aiohttp's parser reads: it may be right, wrong, or not yet whole. So nothing is an error here.

#include <cstdint>
#include <cstring>

#include "http_headers.h"
#include "http_text.h"

namespace quire {
namespace {

constexpr size_t MAX_FIELD_BYTES = 8000;  // a little less than what aiohttp's parser refuses
constexpr size_t MAX_HEADERS = 128;
constexpr size_t MAX_LENGTH_DIGITS = 15;

struct Head {
    int status = 0;
    size_t size = 0;  // with the empty line
    size_t num_fields = 0;
    HeaderField fields[MAX_HEADERS];
    size_t num_lengths = 0;
    uint64_t length = 0;
    bool is_chunked = false;  // and says nothing else of how it is transferred
    bool is_events = false;
};

// The line that begins at `at`, without its end; `at` goes to the next one. False: it does not end with CRLF within the data.
bool next_line(std::string_view data, size_t* at, std::string_view* line) {
    const size_t left = data.size() - *at;
    const void* found = left ? std::memchr(data.data() + *at, '\r', left) : nullptr;
    if (found == nullptr) return false;
    const size_t end = size_t(static_cast<const char*>(found) - data.data());
    if (end + 1 >= data.size() || data[end + 1] != '\n') return false;
    *line = data.substr(*at, end - *at);
    *at = end + 2;
    return true;
}

bool is_plain(std::string_view text) {
    for (char c : text)
        if (!is_value_char(static_cast<unsigned char>(c))) return false;
    return true;
}

bool read_status(std::string_view line, Head* head) {
    constexpr std::string_view VERSION = "HTTP/1.1 ";
    if (line.size() < 13 || line.size() > MAX_FIELD_BYTES || line.substr(0, 9) != VERSION || line[12] != ' ' || !is_plain(line)) return false;
    int status = 0;
    for (size_t i = 9; i < 12; ++i) {
        if (line[i] < '0' || line[i] > '9') return false;
        status = status * 10 + (line[i] - '0');
    }
    head->status = status;
    return status >= 200 && status < 600 && status != 204 && status != 304;
}

// Note what a field says of the message. False: it is not plain.
bool note_field(std::string_view name, std::string_view value, Head* head) {
    switch (name.size()) {
        case 7:
            return !same_name(name, "trailer") && !same_name(name, "upgrade");
        case 10:
            return !same_name(name, "connection") || same_name(value, "keep-alive");
        case 12:
            if (same_name(name, "content-type")) {
                constexpr std::string_view EVENTS = "text/event-stream";
                head->is_events |= value.size() >= EVENTS.size() && same_name(value.substr(0, EVENTS.size()), EVENTS);
            }
            return true;
        case 14:
            if (!same_name(name, "content-length")) return true;
            if (value.empty() || value.size() > MAX_LENGTH_DIGITS) return false;
            for (char c : value) {
                if (c < '0' || c > '9') return false;
                head->length = head->length * 10 + uint64_t(c - '0');
            }
            return ++head->num_lengths == 1;
        case 16:
            return !same_name(name, "proxy-connection");
        case 17:
            if (!same_name(name, "transfer-encoding")) return true;
            if (head->is_chunked) return false;
            return head->is_chunked = same_name(value, "chunked");
        case 18:
            return !same_name(name, "sec-websocket-key1");
        default:
            return true;
    }
}

bool read_head(std::string_view data, Head* head) {
    size_t at = 0;
    std::string_view line;
    if (data.size() > UINT32_MAX || !next_line(data, &at, &line) || !read_status(line, head)) return false;
    while (next_line(data, &at, &line)) {
        if (line.empty()) {
            head->size = at;
            return true;
        }
        const size_t colon = line.find(':');
        if (colon == 0 || colon == std::string_view::npos || line.size() > MAX_FIELD_BYTES || head->num_fields == MAX_HEADERS) return false;
        const std::string_view name = line.substr(0, colon), value = stripped(line.substr(colon + 1));
        for (char c : name)
            if (!is_name_char(static_cast<unsigned char>(c))) return false;
        if (!is_plain(value) || !note_field(name, value, head)) return false;
        head->fields[head->num_fields++] = {
            nullptr, uint32_t(name.data() - data.data()), uint32_t(name.size()), uint32_t(value.data() - data.data()), uint32_t(value.size())};
    }
    return false;
}

PyObject* read_answer(PyObject*, PyObject* data) {
    if (!PyBytes_CheckExact(data)) {
        PyErr_SetString(PyExc_TypeError, "read_answer(data: bytes)");
        return nullptr;
    }
    const std::string_view text(PyBytes_AS_STRING(data), size_t(PyBytes_GET_SIZE(data)));
    Head head;
    if (!read_head(text, &head)) Py_RETURN_NONE;
    if (head.is_chunked) {
        if (head.num_lengths) Py_RETURN_NONE;
        return PyLong_FromSize_t(head.size);
    }
    if (head.num_lengths != 1) Py_RETURN_NONE;
    const uint64_t size = text.size() - head.size;
    if (head.length > size) return PyLong_FromLongLong(-int64_t(head.length - size));
    if (head.length < size || head.is_events) Py_RETURN_NONE;
    PyObject* headers = make_headers(data, head.fields, head.num_fields);
    PyObject* body = PyBytes_FromStringAndSize(text.data() + head.size, Py_ssize_t(head.length));
    PyObject* status = PyLong_FromLong(head.status);
    PyObject* answer = headers == nullptr || body == nullptr || status == nullptr ? nullptr : PyTuple_Pack(3, status, headers, body);
    Py_XDECREF(headers);
    Py_XDECREF(body);
    Py_XDECREF(status);
    return answer;
}

PyMethodDef METHODS[] = {
    {"read_answer", read_answer, METH_O,
     "read_answer(data): (status, headers, body) of one whole plain answer that is no stream of events; the size of a plain head\n"
     "whose body comes in chunks; the number of bytes that are missing of a plain answer, negated; None for all else."},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace
}  // namespace quire

int add_http_answer(PyObject* module) { return PyModule_AddFunctions(module, quire::METHODS); }
