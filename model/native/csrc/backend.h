// What one instruction set provides, and the memory a step needs. Plain data only: the units compiled for newer
// processors must not emit inline library functions that the linker could then choose for everyone.
#pragma once
#include <cstdint>

#include "abi.h"
#include "team.h"

constexpr int64_t kPanel = 64;      // columns of a packed weight panel
constexpr int64_t kBlockSize = 16;  // tokens of a cache block, as in model.paged
constexpr int64_t kSplit = 64;      // keys whose scores are computed together

static constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Consecutive rows of a step that belong to one sequence, placed: see StepSpan.
struct PlacedSpan {
    int64_t first_row;
    int64_t length;
    int64_t start;
    const int32_t* blocks;
};

// Rows of attention that share a kv head and their keys: [first, first + count) of the span's tokens * group heads.
struct AttentionUnit {
    int32_t span, kv_head, first, count;
    bool is_new;  // the units before it had other keys, hence no near cache has these
};

struct AttentionPlan {
    const AttentionUnit* units;
    int64_t count;
};

// Cache of one engine: [layer][block][kv head] of a key part [head_dim / pair][16][pair] and a value part
// [16 / pair][head_dim][pair], head_dim rounded up to 16. A register of keys then holds 16 tokens. int8 parts are in
// fours, keys unsigned around 128, and end with the float32 scales of their 16 tokens.
struct CachePages {
    char* data;
    int64_t num_blocks;
    int64_t padded_head_dim;
    int64_t part_bytes;
};

// What the codes of a row stand for: value = scale * (code - zero). Not a number for a row that is not finite.
struct CodeScale {
    float scale;
    int32_t zero;
};

// Buffers for a step of up to `capacity` rows. Leading dimensions are whole panels; columns past the used ones stay 0.
struct Workspace {
    float* x;              // residual stream [rows, hidden]
    char* normed;          // input of products [rows, hidden]
    float* qkv;            // [rows, qkv columns]
    char* query;           // [rows, heads, padded_head_dim]
    char* attended;        // [rows, heads * head_dim]
    char* inner;           // activations [assignments, inner_size]
    uint8_t* codes;        // of the rows that the next int8 product reads, with their stride
    CodeScale* code_scales;  // [assignments]
    float* router_logits;  // [rows, router columns]
    float* expert_out;     // [assignments, hidden]
    float* gates;          // [rows, experts_per_token]
    int32_t* places;       // [rows, experts_per_token] assignment of each choice
    int32_t* members;      // [assignments] row, grouped by expert
    int32_t* chosen;       // [rows, experts_per_token] expert
    int64_t* expert_first; // [num_experts + 2] first assignment of each expert; the last while counting
    float* scores;         // [threads, tile rows, max_keys]
    char* weights;         // [threads, tile rows, max_keys] in element type
    int64_t max_keys;
    AttentionPlan attention, last_attention;  // of all layers but the last, and of the last
};

struct StepContext {
    const ModelWeights* model;
    const StepWork* work;
    const PlacedSpan* spans;   // [num_spans]
    const int32_t* positions;  // [num_rows]
    // [num_live] rows whose last hidden state somebody reads, ascending. Null if all are: of the others the last layer
    // makes keys and values only.
    const int32_t* live;
    int64_t num_live;
    const int32_t* past;       // [num_past] blocks of earlier steps to fetch ahead of attention, in its order; may be none
    int64_t num_past;
    CachePages cache;
    Workspace space;
};

struct Backend {
    const char* name;
    int64_t tile_rows;
    void (*run)(const StepContext& context, const Team& team);
    int64_t (*compute_dots)(int64_t weight_bytes, int64_t repeats);  // see measure.h; returns the operations of one repeat
};

const Backend* backend_avx512();
const Backend* backend_avx2();
const Backend* backend_portable();
