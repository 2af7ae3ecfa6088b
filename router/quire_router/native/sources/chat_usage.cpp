// Reads what a whole answer in chats' form says that it used. Takes only JSON of which it is certain; msgspec reads all other.

#include <cstring>
#include <optional>
#include <string_view>

#include "parts.h"

namespace quire {
namespace {

constexpr int MAX_DEPTH = 32, MAX_DIGITS = 15;

struct Used {
    std::optional<long long> prompt, output;
    long long cached = 0;
    bool has_details = false;
};

bool is_digit(char c) { return c >= '0' && c <= '9'; }

int hex_of(char c) {
    if (is_digit(c)) return c - '0';
    const char lower = char(c | 0x20);
    return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

// Every step of it: false where the text is not certain to be JSON that everybody reads alike.
class Reader {
   public:
    explicit Reader(std::string_view text) : at_(text.data()), end_(text.data() + text.size()) {}

    bool body(Used& used) {
        bool found = false;
        const auto member = [&](std::string_view key) {
            if (key == "response" || key == "message") return false;
            if (key != "usage") return value(1);
            if (found) return false;
            found = true;
            return usage(used);
        };
        return object(member) && found && used.prompt && used.output && (space(), at_ == end_);
    }

   private:
    const char* at_;
    const char* end_;

    void space() {
        while (at_ < end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\t' || *at_ == '\r')) ++at_;
    }

    bool take(char c) {
        if (at_ == end_ || *at_ != c) return false;
        ++at_;
        return true;
    }

    bool word(std::string_view text) {
        if (size_t(end_ - at_) < text.size() || std::memcmp(at_, text.data(), text.size()) != 0) return false;
        at_ += text.size();
        return true;
    }

    // `member` reads the value of a key.
    template <typename Member>
    bool object(Member member) {
        space();
        if (!take('{')) return false;
        space();
        if (take('}')) return true;
        do {
            std::string_view key;
            space();
            if (!string(key) || key.find('\\') != key.npos) return false;
            take(' ');  // more than one before a colon nobody looks for
            if (!take(':')) return false;
            space();
            if (!member(key)) return false;
            space();
        } while (take(','));
        return take('}');
    }

    bool usage(Used& used) {
        return object([&](std::string_view key) {
            if (key == "prompt_tokens") return !used.prompt && number(used.prompt);
            if (key == "completion_tokens") return !used.output && number(used.output);
            if (key == "prompt_tokens_details") return details(used);
            for (std::string_view other : {"input_tokens", "output_tokens", "input_tokens_details", "cache_read_input_tokens",
                                           "cache_creation_input_tokens"})
                if (key == other) return false;
            return value(2);
        });
    }

    bool details(Used& used) {
        if (used.has_details) return false;
        used.has_details = true;
        if (word("null")) return true;
        std::optional<long long> cached;
        bool has_cached = false;
        const bool is_read = object([&](std::string_view key) {
            if (key != "cached_tokens") return value(3);
            if (has_cached) return false;
            has_cached = true;
            return word("null") || number(cached);
        });
        used.cached = cached.value_or(0);
        return is_read;
    }

    bool number(std::optional<long long>& found) {
        const char* first = at_;
        long long read = 0;
        while (at_ < end_ && is_digit(*at_) && at_ - first < MAX_DIGITS) read = read * 10 + (*at_++ - '0');
        found = read;
        return at_ > first && (*first != '0' || at_ - first == 1) && at_ < end_ && (*at_ == ',' || *at_ == '}' || *at_ == ' ');
    }

    bool value(int depth) {
        if (depth > MAX_DEPTH || at_ == end_) return false;
        std::string_view text;
        switch (*at_) {
            case '"': return string(text);
            case '{': return object([&](std::string_view) { return value(depth + 1); });
            case '[': return array(depth);
            case 't': return word("true");
            case 'f': return word("false");
            case 'n': return word("null");
            default: return any_number();
        }
    }

    bool array(int depth) {
        ++at_;
        space();
        if (take(']')) return true;
        do {
            space();
            if (!value(depth + 1)) return false;
            space();
        } while (take(','));
        return take(']');
    }

    bool any_number() {
        take('-');
        const char* first = at_;
        while (at_ < end_ && is_digit(*at_)) ++at_;
        if (at_ == first || (*first == '0' && at_ - first > 1)) return false;
        if (take('.')) {
            const char* point = at_;
            while (at_ < end_ && is_digit(*at_)) ++at_;
            if (at_ == point) return false;
        }
        return at_ - first <= MAX_DIGITS + 1 && at_ < end_ && *at_ != 'e' && *at_ != 'E';
    }

    bool string(std::string_view& found) {
        if (!take('"')) return false;
        const char* first = at_;
        while (at_ < end_) {
            const auto c = static_cast<unsigned char>(*at_);
            if (c == '"') {
                found = {first, size_t(at_ - first)};
                ++at_;
                return true;
            }
            if (c < 0x20 || (c == '\\' && !escape()) || (c >= 0x80 && !beyond_ascii(c))) return false;
            if (c != '\\' && c < 0x80) ++at_;
        }
        return false;
    }

    bool escape() {
        if (end_ - at_ < 2) return false;
        const char c = at_[1];
        if (c != 'u') {
            at_ += 2;
            return std::strchr("\"\\/bfnrt", c) != nullptr && c != '\0';
        }
        if (end_ - at_ < 6) return false;
        int code = 0;
        for (int i = 2; i < 6; ++i) {
            const int digit = hex_of(at_[i]);
            if (digit < 0) return false;
            code = code * 16 + digit;
        }
        at_ += 6;
        return code < 0xd800 || code > 0xdfff;  // halves of a pair are msgspec's to look at
    }

    // A character of UTF-8 (RFC 3629) that begins with `c`.
    bool beyond_ascii(unsigned char c) {
        const int more = c >= 0xc2 && c <= 0xdf ? 1 : c >= 0xe0 && c <= 0xef ? 2 : c >= 0xf0 && c <= 0xf4 ? 3 : 0;
        if (more == 0 || end_ - at_ <= more) return false;
        const auto second = static_cast<unsigned char>(at_[1]);
        const unsigned char low = c == 0xe0 ? 0xa0 : c == 0xf0 ? 0x90 : 0x80, high = c == 0xed ? 0x9f : c == 0xf4 ? 0x8f : 0xbf;
        if (second < low || second > high) return false;
        for (int i = 2; i <= more; ++i)
            if ((static_cast<unsigned char>(at_[i]) & 0xc0) != 0x80) return false;
        at_ += more + 1;
        return true;
    }
};

PyObject* chat_usage(PyObject*, PyObject* body) {
    if (!PyBytes_CheckExact(body)) {
        PyErr_SetString(PyExc_TypeError, "chat_usage(body: bytes)");
        return nullptr;
    }
    Used used;
    if (!Reader({PyBytes_AS_STRING(body), size_t(PyBytes_GET_SIZE(body))}).body(used)) Py_RETURN_NONE;
    return Py_BuildValue("LLL", *used.prompt, used.cached, *used.output);
}

PyMethodDef METHODS[] = {
    {"chat_usage", chat_usage, METH_O,
     "chat_usage(body): tokens of the prompt, of those cached, and of the output, as a whole answer in chats' form says; None: it may say so in "
     "another way, or nothing."},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace
}  // namespace quire

int add_chat_usage(PyObject* module) { return PyModule_AddFunctions(module, quire::METHODS); }
