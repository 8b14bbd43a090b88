// See draw.h. A row is scaled into a scratch copy once; filters raise a threshold instead of hiding tokens one by one;
// noise is computed in registers, and its logarithms only for the few tokens that could still win.
#include "draw.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

// Vectors are passed between functions of this file only, and those are inlined.
#pragma GCC diagnostic ignored "-Wpsabi"

#include "noise.h"

#if defined(__x86_64__)
#define VECTORISED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define VECTORISED
#endif

namespace {

constexpr float kHidden = -std::numeric_limits<float>::infinity();
constexpr int64_t kWidth = 16;          // numbers of a vector
constexpr int64_t kPart = 256;          // tokens that are passed over together; a lane's maximum over them is kept
constexpr int64_t kTile = 64;           // tokens whose noise is computed together
constexpr float kReach = 26.1f;         // noise.REACH
constexpr int64_t kSorted = 256;        // as few are sorted at once
constexpr float kWeightless = 32.0f;    // below the maximum: exp(-32) * 2^44 < 1
constexpr int64_t kBuckets = 2048;

typedef float Vector __attribute__((vector_size(4 * kWidth), aligned(4), may_alias));
typedef uint32_t Words __attribute__((vector_size(4 * kWidth), aligned(4), may_alias));

struct Scratch {
    std::vector<float> values;   // [vocab, whole parts] the row after penalties and temperature
    std::vector<float> lanes;    // [parts, width] maxima of every lane
    std::vector<float> parts;    // their maxima
    std::vector<float> kept;     // values above a bound, in the order of their tokens
    std::vector<int64_t> weights;
    std::vector<float> bounds;   // of value plus noise, tile by tile
    std::vector<int64_t> tiles;  // first tokens of those tiles
};

int64_t padded(int64_t size) { return (size + kPart - 1) / kPart * kPart; }

// Lane by lane, of `count` numbers: whole vectors.
INLINE Vector lane_maxima(const float* values, int64_t count) {
    Vector best = *reinterpret_cast<const Vector*>(values);
    for (int64_t i = kWidth; i < count; i += kWidth) {
        const Vector next = *reinterpret_cast<const Vector*>(values + i);
        best = next > best ? next : best;
    }
    return best;
}

INLINE Vector larger(Vector a, Vector b) { return a > b ? a : b; }

INLINE float maximum_of(const float* values, int64_t count) {
    Vector best = lane_maxima(values, count);
    best = larger(best, __builtin_shufflevector(best, best, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
    best = larger(best, __builtin_shufflevector(best, best, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
    best = larger(best, __builtin_shufflevector(best, best, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
    best = larger(best, __builtin_shufflevector(best, best, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
    return best[0];
}

// The first of the largest.
VECTORISED int64_t arg_max(const float* values, int64_t size) {
    constexpr int64_t kSearched = 1024;
    float best = kHidden;
    int64_t found = 0;
    for (int64_t first = 0; first < size; first += kSearched) {
        const int64_t end = std::min(first + kSearched, size), whole = (end - first) / kWidth * kWidth;
        float most = whole ? maximum_of(values + first, whole) : kHidden;
        for (int64_t i = first + whole; i < end; ++i) most = std::max(most, values[i]);
        if (most > best) {
            best = most;
            found = first;
        }
    }
    for (int64_t i = found; i < size; ++i)
        if (values[i] == best) return i;
    return 0;
}

VECTORISED void scale(const float* logits, int64_t size, float divisor, float* values) {
    if (divisor == 1.0f) std::copy(logits, logits + size, values);
    else
        for (int64_t i = 0; i < size; ++i) values[i] = logits[i] / divisor;
    for (int64_t i = size; i < padded(size); ++i) values[i] = kHidden;
}

VECTORISED void find_maxima(const float* values, Scratch& scratch) {
    for (size_t part = 0; part < scratch.parts.size(); ++part) {
        float* lanes = scratch.lanes.data() + part * kWidth;
        *reinterpret_cast<Vector*>(lanes) = lane_maxima(values + part * kPart, kPart);
        scratch.parts[part] = maximum_of(lanes, kWidth);
    }
}

float penalised(float logit, const DrawProgram& program, int64_t seen, int64_t said) {
    for (const uint8_t* stage = program.stages; *stage; ++stage) {
        const float count = static_cast<float>(said);
        if (*stage == kRepetition && seen > 0) logit = logit > 0 ? logit / program.repetition : logit * program.repetition;
        if (*stage == kFrequency && said) logit = logit - program.frequency * count;
        if (*stage == kPresence && said > 0) logit = logit - program.presence;
    }
    return logit;
}

// `floor` and up, in the order of their tokens; hidden ones never.
VECTORISED void keep_from(float floor, const float* values, Scratch& scratch) {
    floor = std::max(floor, std::numeric_limits<float>::lowest());
    scratch.kept.resize(scratch.values.size() + 1);
    float* kept = scratch.kept.data();
    for (size_t part = 0; part < scratch.parts.size(); ++part) {
        if (!(scratch.parts[part] >= floor)) continue;
        for (int64_t i = 0; i < kPart; ++i) {
            const float value = values[part * kPart + i];
            *kept = value;
            kept += value >= floor;
        }
    }
    scratch.kept.resize(kept - scratch.kept.data());
}

float kth_largest(int64_t k, std::vector<float>& values) {
    std::nth_element(values.begin(), values.begin() + k - 1, values.end(), std::greater<float>());
    return values[k - 1];
}

// The k-th largest value from the threshold on. It is no smaller than the k-th largest of any parts' maxima.
float top_k_threshold(int64_t k, float threshold, Scratch& scratch) {
    float bound = threshold;
    for (const std::vector<float>* maxima : {&scratch.parts, &scratch.lanes}) {
        if (k > static_cast<int64_t>(maxima->size())) continue;
        scratch.kept = *maxima;
        bound = std::max(bound, kth_largest(k, scratch.kept));
        break;
    }
    keep_from(bound, scratch.values.data(), scratch);
    return static_cast<int64_t>(scratch.kept.size()) > k ? kth_largest(k, scratch.kept) : bound;
}

// `filters.integer_weights`, operation by operation.
VECTORISED void integer_weights(const float* values, int64_t count, float maximum, int64_t* weights) {
    constexpr double kFactors[] = {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
                                   1.0 / 720,       1.0 / 120,      1.0 / 24,      1.0 / 6,      1.0 / 2,     1.0};
    for (int64_t i = 0; i < count; ++i) {
        double exponent = static_cast<double>(values[i]) - static_cast<double>(maximum);
        exponent = exponent < -40.0 ? -40.0 : exponent;
        const double doublings = std::nearbyint(exponent * (1.0 / kLog2));
        const double rest = exponent - doublings * kLog2;
        double series = rest * kFactors[0];
        for (int k = 1; k < 12; ++k) series = (series + kFactors[k]) * rest;
        const int64_t bits = (static_cast<int64_t>(doublings) + (44 + 1023)) << 52;
        double power;
        __builtin_memcpy(&power, &bits, sizeof power);
        weights[i] = static_cast<int64_t>((series + 1.0) * power);
    }
}

// Going down the `count` largest values, all of them weighed: the one at which `sum` reaches the target.
float crossing(float* values, int64_t count, float maximum, int64_t sum, double target, Scratch& scratch) {
    std::sort(values, values + count, std::greater<float>());
    scratch.weights.resize(std::max<size_t>(scratch.weights.size(), count));
    integer_weights(values, count, maximum, scratch.weights.data());
    for (int64_t i = 0; i < count; ++i) {
        sum += scratch.weights[i];
        if (static_cast<double>(sum) >= target) return values[i];
    }
    return kHidden;
}

VECTORISED int64_t weight_from(float floor, const float* values, const int64_t* weights, int64_t count) {
    int64_t sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += values[i] >= floor ? weights[i] : 0;
    return sum;
}

// Drops values that lie behind the crossing: most of them, mostly. What is left still weighs as much as the target.
void drop_unlikely(float maximum, double target, Scratch& scratch) {
    int64_t count = static_cast<int64_t>(scratch.kept.size());
    for (float distance = 2.0f; distance < kWeightless; distance *= 2.0f) {
        const float floor = maximum - distance;
        if (static_cast<double>(weight_from(floor, scratch.kept.data(), scratch.weights.data(), count)) < target) continue;
        int64_t left = 0;
        for (int64_t i = 0; i < count; ++i) {
            scratch.kept[left] = scratch.kept[i];
            scratch.weights[left] = scratch.weights[i];
            left += scratch.kept[i] >= floor;
        }
        scratch.kept.resize(left);
        return;
    }
}

// Adds up weights by distance from the maximum, so that only one bucket's values need sorting.
float crossing_by_buckets(float maximum, double target, Scratch& scratch) {
    const auto bucket_of = [maximum](float value) {
        return std::min(kBuckets - 1, static_cast<int64_t>((maximum - value) * (kBuckets / kWeightless)));
    };
    int64_t sums[kBuckets] = {};
    for (size_t i = 0; i < scratch.kept.size(); ++i) sums[bucket_of(scratch.kept[i])] += scratch.weights[i];
    int64_t sum = 0, bucket = 0;
    while (bucket < kBuckets && static_cast<double>(sum + sums[bucket]) < target) sum += sums[bucket++];
    if (bucket == kBuckets) return kHidden;
    const auto end = std::remove_if(scratch.kept.begin(), scratch.kept.end(),
                                    [&](float value) { return bucket_of(value) != bucket; });
    return crossing(scratch.kept.data(), end - scratch.kept.begin(), maximum, sum, target, scratch);
}

// The smallest value that the most likely ones need to reach `p` of the weight of all from the threshold on.
float top_p_threshold(double p, float maximum, float threshold, Scratch& scratch) {
    keep_from(std::max(threshold, maximum - kWeightless), scratch.values.data(), scratch);
    const int64_t count = static_cast<int64_t>(scratch.kept.size());
    scratch.weights.resize(count);
    integer_weights(scratch.kept.data(), count, maximum, scratch.weights.data());
    int64_t total = 0;
    for (int64_t weight : scratch.weights) total += weight;
    const double target = p * static_cast<double>(total);
    if (count <= kSorted) return crossing(scratch.kept.data(), count, maximum, 0, target, scratch);
    drop_unlikely(maximum, target, scratch);
    return crossing_by_buckets(maximum, target, scratch);
}

float threshold_of(const DrawProgram& program, float maximum, int64_t size, Scratch& scratch) {
    float threshold = std::numeric_limits<float>::lowest();
    for (const uint8_t* stage = program.stages; *stage; ++stage) {
        float own = kHidden;
        if (*stage == kTopK && program.top_k < size) own = top_k_threshold(program.top_k, threshold, scratch);
        if (*stage == kTopP) own = top_p_threshold(program.top_p, maximum, threshold, scratch);
        if (*stage == kMinP) own = maximum + program.min_p_log;
        threshold = std::max(threshold, own);
    }
    return threshold;
}

// Upper bounds of value plus noise for a tile; the largest of them.
VECTORISED float bound_tile(const NoiseKey& key, int64_t first, const float* values, float floor, float* bounds) {
    uint32_t words[kLanes][kTile / kLanes];
    philox(key, static_cast<uint32_t>(first / kLanes), words);
    uint32_t ordered[kTile];
    for (int64_t i = 0; i < kTile / kLanes; ++i)
        for (int64_t lane = 0; lane < kLanes; ++lane) ordered[kLanes * i + lane] = words[lane][i];
    for (int64_t i = 0; i < kTile; i += kWidth) {
        const Vector own = *reinterpret_cast<const Vector*>(values + i);
        const Vector bound = own + gumbel_bound<Vector, Words>(*reinterpret_cast<const Words*>(ordered + i));
        *reinterpret_cast<Vector*>(bounds + i) = own >= floor ? bound : Vector{} + kHidden;
    }
    return maximum_of(bounds, kTile);
}

// How far a bound may lie below the sum it bounds, as it was rounded.
float slack(float bound) { return 1e-3f + 1e-6f * std::fabs(bound); }

VECTORISED int64_t draw(const NoiseKey& key, float maximum, float threshold, int64_t size, Scratch& scratch) {
    const float floor = std::max(threshold, maximum - kReach);
    const float* values = scratch.values.data();
    scratch.tiles.clear();
    float most = kHidden;
    int64_t most_tile = -1;
    for (int64_t first = 0; first < padded(size); first += kTile) {
        if (!(scratch.parts[first / kPart] >= floor) || !(maximum_of(values + first, kTile) >= floor)) continue;
        const int64_t tile = static_cast<int64_t>(scratch.tiles.size());
        const float own = bound_tile(key, first, values + first, floor, scratch.bounds.data() + tile * kTile);
        scratch.tiles.push_back(first);
        if (own > most || most_tile < 0) {
            most = own;
            most_tile = tile;
        }
    }
    if (most_tile < 0) return 0;
    const auto score = [values, &key](int64_t token) { return static_cast<double>(values[token]) + gumbel_of_token(key, token); };
    const float* bounds = scratch.bounds.data();
    const int64_t likely = scratch.tiles[most_tile] + arg_max(bounds + most_tile * kTile, kTile);
    const double least = score(likely);
    double best = -std::numeric_limits<double>::infinity();
    int64_t token = 0;
    for (size_t tile = 0; tile < scratch.tiles.size(); ++tile) {
        const float highest = maximum_of(bounds + tile * kTile, kTile);
        if (!(highest + slack(highest) >= least)) continue;
        for (int64_t i = 0; i < kTile; ++i) {
            const float bound = bounds[tile * kTile + i];
            if (!(bound + slack(bound) >= least)) continue;
            const double own = score(scratch.tiles[tile] + i);
            if (own > best) {
                best = own;
                token = scratch.tiles[tile] + i;
            }
        }
    }
    return token;
}

int64_t choose(const float* logits, int64_t size, const DrawRow& row, const DrawProgram& program, Scratch& scratch) {
    const bool is_greedy = program.temperature == 0.0f;
    const bool looks_back = row.history.count > 0;
    if (is_greedy && !looks_back) return arg_max(logits, size);
    const float divisor = is_greedy ? 1.0f : program.temperature;
    float* values = scratch.values.data();
    scale(logits, size, divisor, values);
    for (int64_t i = 0; i < row.history.count; ++i) {
        const int32_t token = row.history.tokens[i];
        values[token] = penalised(logits[token], program, row.history.seen[token], row.history.said[token]) / divisor;
    }
    if (is_greedy) return arg_max(values, size);
    find_maxima(values, scratch);
    const float maximum = *std::max_element(scratch.parts.begin(), scratch.parts.end());
    if (!(maximum > kHidden)) return 0;
    const NoiseKey key{static_cast<uint32_t>(program.seed), static_cast<uint32_t>(program.seed >> 32),
                       static_cast<uint32_t>(row.position)};
    return draw(key, maximum, threshold_of(program, maximum, size, scratch), size, scratch);
}

}  // namespace

void choose_tokens(const float* logits, int64_t vocab_size, int64_t count, const DrawRow* rows, const DrawProgram* programs,
                   int64_t* tokens) {
    thread_local Scratch scratch;
    const int64_t size = padded(vocab_size);
    scratch.values.resize(size);
    scratch.bounds.resize(size);
    scratch.lanes.resize(size / kPart * kWidth);
    scratch.parts.resize(size / kPart);
    for (int64_t i = 0; i < count; ++i)
        tokens[i] = choose(logits + rows[i].row * vocab_size, vocab_size, rows[i], programs[i], scratch);
}
