// Work too small to be worth waking the team for: the caller does it alone. Results never depend on who computes them.
#pragma once

#include "pool.h"

namespace quire {

// Team::for_each for one thread.
struct Solo {
    template <class Body>
    void for_each(int64_t count, int64_t, Body&& body) {
        for (int64_t i = 0; i < count; i++) body(i);
    }
};

// A thread that sleeps, or whose core is taken, is some 0.2 ms away.
constexpr double kWorthWaking_ns = 150e3;

// body(team, thread) by as many threads as `cost_ns` of one thread's time are worth.
template <class Body>
void run_by_cost(double cost_ns, Body&& body) {
    if (cost_ns < kWorthWaking_ns) {
        Solo solo;
        body(solo, 0);
        return;
    }
    Team& team = Team::instance();
    team.run([&](int thread) { body(team, thread); });
}

}  // namespace quire
