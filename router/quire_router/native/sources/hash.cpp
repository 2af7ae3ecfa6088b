#include "hash.h"

#include <chrono>
#include <exception>
#include <random>

namespace quire {
namespace {

Secrets drawn() {
    Secrets secrets{};
    try {
        std::random_device device;
        for (auto& word : secrets.word) word = uint64_t(device()) << 32 | device();
    } catch (const std::exception&) {  // no such device: tables still work, and are harder to attack than with a constant
        auto seed = uint64_t(std::chrono::steady_clock::now().time_since_epoch().count());
        for (auto& word : secrets.word) word = seed = mixed(seed ^ 0x9e3779b97f4a7c15, reinterpret_cast<uintptr_t>(&seed) | 1);
    }
    for (auto& word : secrets.word) word |= 1;
    return secrets;
}

}  // namespace

const Secrets SECRETS = drawn();

}  // namespace quire
