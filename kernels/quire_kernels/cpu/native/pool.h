// The threads that compute. One team for the process; whoever calls `run` is its thread 0.
//
//   run(body)  ----thread 0----|for_each|--wait--|for_each|--wait--> return
//              ----thread 1----|for_each|--wait--|for_each|--wait--> waits for the next run
//
// Work inside a run is handed out piece by piece, so a thread that the system takes off its core holds up one piece, not half of
// the work. Which thread computes a piece must not change its result.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

namespace quire {

class Team {
   public:
    // The process's team. One thread until `resize`.
    static Team& instance();

    // Threads that compute, the caller's included; at least 1. Not while a run is going on.
    void resize(int num_threads);
    int size() const { return size_; }

    // body(thread) on every thread of the team; returns when all have. Not to be nested; one caller at a time.
    template <class Body>
    void run(Body&& body) {
        using Plain = std::remove_reference_t<Body>;
        run_erased([](void* context, int thread) { (*static_cast<Plain*>(context))(thread); }, (void*)&body);
    }

    // Inside a run, called by every thread alike: body(i) once for each i in [0, count), then waits until all are done.
    // Adjacent i go to one thread in runs of `grain`.
    template <class Body>
    void for_each(int64_t count, int64_t grain, Body&& body) {
        if (size_ == 1) {
            for (int64_t i = 0; i < count; i++) body(i);
            return;
        }
        std::atomic<int64_t>& next = next_[phase_of_this_thread() & 1].value;
        for (;;) {
            int64_t start = next.fetch_add(grain, std::memory_order_relaxed);
            if (start >= count) break;
            int64_t end = start + grain < count ? start + grain : count;
            for (int64_t i = start; i < end; i++) body(i);
        }
        wait_for_all();
    }

    // Inside a run, called by every thread alike: nobody goes on before all are here.
    void wait_for_all();

   private:
    using Erased = void (*)(void*, int);

    struct alignas(64) Counter {
        std::atomic<int64_t> value{0};
    };

    Team() = default;
    void run_erased(Erased body, void* context);
    void work(int thread, uint32_t generation);
    void stop();
    static uint32_t& phase_of_this_thread();

    int size_ = 1;
    std::vector<std::thread> threads_;
    Erased body_ = nullptr;
    void* context_ = nullptr;
    bool stopping_ = false;
    alignas(64) std::atomic<uint32_t> generation_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
    alignas(64) std::atomic<int> num_arrived_{0};
    Counter next_[2];
};

}  // namespace quire
