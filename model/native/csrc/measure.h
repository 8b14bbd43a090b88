// What the machine can do at most, for benchmarks.
#pragma once
#include <cstdint>

#include "backend.h"

// Reads `count` words once, shared out among threads; returns their sum, so that no compiler leaves the reads out.
uint64_t read_memory(const uint64_t* words, int64_t count, int64_t num_threads);

// Computes dots in registers on all threads; returns how many multiplications and additions they were. `weight_bytes`
// is that of an element of the weights: 4 float32, 2 bf16, 1 int8.
double compute_dots(const Backend& backend, int64_t weight_bytes, int64_t repeats, int64_t num_threads);
