// Where the hashes of a sequence of tokens stand after some of them: the twin of `quire_contract.block_hash.BlockChain`, which has the layout.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace quire {

// What stands beside the tokens of a block.
struct BlockRule {
    size_t block_size;  // tokens
    std::string head, first_tail, other_tail;

    BlockRule(size_t block_size, std::optional<std::string_view> adapter, std::optional<std::string_view> salt);
};

struct BlockChain {
    std::shared_ptr<const BlockRule> rule;
    std::array<uint8_t, 32> parent;
    std::vector<uint32_t> partial;  // tokens of the last block, if it is not full
    uint64_t num_tokens;

    static BlockChain start(std::shared_ptr<const BlockRule> rule);

    // The chain after these tokens; appends the wire hashes of the blocks that they fill.
    BlockChain extended(const uint32_t* ids, size_t num_ids, std::vector<uint64_t>& hashes) const;
};

}  // namespace quire
