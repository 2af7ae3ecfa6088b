// The body of a usual chat from its bytes: what `decode_routing_fields` makes of it, which reads all that is not usual.
//
// Usual is what strict JSON (RFC 8259) allows and holds a model, messages of a role and a text, and other fields of plain types within
// their limits. Whatever else comes is none of this: nothing is refused here.

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <string_view>

#include "python_ref.h"

namespace quire {
namespace {

constexpr Py_ssize_t MAX_MESSAGES = 256;
constexpr int MAX_DEPTH = 16;
constexpr int MAX_CONTAINERS = 4096;  // what the general way allows lies above both
constexpr size_t MAX_DIGITS = 18;  // of an integer

enum class Kind { TEXT, SALT, FLAG, INTEGER, MESSAGES, ABSENT };  // ABSENT: usual only where it is null

struct Field {
    std::string_view name;
    Kind kind;
};
// Of RoutingFields; a test holds this to it. What else a body has is the worker's.
constexpr std::array<Field, 19> FIELDS = {{
    {"model", Kind::TEXT},
    {"messages", Kind::MESSAGES},
    {"stream", Kind::FLAG},
    {"max_tokens", Kind::INTEGER},
    {"max_completion_tokens", Kind::INTEGER},
    {"n", Kind::INTEGER},
    {"user", Kind::TEXT},
    {"prompt_cache_key", Kind::TEXT},
    {"cache_salt", Kind::SALT},
    {"reasoning_effort", Kind::TEXT},
    {"add_special_tokens", Kind::FLAG},
    {"add_generation_prompt", Kind::FLAG},
    {"continue_final_message", Kind::FLAG},
    {"prompt", Kind::ABSENT},
    {"chat_template_kwargs", Kind::ABSENT},
    {"truncate_prompt_tokens", Kind::ABSENT},
    {"tools", Kind::ABSENT},
    {"timeout_s", Kind::ABSENT},
    {"queue_timeout_s", Kind::ABSENT},
}};
constexpr size_t MODEL = 0, MESSAGES = 1;
// Of ChatMessage, beside role and content: usual only where they are null.
constexpr std::string_view OTHERS_OF_MESSAGE[] = {"name", "tool_calls", "tool_call_id", "reasoning_content", "reasoning", "audio"};
constexpr const char* ROLES[] = {"system", "user", "assistant", "developer", "tool", "function"};

struct Reader {
    PyObject_HEAD
    PyObject *fields_type, *message_type;
    PyObject *names[FIELDS.size()], *roles[std::size(ROLES)], *message_names;
    PyObject* last_names;  // of the fields that the body before had: mostly those of the next one
    uint32_t last_mask;
    Py_ssize_t max_bytes, max_messages;
    size_t max_salt_chars;
};

// Between the quotes of a string.
struct Text {
    std::string_view bytes;
    bool has_escapes = false, is_ascii = true;
};

enum class Found { NOTHING, IT, FAILED };  // FAILED: with a Python exception

bool is_digit(char c) { return c >= '0' && c <= '9'; }

int hex_digit(char c) {
    if (is_digit(c)) return c - '0';
    const char low = char(c | 0x20);
    return low >= 'a' && low <= 'f' ? low - 'a' + 10 : -1;
}

// The number of four hex digits; -1: they are none.
int hex4(const char* at) {
    int number = 0;
    for (int i = 0; i < 4; ++i) {
        const int digit = hex_digit(at[i]);
        if (digit < 0) return -1;
        number = number << 4 | digit;
    }
    return number;
}

bool is_high(int unit) { return unit >= 0xD800 && unit < 0xDC00; }
bool is_low(int unit) { return unit >= 0xDC00 && unit < 0xE000; }

// Whether one of these eight bytes may be no letter of a text: a quote, an escape, a control character, or not ASCII.
bool is_special(const char* at) {
    constexpr uint64_t ONES = 0x0101010101010101;
    uint64_t word;
    std::memcpy(&word, at, sizeof word);
    const uint64_t quote = (word ^ ONES * '"') - ONES, escape = (word ^ ONES * '\\') - ONES;
    return ((word - ONES * 0x20) | quote | escape | word) & (ONES * 0x80);
}

// Goes over JSON. Functions that give bool: false if it is not usual, or not JSON.
class Scan {
   public:
    explicit Scan(std::string_view body) : at_(body.data()), end_(body.data() + body.size()) {}

    char next() {
        while (at_ < end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\r' || *at_ == '\t')) ++at_;
        return at_ < end_ ? *at_ : '\0';
    }
    bool take(char wanted) { return next() == wanted && (++at_, true); }
    bool is_at_end() { return next() == '\0' && at_ == end_; }

    // The literal, if it comes next.
    bool literal(std::string_view word) {
        if (size_t(end_ - at_) < word.size() || std::memcmp(at_, word.data(), word.size()) != 0) return false;
        at_ += word.size();
        return true;
    }

    bool text(Text& text) {
        if (!take('"')) return false;
        const char* const begin = at_;
        while (true) {
            while (end_ - at_ >= 8 && !is_special(at_)) at_ += 8;
            if (at_ == end_) return false;
            const auto byte = static_cast<uint8_t>(*at_);
            if (byte == '"') break;
            if (byte < 0x20) return false;
            if (byte >= 0x80) text.is_ascii = false;
            if (byte != '\\') ++at_;
            else if (text.has_escapes = true; !escape()) return false;
        }
        text.bytes = {begin, size_t(at_ - begin)};
        ++at_;
        return true;
    }

    // A name that has no escapes, and its colon.
    bool name(std::string_view& name) {
        Text found;
        name = {};
        if (!text(found) || found.has_escapes || !found.is_ascii) return false;
        name = found.bytes;
        return take(':');
    }

    // An integer that is not negative.
    bool integer(long long& number) {
        next();
        const char* const begin = at_;
        number = 0;
        while (at_ < end_ && is_digit(*at_) && size_t(at_ - begin) < MAX_DIGITS) number = number * 10 + (*at_++ - '0');
        const size_t size = size_t(at_ - begin);
        if (size == 0 || (*begin == '0' && size > 1)) return false;
        return at_ == end_ || (*at_ != '.' && (*at_ | 0x20) != 'e' && !is_digit(*at_));
    }

    // Any value that nobody here asks for.
    bool skip(int depth = 0) {
        switch (next()) {
            case '"': {
                Text text_;
                return text(text_) && text_.is_ascii;
            }
            case '{': return depth < MAX_DEPTH && ++num_containers_ < MAX_CONTAINERS && object([&](std::string_view) { return skip(depth + 1); });
            case '[': return depth < MAX_DEPTH && ++num_containers_ < MAX_CONTAINERS && array([&] { return skip(depth + 1); });
            case 't': return literal("true");
            case 'f': return literal("false");
            case 'n': return literal("null");
            default: return number();
        }
    }

    template <typename Take>
    bool object(Take take_value) {
        if (!take('{')) return false;
        if (take('}')) return true;
        do {
            std::string_view key;
            if (!name(key) || !take_value(key)) return false;
        } while (take(','));
        return take('}');
    }

    template <typename Take>
    bool array(Take take_item) {
        if (!take('[')) return false;
        if (take(']')) return true;
        do {
            if (!take_item()) return false;
        } while (take(','));
        return take(']');
    }

   private:
    bool escape() {
        if (end_ - at_ < 2) return false;
        const char kind = at_[1];
        if (kind != 'u') {
            at_ += 2;
            return kind != '\0' && std::strchr("\"\\/bfnrt", kind) != nullptr;
        }
        if (end_ - at_ < 6) return false;
        const int unit = hex4(at_ + 2);
        at_ += 6;
        if (unit < 0 || is_low(unit)) return false;
        if (!is_high(unit)) return true;
        if (end_ - at_ < 6 || at_[0] != '\\' || at_[1] != 'u' || !is_low(hex4(at_ + 2))) return false;
        at_ += 6;
        return true;
    }

    bool digits() {
        const char* const begin = at_;
        while (at_ < end_ && is_digit(*at_)) ++at_;
        return at_ != begin;
    }

    bool number() {
        if (at_ < end_ && *at_ == '-') ++at_;
        const char* const begin = at_;
        if (!digits() || (*begin == '0' && at_ - begin > 1)) return false;
        if (at_ < end_ && *at_ == '.' && (++at_, !digits())) return false;
        if (at_ < end_ && (*at_ | 0x20) == 'e') {
            ++at_;
            if (at_ < end_ && (*at_ == '+' || *at_ == '-')) ++at_;
            return digits();
        }
        return true;
    }

    const char* at_;
    const char* const end_;
    int num_containers_ = 0;
};

void append_utf8(std::string& text, uint32_t code) {
    if (code < 0x80) {
        text += char(code);
    } else if (code < 0x800) {
        text += char(0xC0 | code >> 6);
        text += char(0x80 | (code & 0x3F));
    } else if (code < 0x10000) {
        text += char(0xE0 | code >> 12);
        text += char(0x80 | (code >> 6 & 0x3F));
        text += char(0x80 | (code & 0x3F));
    } else {
        text += char(0xF0 | code >> 18);
        text += char(0x80 | (code >> 12 & 0x3F));
        text += char(0x80 | (code >> 6 & 0x3F));
        text += char(0x80 | (code & 0x3F));
    }
}

// Without its escapes, which are well formed.
std::string unescaped(std::string_view bytes) {
    std::string text;
    text.reserve(bytes.size());
    for (size_t at = 0; at < bytes.size();) {
        const size_t next = std::min(bytes.find('\\', at), bytes.size());
        text.append(bytes, at, next - at);
        at = next;
        if (at == bytes.size()) break;
        const char kind = bytes[at + 1];
        at += 2;
        switch (kind) {
            case 'b': text += '\b'; break;
            case 'f': text += '\f'; break;
            case 'n': text += '\n'; break;
            case 'r': text += '\r'; break;
            case 't': text += '\t'; break;
            case 'u': {
                auto code = uint32_t(hex4(&bytes[at]));
                at += 4;
                if (is_high(int(code))) {
                    code = 0x10000 + ((code - 0xD800) << 10) + (uint32_t(hex4(&bytes[at + 2])) - 0xDC00);
                    at += 6;
                }
                append_utf8(text, code);
                break;
            }
            default: text += kind;
        }
    }
    return text;
}

// A str. NOTHING: it is not UTF-8.
Found text_of(std::string_view bytes, bool is_ascii, Ref& made) {
    if (is_ascii) {
        made = Ref(PyUnicode_New(Py_ssize_t(bytes.size()), 127));
        if (!made) return Found::FAILED;
        if (!bytes.empty()) std::memcpy(PyUnicode_1BYTE_DATA(made.get()), bytes.data(), bytes.size());
        return Found::IT;
    }
    made = Ref(PyUnicode_DecodeUTF8(bytes.data(), Py_ssize_t(bytes.size()), nullptr));
    if (made) return Found::IT;
    if (!PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) return Found::FAILED;
    PyErr_Clear();
    return Found::NOTHING;
}

Found read_text(Scan& scan, Ref& made) {
    Text text;
    if (!scan.text(text)) return Found::NOTHING;
    return text.has_escapes ? text_of(unescaped(text.bytes), false, made) : text_of(text.bytes, text.is_ascii, made);
}

Found read_role(const Reader& reader, Scan& scan, Ref& role) {
    Text text;
    if (!scan.text(text)) return Found::NOTHING;
    for (size_t i = 0; i < std::size(ROLES); ++i)
        if (text.bytes == ROLES[i]) return role = Ref::borrowed(reader.roles[i]), Found::IT;
    return Found::NOTHING;
}

Found read_message(const Reader& reader, Scan& scan, PyObject* messages) {
    Ref role, content;
    Found found = Found::IT;
    const bool is_usual = scan.object([&](std::string_view name) {
        if (name == "role") return !role && (found = read_role(reader, scan, role)) == Found::IT;
        if (name == "content") return !content && (found = read_text(scan, content)) == Found::IT;
        for (const auto other : OTHERS_OF_MESSAGE)
            if (name == other) return scan.next() == 'n' && scan.literal("null");
        return scan.skip();
    });
    if (found == Found::FAILED) return found;
    if (!is_usual || !role || !content) return Found::NOTHING;
    PyObject* const values[] = {role.get(), content.get()};
    const Ref message(PyObject_Vectorcall(reader.message_type, values, 0, reader.message_names));
    if (!message || PyList_Append(messages, message.get()) < 0) return Found::FAILED;
    return Found::IT;
}

Found read_messages(const Reader& reader, Scan& scan, Ref& messages) {
    messages = Ref(PyList_New(0));
    if (!messages) return Found::FAILED;
    Found found = Found::IT;
    const bool is_usual = scan.array([&] {
        if (PyList_GET_SIZE(messages.get()) >= reader.max_messages) return false;
        return (found = read_message(reader, scan, messages.get())) == Found::IT;
    });
    if (found == Found::FAILED) return found;
    return is_usual && PyList_GET_SIZE(messages.get()) ? Found::IT : Found::NOTHING;
}

Found read_value(const Reader& reader, Scan& scan, Kind kind, Ref& value) {
    switch (kind) {
        case Kind::MESSAGES: return read_messages(reader, scan, value);
        case Kind::TEXT: return read_text(scan, value);
        case Kind::SALT: {
            const Found found = read_text(scan, value);
            return found == Found::IT && size_t(PyUnicode_GET_LENGTH(value.get())) > reader.max_salt_chars ? Found::NOTHING : found;
        }
        case Kind::FLAG:
            if (scan.literal("true")) value = Ref::borrowed(Py_True);
            else if (scan.literal("false")) value = Ref::borrowed(Py_False);
            return value ? Found::IT : Found::NOTHING;
        case Kind::INTEGER: {
            long long number;
            if (!scan.integer(number)) return Found::NOTHING;
            value = Ref(PyLong_FromLongLong(number));
            return value ? Found::IT : Found::FAILED;
        }
        case Kind::ABSENT: break;
    }
    return Found::NOTHING;
}

// A tuple of the names of the fields in `mask`; nullptr with an exception.
Ref names_of(Reader& reader, uint32_t mask, Py_ssize_t count) {
    if (mask == reader.last_mask && reader.last_names != nullptr) return Ref::borrowed(reader.last_names);
    Ref names(PyTuple_New(count));
    if (!names) return names;
    Py_ssize_t at = 0;
    for (size_t i = 0; i < FIELDS.size(); ++i)
        if (mask >> i & 1) PyTuple_SET_ITEM(names.get(), at++, Py_NewRef(reader.names[i]));
    reader.last_mask = mask;
    Py_XSETREF(reader.last_names, Py_NewRef(names.get()));
    return names;
}

PyObject* read_body(Reader& reader, std::string_view body) {
    Scan scan(body);
    Ref values[FIELDS.size()];
    uint32_t seen = 0;
    Found found = Found::IT;
    const bool is_usual = scan.object([&](std::string_view name) {
        size_t i = 0;
        while (i < FIELDS.size() && FIELDS[i].name != name) ++i;
        if (i == FIELDS.size()) return scan.skip();
        if (seen >> i & 1) return false;
        seen |= 1u << i;
        if (scan.next() == 'n') return i != MODEL && i != MESSAGES && scan.literal("null");
        return (found = read_value(reader, scan, FIELDS[i].kind, values[i])) == Found::IT;
    });
    if (found == Found::FAILED) return nullptr;
    if (!is_usual || !scan.is_at_end() || !values[MODEL] || !values[MESSAGES]) Py_RETURN_NONE;
    PyObject* given[FIELDS.size()];
    uint32_t mask = 0;
    Py_ssize_t count = 0;
    for (size_t i = 0; i < FIELDS.size(); ++i) {
        if (!values[i]) continue;
        given[count++] = values[i].get();
        mask |= 1u << i;
    }
    const Ref names = names_of(reader, mask, count);
    return names ? PyObject_Vectorcall(reader.fields_type, given, 0, names.get()) : nullptr;
}

PyObject* read(PyObject* self, PyObject* body) {
    auto& reader = *reinterpret_cast<Reader*>(self);
    if (!PyBytes_CheckExact(body) || PyBytes_GET_SIZE(body) > reader.max_bytes) Py_RETURN_NONE;
    const std::string_view bytes(PyBytes_AS_STRING(body), size_t(PyBytes_GET_SIZE(body)));
    return guarded<PyObject*>(nullptr, [&] { return read_body(reader, bytes); });
}

void end(PyObject* object) {
    auto* self = reinterpret_cast<Reader*>(object);
    PyTypeObject* type = Py_TYPE(object);
    Py_XDECREF(self->fields_type);
    Py_XDECREF(self->message_type);
    for (PyObject* name : self->names) Py_XDECREF(name);
    for (PyObject* role : self->roles) Py_XDECREF(role);
    Py_XDECREF(self->message_names);
    Py_XDECREF(self->last_names);
    type->tp_free(object);
    Py_DECREF(type);
}

PyObject* make(PyTypeObject* type, PyObject* args, PyObject*) {
    PyObject *fields_type, *message_type;
    Py_ssize_t max_bytes, max_messages, max_salt_chars;
    if (!PyArg_ParseTuple(args, "OOnnn", &fields_type, &message_type, &max_bytes, &max_messages, &max_salt_chars)) return nullptr;
    if (max_bytes < 0 || max_messages < 0 || max_salt_chars < 0) return PyErr_SetString(PyExc_ValueError, "limits are not negative"), nullptr;
    Ref object(type->tp_alloc(type, 0));  // all of it is zero
    if (!object) return nullptr;
    auto* self = reinterpret_cast<Reader*>(object.get());
    self->fields_type = Py_NewRef(fields_type);
    self->message_type = Py_NewRef(message_type);
    self->max_bytes = max_bytes;
    self->max_messages = std::min(max_messages, MAX_MESSAGES);
    self->max_salt_chars = size_t(max_salt_chars);
    for (size_t i = 0; i < FIELDS.size(); ++i)
        if ((self->names[i] = PyUnicode_InternFromString(FIELDS[i].name.data())) == nullptr) return nullptr;
    for (size_t i = 0; i < std::size(ROLES); ++i)
        if ((self->roles[i] = PyUnicode_InternFromString(ROLES[i])) == nullptr) return nullptr;
    self->message_names = Py_BuildValue("(ss)", "role", "content");
    return self->message_names == nullptr ? nullptr : object.release();
}

PyMethodDef METHODS[] = {
    {"read", read, METH_O, "read(body): the fields of a usual chat; None: it is anything else, or not right."},
    {nullptr, nullptr, 0, nullptr},
};

PyType_Slot SLOTS[] = {
    {Py_tp_new, reinterpret_cast<void*>(make)},
    {Py_tp_dealloc, reinterpret_cast<void*>(end)},
    {Py_tp_methods, METHODS},
    {Py_tp_doc, const_cast<char*>("ChatBody(RoutingFields, ChatMessage, max_bytes, max_messages, max_salt_chars): reads bodies of chats.")},
    {0, nullptr},
};
PyType_Spec SPEC = {"quire_router_native.ChatBody", sizeof(Reader), 0, Py_TPFLAGS_DEFAULT, SLOTS};

}  // namespace
}  // namespace quire

int add_chat_body(PyObject* module) {
    PyObject* type = PyType_FromSpec(&quire::SPEC);
    if (type == nullptr) return -1;
    const int added = PyModule_AddObjectRef(module, "ChatBody", type);
    Py_DECREF(type);
    return added;
}
