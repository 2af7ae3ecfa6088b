#include "block_chain.h"

#include <bit>
#include <cstring>

#include "sha256.h"

namespace quire {
namespace {

constexpr std::string_view SCHEME = "quire-sha256-v1";
constexpr size_t DIGEST_BYTES = 32;

static_assert(std::endian::native == std::endian::little, "the layout's integers are in this order");

void append_u32(std::string& text, size_t value) {
    const auto number = uint32_t(value);
    text.append(reinterpret_cast<const char*>(&number), sizeof number);
}

void append_key(std::string& tail, std::string_view name, std::string_view value) {
    append_u32(tail, name.size() + value.size());
    tail.append(name).append(value);
}

uint64_t wire_hash(const uint8_t digest[DIGEST_BYTES]) {
    uint64_t hash = 0;
    for (size_t i = DIGEST_BYTES - 8; i < DIGEST_BYTES; ++i) hash = hash << 8 | digest[i];
    return hash;
}

}  // namespace

BlockRule::BlockRule(size_t size, std::optional<std::string_view> adapter, std::optional<std::string_view> salt) : block_size(size) {
    append_u32(head, size);
    append_u32(first_tail, size_t(adapter.has_value()) + size_t(salt.has_value()));
    append_u32(other_tail, adapter.has_value());
    if (adapter) {
        append_key(first_tail, "adapter=", *adapter);
        append_key(other_tail, "adapter=", *adapter);
    }
    if (salt) append_key(first_tail, "salt=", *salt);
}

BlockChain BlockChain::start(std::shared_ptr<const BlockRule> rule) {
    BlockChain chain{std::move(rule), {}, {}, 0};
    sha256(reinterpret_cast<const uint8_t*>(SCHEME.data()), SCHEME.size(), chain.parent.data());
    return chain;
}

BlockChain BlockChain::extended(const uint32_t* ids, size_t num_ids, std::vector<uint64_t>& hashes) const {
    BlockChain after{rule, parent, {}, num_tokens + num_ids};
    size_t held = partial.size();
    if (held + num_ids < rule->block_size) {
        after.partial.reserve(held + num_ids);
        after.partial.assign(partial.begin(), partial.end());
        after.partial.insert(after.partial.end(), ids, ids + num_ids);
        return after;
    }
    const size_t head = rule->head.size(), tokens = rule->block_size * sizeof(uint32_t);
    std::vector<uint8_t> block(DIGEST_BYTES + head + tokens + rule->first_tail.size());
    uint8_t* const at = block.data() + DIGEST_BYTES + head;
    std::memcpy(block.data() + DIGEST_BYTES, rule->head.data(), head);
    const std::string* tail = num_tokens >= rule->block_size ? &rule->other_tail : &rule->first_tail;
    std::memcpy(at + tokens, tail->data(), tail->size());
    for (; held + num_ids >= rule->block_size; held = 0) {
        const size_t taken = rule->block_size - held;
        if (held) std::memcpy(at, partial.data(), held * sizeof(uint32_t));
        std::memcpy(at + held * sizeof(uint32_t), ids, taken * sizeof(uint32_t));
        ids += taken, num_ids -= taken;
        std::memcpy(block.data(), after.parent.data(), DIGEST_BYTES);
        sha256(block.data(), DIGEST_BYTES + head + tokens + tail->size(), after.parent.data());
        hashes.push_back(wire_hash(after.parent.data()));
        if (tail != &rule->other_tail) {
            tail = &rule->other_tail;
            std::memcpy(at + tokens, tail->data(), tail->size());
        }
    }
    after.partial.assign(ids, ids + num_ids);
    return after;
}

}  // namespace quire
