#include "prompt_encoder.h"

#include <cstring>

#include "text.h"

namespace quire {
namespace {

// Where `count` characters from `at` on end, or `end` if there are no more.
size_t after_chars(const std::string& text, size_t at, size_t end, size_t count) {
    while (at < end && count > 0) {
        ++at, --count;
        while (at < end && !is_first_byte(text[at])) ++at;
    }
    return at;
}

bool has_chars(const std::string& text, size_t begin, size_t end, size_t count) {
    return end - begin >= count && (end - begin >= 4 * count || num_chars(text.data() + begin, end - begin) >= count);
}

bool is_between_words(const std::string& text, size_t at, size_t stop) {
    return text[at] == ' ' && is_letter(text[at - 1]) && at + 1 < stop && is_letter(text[at + 1]);
}

bool is_after_line(const std::string& text, size_t at) {
    if (!is_line_end(text[at - 1])) return false;
    const Py_UCS4 c = char_at(text.data() + at);
    return Py_UNICODE_ISALNUM(c) && !Py_UNICODE_ISDECIMAL(c);
}

}  // namespace

int PromptEncoder::encode(const std::string& text, size_t begin, size_t end, Ids& ids) {
    const size_t before = ids.size();
    if (words) {
        const auto answer = words->encode(text.data() + begin, text.data() + end, ids);
        if (answer == Words::Answer::FOUND) return 0;
        if (answer == Words::Answer::FAILED) return -1;
        ids.resize(before);
    }
    const Ref segment(PyUnicode_FromStringAndSize(text.data() + begin, Py_ssize_t(end - begin)));
    if (!segment) return -1;
    const Ref packed(PyObject_CallMethod(encoder.get(), words ? "encode_whole" : "encode", "O", segment.get()));
    return packed ? append_packed(ids, packed.get()) : -1;
}

int PromptEncoder::is_firm(PyObject* piece) const {
    const Ref answer(PyObject_CallMethod(encoder.get(), "is_firm", "O", piece));
    return answer ? PyObject_IsTrue(answer.get()) : -1;
}

Py_ssize_t Segments::next() {
    if (!encoder_.words) return next_of_python();
    if (at_ == stop_) stop_ = token_after(at_);
    if (at_ == stop_) return 0;
    return Py_ssize_t(at_ = place_inside(at_, stop_));
}

Py_ssize_t Segments::next_of_python() {
    if (!of_python_) {
        const Ref text(PyUnicode_FromStringAndSize(text_.data() + at_, Py_ssize_t(text_.size() - at_)));
        const Ref segments(text ? PyObject_CallMethod(encoder_.encoder.get(), "segments", "O", text.get()) : nullptr);
        if (!segments) return -1;
        of_python_ = Ref(PyObject_GetIter(segments.get()));
        if (!of_python_) return -1;
    }
    const Ref segment(PyIter_Next(of_python_.get()));
    if (!segment) return PyErr_Occurred() ? -1 : 0;
    Py_ssize_t size = 0;
    if (PyUnicode_AsUTF8AndSize(segment.get(), &size) == nullptr) return -1;
    if (size == 0 || size_t(size) > text_.size() - at_) {
        PyErr_SetString(PyExc_ValueError, "segments: are no parts of the text");
        return -1;
    }
    return Py_ssize_t(at_ += size_t(size));
}

// The first token that is far enough behind `start` to be cut before, or the text's end.
size_t Segments::token_after(size_t start) {
    const char* const text = text_.data();
    while (true) {
        const auto found = encoder_.words->added().next(text + scanned_, text + text_.size());
        const auto at = size_t(found.at - text);
        if (found.size == 0) return scanned_ = at;
        scanned_ = at + found.size;
        if (has_chars(text_, start, at, MIN_CHARS)) return at;
    }
}

// Where the part from `start` to `stop` is cut next: its end if it is short or has no such place.
size_t Segments::place_inside(size_t start, size_t stop) {
    if (stop - start <= SEGMENT_CHARS) return stop;
    const size_t from = is_ascii_ ? start + SEGMENT_CHARS : after_chars(text_, start, stop, SEGMENT_CHARS);
    if (from == stop) return stop;
    if (space_ < from) {
        const void* space = std::memchr(text_.data() + from, ' ', stop - from);
        space_ = space == nullptr ? stop : size_t(static_cast<const char*>(space) - text_.data());
    }
    if (space_ < stop && is_between_words(text_, space_, stop)) return space_;  // most often this is a place
    for (size_t at = from; at < stop; ++at)
        if (is_between_words(text_, at, stop) || (encoder_.words->split().has_lines && is_after_line(text_, at))) return at;
    return stop;
}

namespace {

struct EncoderObject {
    PyObject_HEAD
    PromptEncoder* encoder;
};

int ids_of(PyObject* packed, Ids& ids) { return packed == Py_None ? 0 : append_packed(ids, packed); }

// What encodes words as the WordEncoder `words` does; none with an exception.
std::optional<Words> words_of(PyObject* words, PyObject* split_name) {
    const Ref added(PyObject_GetAttrString(words, "added"));
    const Ref word_ids(PyObject_GetAttrString(words, "word_ids")), texts_ids(PyObject_GetAttrString(words, "texts_ids"));
    if (!added || !word_ids || !texts_ids) return std::nullopt;
    const char* name = PyUnicode_AsUTF8(split_name);
    if (name == nullptr) return std::nullopt;
    const auto split = split_named(name);
    if (!split) return PyErr_Format(PyExc_ValueError, "split: %R is not known", split_name), std::nullopt;
    if (!PyDict_Check(added.get())) return PyErr_SetString(PyExc_TypeError, "added: a dict is wanted"), std::nullopt;
    std::vector<std::pair<std::string, uint32_t>> tokens;
    PyObject *content, *packed;
    for (Py_ssize_t at = 0; PyDict_Next(added.get(), &at, &content, &packed);) {
        std::string text;
        Ids ids;
        if (append_text(text, content) < 0 || append_packed(ids, packed) < 0) return std::nullopt;
        if (text.empty() || ids.size() != 1) return PyErr_SetString(PyExc_ValueError, "added: a text and its one id are wanted"), std::nullopt;
        tokens.emplace_back(std::move(text), ids[0]);
    }
    return std::optional<Words>(std::in_place, *split, AddedTokens(std::move(tokens)), word_ids.get(), texts_ids.get());
}

PyObject* new_encoder(PyTypeObject* type, PyObject* args, PyObject* kwargs) {
    static const char* const NAMES[] = {"digest", "block_size", "max_chars", "too_long", "encoder", "words", "split", "frame", nullptr};
    const char* digest;
    Py_ssize_t block_size, max_chars;
    PyObject *too_long, *encoder, *words, *split, *frame;
    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "snnOOOOO", const_cast<char**>(NAMES), &digest, &block_size, &max_chars, &too_long, &encoder, &words, &split, &frame))
        return nullptr;
    if (block_size < 1 || block_size > 1 << 20) return PyErr_Format(PyExc_ValueError, "block_size must be 1 to 2**20, not %zd", block_size);
    return guarded<PyObject*>(nullptr, [&]() -> PyObject* {
        auto made = std::make_unique<PromptEncoder>(PromptEncoder{
            digest, size_t(block_size), max_chars < 0 ? SIZE_MAX : size_t(max_chars), Ref::borrowed(too_long), Ref::borrowed(encoder),
            std::nullopt, frame != Py_None, {}, {},
        });
        if (words != Py_None && !(made->words = words_of(words, split))) return nullptr;
        if (frame != Py_None) {
            if (!PyTuple_Check(frame) || PyTuple_GET_SIZE(frame) != 2) return PyErr_SetString(PyExc_TypeError, "frame: two are wanted"), nullptr;
            if (ids_of(PyTuple_GET_ITEM(frame, 0), made->before) < 0 || ids_of(PyTuple_GET_ITEM(frame, 1), made->after) < 0) return nullptr;
        }
        PyObject* object = type->tp_alloc(type, 0);
        if (object != nullptr) reinterpret_cast<EncoderObject*>(object)->encoder = made.release();
        return object;
    });
}

void free_encoder(PyObject* self) {
    delete reinterpret_cast<EncoderObject*>(self)->encoder;
    Py_TYPE(self)->tp_free(self);
}

// For tests: the ids of a text by its words.
PyObject* encode_words(PyObject* self, PyObject* text) {
    PromptEncoder& encoder = encoder_of(self);
    return guarded<PyObject*>(nullptr, [&]() -> PyObject* {
        std::string bytes;
        if (append_text(bytes, text) < 0) return nullptr;
        if (!encoder.words) Py_RETURN_NONE;
        Ids ids;
        switch (encoder.words->encode(bytes.data(), bytes.data() + bytes.size(), ids)) {
            case Words::Answer::FAILED: return nullptr;
            case Words::Answer::NOT_KNOWN: Py_RETURN_NONE;
            case Words::Answer::FOUND: break;
        }
        return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(ids.data()), Py_ssize_t(ids.size() * sizeof(uint32_t)));
    });
}

// For tests: all segments of a text.
PyObject* segments(PyObject* self, PyObject* text) {
    PromptEncoder& encoder = encoder_of(self);
    return guarded<PyObject*>(nullptr, [&]() -> PyObject* {
        std::string bytes;
        if (append_text(bytes, text) < 0) return nullptr;
        Ref list(PyList_New(0));
        if (!list) return nullptr;
        Segments cut(encoder, bytes, 0, is_ascii(bytes.data(), bytes.size()));
        for (size_t begin = 0;;) {
            const Py_ssize_t end = cut.next();
            if (end < 0) return nullptr;
            if (end == 0) return list.release();
            const Ref segment(PyUnicode_FromStringAndSize(bytes.data() + begin, end - Py_ssize_t(begin)));
            if (!segment || PyList_Append(list.get(), segment.get()) < 0) return nullptr;
            begin = size_t(end);
        }
    });
}

PyObject* num_words(PyObject* self, void*) {
    const PromptEncoder& encoder = encoder_of(self);
    return PyLong_FromSize_t(encoder.words ? encoder.words->table().size() : 0);
}

PyMethodDef METHODS[] = {
    {"encode_words", encode_words, METH_O, "encode_words(text): its packed ids by its words; None: the tokenizer must do it."},
    {"segments", segments, METH_O, "segments(text): its parts in order."},
    {nullptr, nullptr, 0, nullptr},
};

PyGetSetDef GETTERS[] = {
    {"num_words", num_words, nullptr, "Texts whose ids are remembered.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

}  // namespace

PromptEncoder& encoder_of(PyObject* object) { return *reinterpret_cast<EncoderObject*>(object)->encoder; }

PyTypeObject PromptEncoderType = {
    .ob_base = PyVarObject_HEAD_INIT(nullptr, 0)
    .tp_name = "quire_router_native.PromptEncoder",
    .tp_basicsize = sizeof(EncoderObject),
    .tp_dealloc = free_encoder,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "PromptEncoder(digest, block_size, max_chars, too_long, encoder, words, split, frame)",
    .tp_methods = METHODS,
    .tp_getset = GETTERS,
    .tp_new = new_encoder,
};

}  // namespace quire
