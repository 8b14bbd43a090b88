// The functions Python calls. All return 0, or -1 and leave a sentence for `minigpt_error`.
#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>
#include <system_error>

#include "decode.h"
#include "draw.h"
#include "measure.h"
#include "memory.h"
#include "session.h"

namespace {

thread_local std::string last_error;

template <class Function>
int guarded(const Function& function) {
    try {
        function();
        return 0;
    } catch (const std::exception& error) {
        last_error = error.what();
        return -1;
    }
}

// The best instruction set of this processor, or the one named.
const Backend* choose_backend(const std::string& name) {
#if defined(__x86_64__)
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bf16") &&
                        __builtin_cpu_supports("avx512vnni");
    if (avx512 && (name.empty() || name == "avx512")) return backend_avx512();
    if (avx2 && (name.empty() || name == "avx2")) return backend_avx2();
#endif
    if (name.empty() || name == "portable") return backend_portable();
    throw std::runtime_error("instruction set " + name + " is not available on this processor");
}

// What a packed panel interleaves: a pair of its inputs, whatever their type.
constexpr int64_t kWord = 4;
constexpr int64_t kWordsOfLine = 16;

// `count` words of a row into every 64th word from `to` on; zeros behind the `left` bytes that the row still has.
void pack_words(const char* from, int64_t left, int64_t count, char* to) {
    char line[kWordsOfLine * kWord] = {};
    if (left >= static_cast<int64_t>(sizeof line)) std::memcpy(line, from, sizeof line);
    else if (left > 0) std::memcpy(line, from, static_cast<size_t>(left));
    for (int64_t i = 0; i < count; ++i) std::memcpy(to + i * kPanel * kWord, line + i * kWord, kWord);
}

}  // namespace

extern "C" {

// Of the sources this was made from: `model.native.abi` does not load a library that does not fit it.
const char* minigpt_sources() { return SOURCES_HASH; }

const char* minigpt_error() { return last_error.c_str(); }

int minigpt_create(const ModelWeights* model, const char* instruction_set, int64_t num_blocks, int64_t num_threads,
                   Session** session) {
    return guarded([&] {
        try {
            *session = new Session(*model, *choose_backend(instruction_set), num_blocks, num_threads);
        } catch (const std::system_error& error) {  // of std::thread, and it does not say of what
            throw std::runtime_error("the system does not give " + std::to_string(num_threads) + " threads: " + error.what());
        }
    });
}

void minigpt_destroy(Session* session) { delete session; }

const char* minigpt_instruction_set(const Session* session) { return session->backend().name; }

// The best of this processor: what a session takes that is asked for none.
const char* minigpt_best_instruction_set() { return choose_backend("")->name; }

int minigpt_step(Session* session, const StepWork* work) {
    return guarded([&] { session->step(*work); });
}

// See decode.h.
int minigpt_decode(Session* session, DecodeWork* work) {
    return guarded([&] { decode(*session, *work); });
}

// Zeroes the contents of blocks.
void minigpt_scrub(Session* session, const int32_t* blocks, int64_t count) {
    const CachePages& cache = session->cache();
    const int64_t bytes = session->model().num_kv_heads * 2 * cache.part_bytes;
    for (int64_t layer = 0; layer < session->model().num_layers; ++layer)
        for (int64_t i = 0; i < count; ++i)
            std::memset(cache.data + (layer * cache.num_blocks + blocks[i]) * bytes, 0, static_cast<size_t>(bytes));
}

// See draw.h.
int minigpt_choose(const float* logits, int64_t vocab_size, int64_t count, const DrawRow* rows, const DrawProgram* programs,
                   int64_t* tokens) {
    return guarded([&] { choose_tokens(logits, vocab_size, count, rows, programs, tokens); });
}

// For benchmarks: see measure.h.
uint64_t minigpt_read_memory(const void* words, int64_t count, int64_t num_threads) {
    return read_memory(static_cast<const uint64_t*>(words), count, num_threads);
}
int minigpt_compute_dots(const char* instruction_set, int64_t weight_bytes, int64_t repeats, int64_t num_threads,
                         double* operations) {
    return guarded([&] {
        *operations = compute_dots(*choose_backend(instruction_set), weight_bytes, repeats, num_threads);
    });
}

// Zeroed memory for packed weights, or null when there is none left.
void* minigpt_allocate(int64_t bytes) { return allocate_pages(bytes); }
void minigpt_free(void* memory, int64_t bytes) { free_pages(memory, bytes); }

// Packs weights [any, inputs] as [columns / 64][padded_inputs / pair][64][pair], where column c is row rows[c] of the
// source, or zeros where that is -1. Elements are copied as they are. Threads may pack parts of one product, cut at panels.
void minigpt_pack(const char* source, int64_t inputs, const int64_t* rows, int64_t columns, int64_t padded_inputs,
                  int64_t element_size, char* packed) {
    const int64_t row_bytes = inputs * element_size, words = padded_inputs * element_size / kWord;
    for (int64_t first = 0; first < columns; first += kPanel)
        for (int64_t word = 0; word < words; word += kWordsOfLine)
            for (int64_t column = first; column < first + kPanel; ++column) {
                char* to = packed + (first * words + word * kPanel + column - first) * kWord;
                const int64_t count = words - word < kWordsOfLine ? words - word : kWordsOfLine;
                const int64_t left = rows[column] < 0 ? 0 : row_bytes - word * kWord;
                pack_words(left > 0 ? source + rows[column] * row_bytes + word * kWord : source, left, count, to);
            }
}

}  // extern "C"
