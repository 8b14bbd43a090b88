// Choosing a token for each row of logits: the sampler's commonest stages and its draw, without a pass for each of them.
// The same tokens as server/engine/sampler.py gives: whatever decides a comparison is computed by the same operations.
#pragma once
#include <cstdint>

extern "C" {

enum DrawStage : uint8_t { kEnd = 0, kRepetition, kFrequency, kPresence, kTemperature, kTopK, kTopP, kMinP };

// What a row's parameters ask for; packed by server/engine/sampling/program.py. Penalties come first, filters last.
struct DrawProgram {
    uint64_t seed;
    int64_t top_k;
    float repetition, frequency, presence;
    float temperature;  // 0: the arg-max of what the penalties left
    float top_p;
    float min_p_log;
    uint8_t stages[8];  // in turn, kEnd behind the last
};

// What a sequence holds within the window its penalties look at; a token may be listed twice. The counts are of every
// token of the vocabulary: how often in all, and how often in the output.
struct DrawHistory {
    const int32_t* tokens;
    const int32_t* seen;
    const int32_t* said;
    int64_t count;
};

struct DrawRow {
    int64_t row;       // of the logits
    int64_t position;  // where the token will stand
    DrawHistory history;
};

}  // extern "C"

// One token for each of `count` rows of logits [any, vocab_size]. Throws std::bad_alloc and std::length_error.
void choose_tokens(const float* logits, int64_t vocab_size, int64_t count, const DrawRow* rows, const DrawProgram* programs,
                   int64_t* tokens);
