// What the machine can do at most: memory read and dots computed by as many threads as an engine has. For benchmarks.
#include "measure.h"

#include "pool.h"

namespace {
constexpr int64_t kPiecesPerThread = 16;  // so that threads end together
}

uint64_t read_memory(const uint64_t* words, int64_t count, int64_t num_threads) {
    Pool pool(num_threads);
    std::atomic<uint64_t> total{0};
    Team{&pool}.share(count, [&](Range mine, int64_t) {
        uint64_t sum = 0;
        for (int64_t i = mine.begin; i < mine.end; ++i) sum += words[i];
        total += sum;
    });
    return total;
}

double compute_dots(const Backend& backend, int64_t weight_bytes, int64_t repeats, int64_t num_threads) {
    Pool pool(num_threads);
    Team{&pool}.share(num_threads * kPiecesPerThread, [&](Range mine, int64_t) {
        for (int64_t i = mine.begin; i < mine.end; ++i) backend.compute_dots(weight_bytes, repeats);
    });
    return static_cast<double>(num_threads * kPiecesPerThread * repeats) * static_cast<double>(backend.compute_dots(weight_bytes, 0));
}
