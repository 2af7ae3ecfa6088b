#include "words.h"

#include <cstring>
#include <unordered_map>

#include "text.h"

namespace quire {
namespace {

// The end of the text from `at`, a beginning or a space, up to the next space that nothing goes on past.
const char* chunk_end(const char* at, const char* end) {
    for (++at; at < end; ++at) {
        at = static_cast<const char*>(std::memchr(at, ' ', size_t(end - at)));
        if (at == nullptr) return end;
        if (!is_space_before(at)) return at;
    }
    return end;
}

Ref text_object(const char* text, size_t size) { return Ref(PyUnicode_FromStringAndSize(text, Py_ssize_t(size))); }

}  // namespace

// The ids of new texts that are not ASCII, by text.
struct Words::Learnt {
    std::unordered_map<std::string_view, Ids> ids;
};

Words::Words(Split split, AddedTokens added, PyObject* word_ids, PyObject* texts_ids)
    : split_(split), added_(std::move(added)), word_ids_(Ref::borrowed(word_ids)), texts_ids_(Ref::borrowed(texts_ids)) {}

Words::Answer Words::encode(const char* text, const char* end, Ids& ids) {
    while (text < end) {
        const auto found = added_.next(text, end);
        if (found.at > text) {
            const Answer answer = encode_plain(text, found.at, ids);
            if (answer != Answer::FOUND) return answer;
        }
        if (found.size) ids.push_back(found.id);
        text = found.at + found.size;
    }
    return Answer::FOUND;
}

// Of text without added tokens.
Words::Answer Words::encode_plain(const char* text, const char* end, Ids& ids) {
    Learnt learnt;
    while (text < end) {
        const char* after = chunk_end(text, end);
        const auto size = size_t(after - text);
        if (table_.append(text, size, ids)) {
            // most of them
        } else if (is_ascii(text, size)) {
            if (!append_words(text, after, ids)) return Answer::FAILED;
        } else {
            auto found = learnt.ids.find(std::string_view(text, size));
            if (found == learnt.ids.end()) {
                const Answer answer = learn(text, end, learnt);
                if (answer != Answer::FOUND) return answer;
                found = learnt.ids.find(std::string_view(text, size));
            }
            ids.insert(ids.end(), found->second.begin(), found->second.end());
        }
        text = after;
    }
    return Answer::FOUND;
}

// ASCII text; kept, so that it is found at once the next time.
bool Words::append_words(const char* text, const char* end, Ids& ids) {
    const size_t before = ids.size();
    for (const char* at = text; at < end;) {
        const char* after = word_end(split_, at, end);
        const auto size = size_t(after - at);
        if (!table_.append(at, size, ids) && !append_new_word(at, size, ids)) return false;
        at = after;
    }
    keep(text, size_t(end - text), ids.data() + before, ids.size() - before);
    return true;
}

bool Words::append_new_word(const char* word, size_t size, Ids& ids) {
    const Ref text = text_object(word, size);
    const Ref packed(text ? PyObject_CallOneArg(word_ids_.get(), text.get()) : nullptr);
    const size_t before = ids.size();
    if (!packed || append_packed(ids, packed.get()) < 0) return false;
    keep(word, size, ids.data() + before, ids.size() - before);
    return true;
}

// Asks for all new texts from `text` on that are not ASCII, the first of which begins there. NOT_KNOWN: they are more than are learnt at once.
Words::Answer Words::learn(const char* text, const char* end, Learnt& learnt) {
    std::vector<std::string_view> asked;
    bool is_all = true;
    Ids unused;
    for (const char* after; text < end; text = after) {
        after = chunk_end(text, end);
        const std::string_view chunk(text, size_t(after - text));
        if (learnt.ids.contains(chunk) || is_ascii(text, chunk.size()) || (unused.clear(), table_.append(text, chunk.size(), unused))) continue;
        if (asked.size() == MAX_LEARNT) {
            is_all = false;
            break;
        }
        learnt.ids[chunk];
        asked.push_back(chunk);
    }
    const Ref list(PyList_New(Py_ssize_t(asked.size())));
    if (!list) return Answer::FAILED;
    for (size_t i = 0; i < asked.size(); ++i) {
        PyObject* chunk = text_object(asked[i].data(), asked[i].size()).release();
        if (chunk == nullptr) return Answer::FAILED;
        PyList_SET_ITEM(list.get(), Py_ssize_t(i), chunk);
    }
    const Ref answer(PyObject_CallOneArg(texts_ids_.get(), list.get()));
    if (!answer) return Answer::FAILED;
    if (!PyList_Check(answer.get()) || PyList_GET_SIZE(answer.get()) != Py_ssize_t(asked.size())) {
        PyErr_SetString(PyExc_TypeError, "texts_ids: a list of the ids of each text is wanted");
        return Answer::FAILED;
    }
    for (size_t i = 0; i < asked.size(); ++i) {
        Ids& ids = learnt.ids[asked[i]];
        if (append_packed(ids, PyList_GET_ITEM(answer.get(), Py_ssize_t(i))) < 0) return Answer::FAILED;
        keep(asked[i].data(), asked[i].size(), ids.data(), ids.size());
    }
    return is_all ? Answer::FOUND : Answer::NOT_KNOWN;
}

void Words::keep(const char* text, size_t size, const uint32_t* ids, size_t num_ids) {
    if (size <= MAX_WORD_BYTES && num_chars(text, size) <= MAX_WORD_CHARS) table_.keep(text, size, ids, num_ids);
}

int append_packed(Ids& ids, PyObject* packed) {
    if (!PyBytes_Check(packed) || PyBytes_GET_SIZE(packed) % Py_ssize_t(sizeof(uint32_t))) {
        PyErr_SetString(PyExc_TypeError, "token ids are wanted as token_bytes packs them");
        return -1;
    }
    const size_t before = ids.size(), count = size_t(PyBytes_GET_SIZE(packed)) / sizeof(uint32_t);
    ids.resize(before + count);
    if (count) std::memcpy(ids.data() + before, PyBytes_AS_STRING(packed), count * sizeof(uint32_t));
    return 0;
}

}  // namespace quire
