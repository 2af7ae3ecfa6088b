// Reads a request that is wholly there and wholly plain. Whatever is odd, unknown, partial or followed by more is not read here: the HTTP
// library reads it, or refuses it. So nothing here needs to be said about what is wrong with a message (RFC 9112; llhttp, strict).

#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>

#include "hash.h"
#include "http_headers.h"

namespace quire {
namespace {

constexpr size_t MAX_HEADERS = 64, MAX_NAMES = 512, MAX_NAME_CHARS = 64, MAX_VALUE_CHARS = 4096, MAX_LENGTH_DIGITS = 10;

enum class Kind : uint8_t { ANY, ONCE, HOST, LENGTH, CONNECTION, REFUSED };

struct Rule {
    std::string_view name;
    Kind kind;
    uint16_t bit;  // of what may come once
};

constexpr Rule RULES[] = {
    {"host", Kind::HOST, 1},
    {"content-length", Kind::LENGTH, 2},
    {"connection", Kind::CONNECTION, 4},
    {"content-type", Kind::ONCE, 8},
    {"content-location", Kind::ONCE, 16},
    {"content-range", Kind::ONCE, 32},
    {"etag", Kind::ONCE, 64},
    {"max-forwards", Kind::ONCE, 128},
    {"server", Kind::ONCE, 256},
    {"user-agent", Kind::ONCE, 512},
    {"transfer-encoding", Kind::REFUSED, 0},
    {"content-encoding", Kind::REFUSED, 0},
    {"expect", Kind::REFUSED, 0},
    {"upgrade", Kind::REFUSED, 0},
    {"http2-settings", Kind::REFUSED, 0},
    {"proxy-connection", Kind::REFUSED, 0},
    {"keep-alive", Kind::REFUSED, 0},
    {"te", Kind::REFUSED, 0},
    {"trailer", Kind::REFUSED, 0},
};

// What a byte may be part of.
enum : uint8_t { TOKEN = 1, VALUE = 2 };

struct Bytes {
    uint8_t of[256] = {};
    constexpr Bytes() {
        for (int c = 0x20; c < 0x7f; ++c) of[c] = VALUE;
        of['\t'] = VALUE;
        for (int c = '0'; c <= '9'; ++c) of[c] |= TOKEN;
        for (int c = 'a'; c <= 'z'; ++c) of[c] |= TOKEN, of[c - 'a' + 'A'] |= TOKEN;
        for (char c : std::string_view("!#$%&'*+-.^_`|~")) of[uint8_t(c)] |= TOKEN;
    }
};
constexpr Bytes BYTES;

bool is(char c, uint8_t what) { return BYTES.of[uint8_t(c)] & what; }
char lower(char c) { return c >= 'A' && c <= 'Z' ? char(c + 32) : c; }

bool equals_lower(std::string_view text, std::string_view lowered) {
    if (text.size() != lowered.size()) return false;
    for (size_t i = 0; i < text.size(); ++i)
        if (lower(text[i]) != lowered[i]) return false;
    return true;
}

struct Name {
    PyObject* text = nullptr;  // owned by the table
    Kind kind = Kind::ANY;
    uint16_t bit = 0;
};

struct Hash {  // keyed: strangers choose the names
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return hash_bytes(text.data(), text.size(), 0); }
};
using Names = std::unordered_map<std::string, Name, Hash, std::equal_to<>>;

struct Reader {
    PyObject_HEAD
    PyObject* paths;    // tuple of str
    PyObject* name_of;  // bytes -> str
    Names* names;
    bool is_busy;
};

struct Head {
    PyObject* path = nullptr;  // borrowed
    HeaderField fields[MAX_HEADERS];  // names borrowed from the table, which loses none while a request is read
    size_t num_fields = 0, num_bytes = 0, length = 0;
};

enum class Outcome { PLAIN, ODD, FAILED };

void forget(Names& names) {
    Names old;
    old.swap(names);
    for (auto& entry : old) Py_DECREF(entry.second.text);
}

// nullptr with an exception set: failed.
const Name* name_at(Reader* self, std::string_view raw) {
    auto found = self->names->find(raw);
    if (found != self->names->end()) return &found->second;
    Name name;
    for (const Rule& rule : RULES)
        if (equals_lower(raw, rule.name)) name.kind = rule.kind, name.bit = rule.bit;
    if (raw.size() >= 14 && equals_lower(raw.substr(0, 14), "sec-websocket-")) name.kind = Kind::REFUSED;
    name.text = PyObject_CallFunction(self->name_of, "y#", raw.data(), Py_ssize_t(raw.size()));
    if (name.text == nullptr) return nullptr;
    if (!PyUnicode_Check(name.text) || !PyUnicode_IS_ASCII(name.text) || size_t(PyUnicode_GET_LENGTH(name.text)) != raw.size()) {
        Py_DECREF(name.text);
        PyErr_SetString(PyExc_ValueError, "a header's name is spelled with as many characters as it has bytes");
        return nullptr;
    }
    try {
        return &self->names->emplace(std::string(raw), name).first->second;
    } catch (const std::bad_alloc&) {
        Py_DECREF(name.text);
        PyErr_NoMemory();
        return nullptr;
    }
}

PyObject* known_path(Reader* self, std::string_view path) {
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(self->paths); ++i) {
        PyObject* known = PyTuple_GET_ITEM(self->paths, i);
        if (size_t(PyUnicode_GET_LENGTH(known)) == path.size() && !std::memcmp(PyUnicode_DATA(known), path.data(), path.size()))
            return known;
    }
    return nullptr;
}

// Only digits; what they say.
bool read_length(std::string_view value, size_t& length) {
    if (value.empty() || value.size() > MAX_LENGTH_DIGITS) return false;
    length = 0;
    for (char c : value) {
        if (c < '0' || c > '9') return false;
        length = length * 10 + size_t(c - '0');
    }
    return length > 0;
}

bool takes(const Name& name, std::string_view value, unsigned& seen, Head& head) {
    if (name.kind == Kind::REFUSED || (seen & name.bit)) return false;
    seen |= name.bit;
    if (name.kind == Kind::LENGTH) return read_length(value, head.length);
    return name.kind != Kind::CONNECTION || equals_lower(value, "keep-alive");
}

Outcome read_head(Reader* self, std::string_view data, Head& head) {
    constexpr std::string_view METHOD = "POST ", VERSION = " HTTP/1.1\r\n";
    if (data.size() > UINT32_MAX || !data.starts_with(METHOD)) return Outcome::ODD;
    const size_t end = data.find(' ', METHOD.size());
    if (end == std::string_view::npos || data.substr(end, VERSION.size()) != VERSION) return Outcome::ODD;
    head.path = known_path(self, data.substr(METHOD.size(), end - METHOD.size()));
    if (head.path == nullptr) return Outcome::ODD;
    size_t at = end + VERSION.size();
    unsigned seen = 0;
    while (true) {
        if (data.substr(at, 2) == "\r\n") break;
        const size_t begun = at;
        while (at < data.size() && is(data[at], TOKEN)) ++at;
        const std::string_view raw = data.substr(begun, at - begun);
        if (raw.empty() || raw.size() > MAX_NAME_CHARS || at >= data.size() || data[at] != ':') return Outcome::ODD;
        for (++at; at < data.size() && (data[at] == ' ' || data[at] == '\t');) ++at;
        const size_t value_begun = at;
        while (at < data.size() && is(data[at], VALUE)) ++at;
        if (data.substr(at, 2) != "\r\n") return Outcome::ODD;
        std::string_view value = data.substr(value_begun, at - value_begun);
        while (!value.empty() && (value.back() == ' ' || value.back() == '\t')) value.remove_suffix(1);
        if (value.empty() || value.size() > MAX_VALUE_CHARS || head.num_fields == MAX_HEADERS) return Outcome::ODD;
        at += 2;
        const Name* name = name_at(self, raw);
        if (name == nullptr) return Outcome::FAILED;
        if (!takes(*name, value, seen, head)) return Outcome::ODD;
        head.fields[head.num_fields++] = {
            name->text, uint32_t(begun), uint32_t(raw.size()), uint32_t(value_begun), uint32_t(value.size())};
    }
    if (!(seen & 1) || !(seen & 2)) return Outcome::ODD;  // Host, Content-Length
    head.num_bytes = at + 2;
    return Outcome::PLAIN;
}

// Of the head alone: a body that somebody holds on to is held once.
PyObject* headers_of(std::string_view data, const Head& head) {
    PyObject* text = PyBytes_FromStringAndSize(data.data(), Py_ssize_t(head.num_bytes));
    PyObject* headers = text == nullptr ? nullptr : make_headers(text, head.fields, head.num_fields);
    Py_XDECREF(text);
    return headers;
}

PyObject* read_whole(Reader* self, std::string_view data) {
    Head head;
    switch (read_head(self, data, head)) {
        case Outcome::FAILED: return nullptr;
        case Outcome::ODD: Py_RETURN_NONE;
        case Outcome::PLAIN: break;
    }
    const size_t there = data.size() - head.num_bytes;
    if (there > head.length) Py_RETURN_NONE;
    if (there < head.length) return PyLong_FromSize_t(head.length - there);
    PyObject* headers = headers_of(data, head);
    PyObject* body = headers == nullptr ? nullptr : PyBytes_FromStringAndSize(data.data() + head.num_bytes, Py_ssize_t(there));
    PyObject* found = body == nullptr ? nullptr : PyTuple_Pack(3, head.path, headers, body);
    Py_XDECREF(headers);
    Py_XDECREF(body);
    return found;
}

PyObject* read(PyObject* object, PyObject* data) {
    auto* self = reinterpret_cast<Reader*>(object);
    if (!PyBytes_CheckExact(data) || self->is_busy) Py_RETURN_NONE;
    if (self->names->size() >= MAX_NAMES) forget(*self->names);
    self->is_busy = true;
    PyObject* found = read_whole(self, {PyBytes_AS_STRING(data), size_t(PyBytes_GET_SIZE(data))});
    self->is_busy = false;
    return found;
}

PyObject* make(PyTypeObject* type, PyObject* args, PyObject*) {
    PyObject *paths, *name_of;
    if (!PyArg_ParseTuple(args, "O!O", &PyTuple_Type, &paths, &name_of)) return nullptr;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(paths); ++i) {
        PyObject* path = PyTuple_GET_ITEM(paths, i);
        if (!PyUnicode_Check(path) || !PyUnicode_IS_ASCII(path)) {
            PyErr_SetString(PyExc_ValueError, "paths are of ASCII");
            return nullptr;
        }
    }
    auto names = std::unique_ptr<Names>(new (std::nothrow) Names);
    if (!names) return PyErr_NoMemory();
    auto* self = reinterpret_cast<Reader*>(type->tp_alloc(type, 0));
    if (self == nullptr) return nullptr;
    self->paths = Py_NewRef(paths);
    self->name_of = Py_NewRef(name_of);
    self->names = names.release();
    self->is_busy = false;
    return reinterpret_cast<PyObject*>(self);
}

void end(PyObject* object) {
    auto* self = reinterpret_cast<Reader*>(object);
    PyTypeObject* type = Py_TYPE(object);
    if (self->names != nullptr) forget(*self->names);
    delete self->names;
    Py_XDECREF(self->paths);
    Py_XDECREF(self->name_of);
    type->tp_free(object);
    Py_DECREF(type);
}

PyMethodDef METHODS[] = {
    {"read", read, METH_O,
     "read(data): (path, headers, body) of one plain request; how many bytes of its body are still to come, where nothing else is "
     "missing; None: it is anything else."},
    {nullptr, nullptr, 0, nullptr},
};

PyType_Slot SLOTS[] = {
    {Py_tp_new, reinterpret_cast<void*>(make)},
    {Py_tp_dealloc, reinterpret_cast<void*>(end)},
    {Py_tp_methods, METHODS},
    {Py_tp_doc, const_cast<char*>("PlainReader(paths, name_of): reads POSTs of these paths; name_of(bytes) spells a header's name.")},
    {0, nullptr},
};
PyType_Spec SPEC = {"quire_router_native.PlainReader", sizeof(Reader), 0, Py_TPFLAGS_DEFAULT, SLOTS};

}  // namespace
}  // namespace quire

int add_plain_request(PyObject* module) {
    PyObject* type = PyType_FromSpec(&quire::SPEC);
    if (type == nullptr) return -1;
    const int added = PyModule_AddObjectRef(module, "PlainReader", type);
    Py_DECREF(type);
    return added;
}
