#include "session.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>

namespace {

struct Tokens {
    int64_t first, count;
};

constexpr int64_t kCacheLine = 64;
constexpr int64_t kScaleBytes = 4;  // of a token's key or value
constexpr int64_t kCachedBytes = int64_t{32} << 20;  // of weights that stay in a processor's last cache from step to step
constexpr int64_t kBytesAhead = int64_t{8} << 20;    // of a layer's pages that stay there until they are read

int64_t element_size(const ModelWeights& model) { return model.element == kBfloat16 ? 2 : 4; }

void require(bool holds, const char* sentence) {
    if (!holds) throw std::invalid_argument(sentence);
}

int64_t bytes_of(const ModelWeights& model, const ProductWeights& weights) {
    return weights.columns * weights.inputs * (weights.scales ? 1 : element_size(model));
}

bool has_small_weights(const ModelWeights& model) {
    int64_t bytes = bytes_of(model, model.unembedding);
    for (int64_t i = 0; i < model.num_layers; ++i) {
        const LayerWeights& layer = model.layers[i];
        bytes += bytes_of(model, layer.qkv) + bytes_of(model, layer.out);
        for (int64_t e = 0; e < std::max<int64_t>(1, layer.num_experts); ++e)
            bytes += bytes_of(model, layer.up[e]) + bytes_of(model, layer.down[e]);
    }
    return bytes <= kCachedBytes;
}

// The cache's size, known to fit its type with room for rounding up.
int64_t cache_bytes(const ModelWeights& model, int64_t num_blocks, int64_t part_bytes) {
    const int64_t block_bytes = std::max<int64_t>(1, model.num_layers * model.num_kv_heads * 2 * part_bytes);
    const int64_t most = std::numeric_limits<int64_t>::max() / 2 / block_bytes;
    if (num_blocks < 1 || num_blocks > most)
        throw std::invalid_argument("num_blocks is " + std::to_string(num_blocks) + "; it must be 1 to " + std::to_string(most));
    return num_blocks * block_bytes;
}

// The one allocation whose size is a setting: where it fails, the setting is to be named.
void* reserve_cache(Buffer& pages, int64_t bytes, int64_t num_blocks) {
    try {
        return pages.reserve(bytes);
    } catch (const std::bad_alloc&) {
        throw std::runtime_error("num_blocks is " + std::to_string(num_blocks) + "; the " + std::to_string(bytes) +
                                 " bytes of such a cache cannot be had");
    }
}

// The attention work of some tokens of a span: for every kv head, whose keys then stay in a near cache, the token *
// group rows in tiles of equal height, give or take one.
void add_units(std::vector<AttentionUnit>& units, const ModelWeights& model, int64_t span, Tokens tokens, int64_t tile_rows) {
    const int64_t groups = model.num_heads / model.num_kv_heads;
    const int64_t rows = tokens.count * groups, tiles = (rows + tile_rows - 1) / tile_rows;
    for (int64_t head = 0; head < model.num_kv_heads; ++head)
        for (int64_t tile = 0; tile < tiles; ++tile) {
            const int64_t first = rows * tile / tiles, last = rows * (tile + 1) / tiles;
            units.push_back({static_cast<int32_t>(span), static_cast<int32_t>(head),
                             static_cast<int32_t>(tokens.first * groups + first), static_cast<int32_t>(last - first),
                             tile == 0});
        }
}

AttentionPlan plan_of(const std::vector<AttentionUnit>& units) {
    return {units.data(), static_cast<int64_t>(units.size())};
}

}  // namespace

Buffer::~Buffer() {
    if (data_) free_pages(data_, size_);
}

void* Buffer::reserve(int64_t bytes) {
    if (bytes <= size_) return data_;
    // A quarter more than asked, so that slowly growing steps do not allocate each time.
    const int64_t size = data_ ? round_up(bytes + bytes / 4, kCacheLine) : bytes;
    void* fresh = allocate_pages(size);
    if (!fresh) throw std::bad_alloc();
    if (data_) free_pages(data_, size_);
    data_ = fresh;
    size_ = size;
    return fresh;
}

Session::Session(const ModelWeights& model, const Backend& backend, int64_t num_blocks, int64_t num_threads)
    : model_(model), backend_(backend), has_small_weights_(has_small_weights(model)), pool_(num_threads) {
    cache_.num_blocks = num_blocks;
    cache_.padded_head_dim = round_up(model.head_dim, 16);
    cache_.part_bytes = model.int8_cache ? (cache_.padded_head_dim + kScaleBytes) * kBlockSize
                                         : cache_.padded_head_dim * kBlockSize * element_size(model);
    const int64_t size = cache_bytes(model, num_blocks, cache_.part_bytes);
    cache_.data = static_cast<char*>(reserve_cache(pages_, size, num_blocks));
    filler_.emplace(cache_.data, size / model.num_layers, model.num_layers);
}

void Session::check(const StepWork& work) const {
    const int32_t* blocks = work.blocks;
    int64_t rows = 0;
    for (int64_t i = 0; i < work.num_spans; ++i) {
        const StepSpan& span = work.spans[i];
        require(span.length > 0 && span.length <= model_.context_length, "a span has no tokens or too many");
        require(span.start >= 0 && span.start <= model_.context_length - span.length, "a span ends behind the context");
        require(span.num_blocks * kBlockSize >= span.start + span.length, "a block table is too short for its span");
        for (int64_t block = 0; block < span.num_blocks; ++block)
            require(blocks[block] >= 0 && blocks[block] < cache_.num_blocks, "a block is not in the pool");
        blocks += span.num_blocks;
        rows += span.length;
    }
    require(rows == work.num_rows, "there are not as many tokens as the spans have");
    for (int64_t i = 0; i < rows; ++i)
        require(work.tokens[i] >= 0 && work.tokens[i] < model_.vocab_size, "a token is not in the vocabulary");
    for (int64_t i = 0; i < work.num_wanted; ++i)
        require(work.wanted[i] >= 0 && work.wanted[i] < rows, "a wanted row is not in the step");
}

// Where every span begins among the rows and among the blocks, and where every row stands in its sequence.
void Session::place(const StepWork& work) {
    spans_.clear();
    positions_.clear();
    const int32_t* blocks = work.blocks;
    for (int64_t i = 0; i < work.num_spans; ++i) {
        const StepSpan& span = work.spans[i];
        spans_.push_back({static_cast<int64_t>(positions_.size()), span.length, span.start, blocks});
        for (int64_t token = 0; token < span.length; ++token) positions_.push_back(static_cast<int32_t>(span.start + token));
        blocks += span.num_blocks;
    }
}

// The blocks that the threads are to fetch during products. Few rows compute no longer than their weights take to arrive,
// and weights that come from memory themselves leave no time either.
void Session::look_ahead(const StepWork& work) {
    past_.clear();
    if (!has_small_weights_ || work.num_rows <= backend_.tile_rows) return;
    const auto most = static_cast<size_t>(kBytesAhead / (model_.num_kv_heads * 2 * cache_.part_bytes));
    for (const PlacedSpan& span : spans_) {
        const int64_t oldest = model_.sliding_window ? std::max<int64_t>(0, span.start - model_.sliding_window + 1) : 0;
        const int64_t end = round_up(span.start, kBlockSize) / kBlockSize;
        past_.insert(past_.end(), span.blocks + oldest / kBlockSize, span.blocks + end);
        if (past_.size() > most) return past_.resize(most);
    }
}

// The rows that are wanted. Where somebody watches, every row goes all the way.
void Session::find_live(const StepWork& work) {
    live_.assign(work.wanted, work.wanted + work.num_wanted);
    const auto misplaced = std::adjacent_find(live_.begin(), live_.end(), std::greater_equal<int32_t>());
    if (misplaced != live_.end()) {
        std::sort(live_.begin(), live_.end());
        live_.erase(std::unique(live_.begin(), live_.end()), live_.end());
    }
    is_all_live_ = work.chosen || work.attention || static_cast<int64_t>(live_.size()) == work.num_rows;
}

void Session::plan_attention(const StepWork& work) {
    units_.clear();
    int64_t longest = 0;
    for (int64_t span = 0; span < work.num_spans; ++span) {
        const int64_t length = work.spans[span].length;
        longest = std::max(longest, work.spans[span].start + length);
        add_units(units_, model_, span, {0, length}, backend_.tile_rows);
    }
    space_.max_keys = round_up(longest, kSplit);
    space_.attention = plan_of(units_);
    if (!is_all_live_) plan_last_attention();
    space_.last_attention = plan_of(is_all_live_ ? units_ : last_units_);
}

// Live rows in runs that follow one another in a span.
void Session::plan_last_attention() {
    last_units_.clear();
    size_t span = 0, end = 0;
    for (size_t begin = 0; begin < live_.size(); begin = end) {
        while (live_[begin] >= spans_[span].first_row + spans_[span].length) ++span;
        const int64_t first = spans_[span].first_row, most = first + spans_[span].length - live_[begin];
        end = begin + 1;
        while (end < live_.size() && static_cast<int64_t>(end - begin) < most && live_[end] == live_[end - 1] + 1) ++end;
        const Tokens run{live_[begin] - first, static_cast<int64_t>(end - begin)};
        add_units(last_units_, model_, static_cast<int64_t>(span), run, backend_.tile_rows);
    }
}

void Session::lay_out(const StepWork& work) {
    plan_attention(work);
    int64_t columns = 0, router_columns = 0, choices = 1, experts = 0;
    for (int64_t i = 0; i < model_.num_layers; ++i) {
        columns = std::max(columns, model_.layers[i].qkv.columns);
        router_columns = std::max(router_columns, model_.layers[i].router.columns);
        choices = std::max(choices, model_.layers[i].experts_per_token);
        experts = std::max(experts, model_.layers[i].num_experts);
    }
    const int64_t size = element_size(model_), hidden = round_up(model_.hidden_size, kPanel);
    const int64_t rows = std::max(work.num_rows, work.num_wanted), assignments = rows * choices;
    const int64_t tile_keys = pool_.size() * backend_.tile_rows * space_.max_keys;
    Buffer* next = buffers_;
    const auto take = [&](auto*& pointer, int64_t bytes) {
        pointer = static_cast<std::decay_t<decltype(pointer)>>((next++)->reserve(bytes));
    };
    take(space_.x, rows * hidden * 4);
    take(space_.normed, rows * hidden * size);
    take(space_.qkv, rows * columns * 4);
    take(space_.query, rows * model_.num_heads * cache_.padded_head_dim * size);
    take(space_.attended, rows * round_up(model_.num_heads * model_.head_dim, kPanel) * size);
    take(space_.inner, assignments * model_.inner_size * size);
    const int64_t widest = std::max(hidden, round_up(model_.num_heads * model_.head_dim, kPanel));
    take(space_.codes, std::max(rows * widest, assignments * model_.inner_size));
    take(space_.code_scales, assignments * static_cast<int64_t>(sizeof(CodeScale)));
    take(space_.router_logits, rows * router_columns * 4);
    take(space_.expert_out, experts ? assignments * hidden * 4 : 0);
    take(space_.gates, assignments * 4);
    take(space_.places, assignments * 4);
    take(space_.members, assignments * 4);
    take(space_.chosen, assignments * 4);
    take(space_.expert_first, (experts + 2) * 8);
    take(space_.scores, tile_keys * 4);
    take(space_.weights, tile_keys * size);
}

void Session::step(const StepWork& work) {
    check(work);
    place(work);
    look_ahead(work);
    find_live(work);
    lay_out(work);
    const auto num_past = static_cast<int64_t>(past_.size());
    const auto num_live = is_all_live_ ? work.num_rows : static_cast<int64_t>(live_.size());
    backend_.run({&model_, &work, spans_.data(), positions_.data(), is_all_live_ ? nullptr : live_.data(), num_live,
                  past_.data(), num_past, cache_, space_},
                 Team{&pool_});
}
