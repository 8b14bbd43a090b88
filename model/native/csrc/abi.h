// The C structures that cross from Python: a model's packed weights, and the work of steps. Mirrored in `abi.py`.
#pragma once
#include <cstdint>

extern "C" {

enum ElementType : int64_t { kFloat32 = 0, kBfloat16 = 1 };
enum Activation : int64_t { kGelu = 0, kGeluTanh = 1, kRelu = 2, kSwiglu = 3 };

// weight null: no norm. bias null: RMSNorm. Both float32 [size].
struct NormWeights {
    const float* weight;
    const float* bias;
    int64_t size;
    double epsilon;
};

// y = x W^T + b. `packed` is [columns / 64][inputs / pair][64][pair] (see minigpt_pack), bias float32 [columns] or null.
// `columns` counts padding: whole panels of 64; of a gated product, panels of 32 gates and their 32 ups. With `scales`
// [columns] the weights are int8, in fours: weight = scale * code; `code_sums` [columns] are the sums of the codes.
struct ProductWeights {
    const void* packed;
    const float* bias;
    const float* scales;       // null: weights in element type
    const int32_t* code_sums;
    int64_t columns;
    int64_t inputs;
};

struct LayerWeights {
    NormWeights attention_norm;
    ProductWeights qkv;
    NormWeights query_norm;
    NormWeights key_norm;
    ProductWeights out;
    NormWeights feed_forward_norm;
    int64_t num_experts;         // 0: up and down point to one dense product
    int64_t experts_per_token;
    ProductWeights router;
    const ProductWeights* up;    // [max(1, num_experts)]
    const ProductWeights* down;
};

struct ModelWeights {
    int64_t element;             // ElementType of packed weights, embeddings and cache
    int64_t hidden_size;
    int64_t num_layers;
    int64_t num_heads;
    int64_t num_kv_heads;
    int64_t head_dim;
    int64_t inner_size;          // columns of the activation's output, whole panels
    int64_t vocab_size;
    int64_t context_length;
    int64_t pre_norm;
    int64_t activation;
    int64_t sliding_window;      // 0: none
    int64_t int8_cache;          // keys and values are int8 codes, not in element type
    const void* embedding;           // [vocab_size, hidden_size] in element type
    const void* position_embedding;  // [context_length, hidden_size] in element type, or null
    const float* position_table;     // the same in float32 (sinusoidal), or null
    const float* rotary_table;       // [context_length, 2, head_dim / 2], or null
    const float* alibi_slopes;       // [num_heads], or null
    const LayerWeights* layers;
    NormWeights final_norm;
    ProductWeights unembedding;
};

// Consecutive tokens of one sequence: see model.paged.Span.
struct StepSpan {
    int64_t start;
    int64_t length;
    int64_t num_blocks;
};

struct StepWork {
    int64_t num_rows;
    int64_t num_spans;
    int64_t num_wanted;
    const int32_t* tokens;     // [num_rows]
    const StepSpan* spans;     // [num_spans], in the order of their rows
    const int32_t* blocks;     // the spans' block tables, one after the other
    const int32_t* wanted;     // [num_wanted] rows to unembed
    float* logits;             // [num_wanted, vocab_size]
    // [num_rows + num_wanted]: 1 if a row's hidden state, keys and values are, then if its logits are. The last layer
    // makes keys and values alone of rows that are not wanted, unless somebody watches.
    uint8_t* is_finite;
    // Null where nobody watches. The experts a row chose, best first, and their weights: [num_layers, num_rows,
    // experts_per_token] each. By row, null or the weights of its attention, [num_layers, num_heads, position + 1].
    int32_t* chosen;
    float* gates;
    float* const* attention;   // [num_rows]
};

// Steps in a row, see decode.h. The spans of the first have one token each, all of whose logits are wanted; their block
// tables reach as far as `most_passes` do.
struct DecodeWork {
    StepWork step;             // logits and is_finite are those of the last pass
    const struct DrawProgram* programs;  // [num_spans], see draw.h
    const int64_t* endings;    // tokens that end a span's sequence, one span's after the other's
    const int64_t* num_endings;          // [num_spans]
    int64_t most_passes;
    double seconds;            // once they have gone by, no further pass begins
    int64_t watched;           // nor once this descriptor has something to read; none if negative
    int64_t* chosen;           // [most_passes, num_spans]
    // What came of it:
    int64_t num_passes;
    int64_t num_chosen;        // passes that chose: all, but for a last one that is not finite
    double forward_seconds;    // in the model
    double choose_seconds;     // between its passes
};

}  // extern "C"
