#include "prompt_job.h"

#include <cmath>

#include "text.h"

namespace quire {
namespace {

// Tuple of numbers; empty with an exception.
Ref tuple_of(const std::vector<uint64_t>& hashes) {
    Ref tuple(PyTuple_New(Py_ssize_t(hashes.size())));
    if (!tuple) return tuple;
    for (size_t i = 0; i < hashes.size(); ++i) {
        PyObject* number = PyLong_FromUnsignedLongLong(hashes[i]);
        if (number == nullptr) return Ref();
        PyTuple_SET_ITEM(tuple.get(), Py_ssize_t(i), number);
    }
    return tuple;
}

// Into a new list from `at` on. False with an exception.
bool put_numbers(PyObject* list, size_t& at, const std::vector<uint64_t>& hashes) {
    for (const uint64_t hash : hashes) {
        PyObject* number = PyLong_FromUnsignedLongLong(hash);
        if (number == nullptr) return false;
        PyList_SET_ITEM(list, Py_ssize_t(at++), number);
    }
    return true;
}

void append_part(std::string& key, std::optional<std::string_view> part) {
    const uint64_t size = part ? part->size() + 1 : 0;
    key.append(reinterpret_cast<const char*>(&size), sizeof size);
    if (part) key.append(*part);
}

}  // namespace

bool PromptJob::begin(PyObject* pieces, std::optional<std::string_view> adapter, std::optional<std::string_view> salt, bool is_framed) {
    if (!take_text(pieces)) return false;
    take_root(adapter, salt, is_framed);
    const size_t first_piece = whole_messages();
    missing_chars_ = is_ascii_ ? text_.size() - at_ : num_chars(text_.data() + at_, text_.size() - at_);
    segments_.emplace(encoder_, text_, at_, is_ascii_);
    const size_t num_steps = steps_.size();
    if (!follow()) return false;
    if (steps_.size() > num_steps && !join_messages(pieces, first_piece, num_steps)) return false;
    num_found_ = steps_.size();
    cache_.touch(steps_);
    return true;
}

bool PromptJob::take_text(PyObject* pieces) {
    const Py_ssize_t num_pieces = PyList_GET_SIZE(pieces);
    ends_.reserve(size_t(num_pieces));
    size_t size = 0, chars = 0;
    for (Py_ssize_t i = 0; i < num_pieces; ++i) {
        PyObject* piece = PyList_GET_ITEM(pieces, i);
        if (!PyUnicode_Check(piece)) return PyErr_SetString(PyExc_TypeError, "pieces: a list of str is wanted"), false;
        chars += size_t(PyUnicode_GET_LENGTH(piece));
        size += size_t(PyUnicode_GET_LENGTH(piece)) * size_t(PyUnicode_IS_ASCII(piece) ? 1 : PyUnicode_KIND(piece) == 1 ? 2 : 3);
    }
    if (chars > encoder_.max_chars) {
        const Ref number(PyLong_FromSize_t(chars));
        const Ref answer(number ? PyObject_CallOneArg(encoder_.too_long.get(), number.get()) : nullptr);
        if (!answer) return false;
        if (PyList_GET_SIZE(pieces) != num_pieces) return PyErr_SetString(PyExc_RuntimeError, "pieces: changed meanwhile"), false;
    }
    text_.reserve(size);
    for (Py_ssize_t i = 0; i < num_pieces; ++i) {
        if (append_text(text_, PyList_GET_ITEM(pieces, i)) < 0) return false;
        ends_.push_back(text_.size());
    }
    is_ascii_ = text_.size() == chars;
    return true;
}

void PromptJob::take_root(std::optional<std::string_view> adapter, std::optional<std::string_view> salt, bool is_framed) {
    std::string key(1, is_framed && !encoder_.before.empty() ? '1' : '0');
    append_part(key, encoder_.digest);
    append_part(key, adapter);
    append_part(key, salt);
    if (is_framed) after_ = encoder_.after;
    StepRef root = cache_.find(0, key, Step::NO_FOLLOWING);
    if (!root) {
        const Ids& before = encoder_.before;
        std::vector<uint64_t> filled;
        auto rule = std::make_shared<const BlockRule>(encoder_.block_size, adapter, salt);
        auto chain = BlockChain::start(std::move(rule)).extended(before.data(), is_framed ? before.size() : 0, filled);
        root = cache_.put(0, key, Step::NO_FOLLOWING, std::move(chain), std::move(filled), 0, 0);
    }
    steps_.reserve(8);
    steps_.push_back(std::move(root));
}

template <typename Take>
size_t PromptJob::each_message(size_t first_piece, Take take) const {
    size_t begin = first_piece ? ends_[first_piece - 1] : 0;
    for (size_t piece = first_piece; piece + 2 < ends_.size(); piece += 2) {
        const size_t end = ends_[piece + 1];
        if (end - begin < MIN_CHARS || (!is_ascii_ && num_chars(text_.data() + begin, end - begin) < MIN_CHARS)) continue;
        if (!take(Message{piece + 2, begin, end})) break;
        begin = end;
    }
    return begin;
}

// Takes the steps over whole messages, as far as they are known; the first piece behind them.
size_t PromptJob::whole_messages() {
    size_t first_piece = 0;
    at_ = each_message(0, [&](const Message& message) {
        const std::string_view text(text_.data() + message.begin, ends_[message.piece] - message.begin);
        StepRef found = cache_.find(steps_.back()->number, text, message.end - message.begin);
        if (!found) return false;
        steps_.push_back(std::move(found));
        first_piece = message.piece;
        return true;
    });
    return first_piece;
}

// Takes the steps over segments that are known.
bool PromptJob::follow() {
    while (true) {
        if (!next_segment()) return false;
        if (next_end_ == at_) return true;
        StepRef found = cache_.find(steps_.back()->number, std::string_view(text_).substr(at_, next_end_ - at_), Step::NO_FOLLOWING);
        if (!found) return true;
        missing_chars_ -= found->num_chars;
        at_ = next_end_;
        steps_.push_back(std::move(found));
    }
}

bool PromptJob::next_segment() {
    const Py_ssize_t end = segments_->next();
    if (end < 0) return false;
    next_end_ = end ? size_t(end) : at_;
    return true;
}

// Remembers as one what segments from `start` on make up a message: the next time it is found at once.
bool PromptJob::join_messages(PyObject* pieces, size_t first_piece, size_t start) {
    size_t from = first_piece ? ends_[first_piece - 1] : 0;  // text before it is in steps_[0, next)
    size_t next = start;
    bool is_well = true;
    each_message(first_piece, [&](const Message& message) {
        PyObject* following = message.piece < size_t(PyList_GET_SIZE(pieces)) ? PyList_GET_ITEM(pieces, Py_ssize_t(message.piece)) : nullptr;
        const int is_firm = following == nullptr ? 0 : encoder_.is_firm(Ref::borrowed(following).get());
        is_well = is_firm >= 0;
        if (is_firm <= 0) return false;
        const size_t first = next;
        size_t chars = 0;
        for (; from < message.end && next < steps_.size(); ++next) {
            from += steps_[next]->text.size();
            chars += steps_[next]->num_chars;
        }
        if (from != message.end || first == next) return false;
        std::vector<uint64_t> hashes;
        for (size_t at = first; at < next; ++at) hashes.insert(hashes.end(), steps_[at]->hashes.begin(), steps_[at]->hashes.end());
        const Step& last = *steps_[next - 1].get();
        const std::string_view text(text_.data() + message.begin, ends_[message.piece] - message.begin);
        cache_.put(steps_[first - 1]->number, text, message.end - message.begin, last.chain, std::move(hashes), chars, last.number);
        return true;
    });
    return is_well;
}

bool PromptJob::advance(size_t num_chars_wanted) {
    Ids ids;
    size_t done = 0;
    while (next_end_ != at_ && done < num_chars_wanted) {
        const size_t begin = at_, end = next_end_;
        const size_t chars = is_ascii_ ? end - begin : num_chars(text_.data() + begin, end - begin);
        if (chars > room_chars_) {
            unread_chars_ = missing_chars_, missing_chars_ = 0, next_end_ = at_;
            return true;
        }
        ids.clear();
        ids.reserve(chars);
        if (encoder_.encode(text_, begin, end, ids) < 0) return false;
        at_ = end;
        if (!next_segment()) return next_end_ = at_ = begin, false;
        missing_chars_ -= chars, room_chars_ -= chars, done += chars;
        if (next_end_ == at_ && chars <= MAX_KEPT_CHARS) {
            // What opens the answer ends every chat, and goes on as something else in the next: no step is worth keeping for it.
            after_.insert(after_.begin(), ids.begin(), ids.end());
        } else {
            extend(begin, end, chars, ids);
        }
    }
    return true;
}

// Remembers a segment after the last step.
void PromptJob::extend(size_t begin, size_t end, size_t chars, const Ids& ids) {
    const Step& last = *steps_.back().get();
    std::vector<uint64_t> filled;
    auto chain = last.chain.extended(ids.data(), ids.size(), filled);
    const std::string_view text(text_.data() + begin, end - begin);
    steps_.push_back(cache_.put(last.number, text, Step::NO_FOLLOWING, std::move(chain), std::move(filled), chars, 0));
}

uint64_t PromptJob::num_tokens() const {
    const uint64_t read = steps_.back()->chain.num_tokens;
    if (!unread_chars_) return read + after_.size();
    size_t chars = 0;
    for (const auto& step : steps_) chars += step->num_chars;
    const double per_token = chars && read ? double(chars) / double(read) : CHARS_PER_TOKEN;
    return read + after_.size() + uint64_t(std::nearbyint(double(unread_chars_) / per_token));
}

PyObject* PromptJob::hashes() const {
    std::vector<uint64_t> filled;
    if (!unread_chars_ && !after_.empty()) steps_.back()->chain.extended(after_.data(), after_.size(), filled);
    size_t size = filled.size(), at = 0;
    for (const auto& step : steps_) size += step->hashes.size();
    Ref list(PyList_New(Py_ssize_t(size)));
    if (!list) return nullptr;
    for (size_t i = 0; i < steps_.size(); ++i) {
        Step& step = *steps_[i].get();
        if (i >= num_found_) {
            if (!put_numbers(list.get(), at, step.hashes)) return nullptr;
            continue;
        }
        if (!step.numbers && !(step.numbers = tuple_of(step.hashes))) return nullptr;
        for (size_t k = 0; k < step.hashes.size(); ++k)
            PyList_SET_ITEM(list.get(), Py_ssize_t(at++), Py_NewRef(PyTuple_GET_ITEM(step.numbers.get(), Py_ssize_t(k))));
    }
    return put_numbers(list.get(), at, filled) ? list.release() : nullptr;
}

}  // namespace quire
