// Stages of few pieces followed by stages of many, on more threads than processors: every item once, none lost.
#include <atomic>
#include <cstdio>

#include "pool.h"

namespace {

constexpr int64_t kFew = 2, kMany = 64;
std::atomic<int> hits[kMany];

// Whether every item of a stage was computed exactly once.
bool covers(const Team& team, int64_t count) {
    for (auto& hit : hits) hit.store(0);
    team.share(count, [](Range mine, int64_t) {
        for (int64_t i = mine.begin; i < mine.end; ++i) hits[i].fetch_add(1);
    });
    for (int64_t i = 0; i < count; ++i)
        if (hits[i].load() != 1) return false;
    return true;
}

}  // namespace

int main() {
    Pool pool(16);
    const Team team{&pool};
    for (int round = 0; round < 200'000; ++round)
        if (!covers(team, kFew) || !covers(team, kMany)) return std::printf("round %d\n", round), 1;
}
