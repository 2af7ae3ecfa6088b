#include "pool.h"

#include <immintrin.h>

namespace quire {

namespace {

// Rounds of looking before a thread sleeps: some 100 us inside a run, where the others are about to arrive, and as long between runs.
constexpr int kSpins = 4000;

// Returns when `value` is no longer `old`.
void wait_while_equal(std::atomic<uint32_t>& value, uint32_t old) {
    for (int i = 0; i < kSpins; i++) {
        if (value.load(std::memory_order_acquire) != old) return;
        _mm_pause();
    }
    while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

}  // namespace

Team& Team::instance() {
    // Never destroyed: its threads may outlive main's statics, and the system ends them with the process.
    static Team* team = new Team();
    return *team;
}

uint32_t& Team::phase_of_this_thread() {
    static thread_local uint32_t phase = 0;
    return phase;
}

void Team::resize(int num_threads) {
    if (num_threads < 1) num_threads = 1;
    if (num_threads == size_) return;
    stop();
    size_ = num_threads;
    uint32_t generation = generation_.load();
    for (int thread = 1; thread < size_; thread++) threads_.emplace_back([this, thread, generation] { work(thread, generation); });
}

void Team::stop() {
    if (threads_.empty()) return;
    stopping_ = true;
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
    stopping_ = false;
}

void Team::run_erased(Erased body, void* context) {
    if (size_ == 1) {
        body(context, 0);
        return;
    }
    body_ = body;
    context_ = context;
    phase_of_this_thread() = phase_.load(std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
    body(context, 0);
    wait_for_all();
}

void Team::work(int thread, uint32_t generation) {
    for (;;) {
        wait_while_equal(generation_, generation);
        generation = generation_.load(std::memory_order_acquire);
        if (stopping_) return;
        phase_of_this_thread() = phase_.load(std::memory_order_relaxed);
        body_(context_, thread);
        wait_for_all();
    }
}

void Team::wait_for_all() {
    if (size_ == 1) return;
    uint32_t phase = phase_of_this_thread()++;
    if (num_arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < size_) {
        wait_while_equal(phase_, phase);
        return;
    }
    num_arrived_.store(0, std::memory_order_relaxed);
    next_[phase & 1].value.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    phase_.notify_all();
}

}  // namespace quire
