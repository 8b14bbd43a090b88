// One engine's memory, threads and instruction set, and how a step is made ready for them.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "backend.h"
#include "memory.h"
#include "pool.h"

// Zeroed memory aligned to cache lines, kept until it must grow.
class Buffer {
  public:
    Buffer() = default;
    ~Buffer();
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    void* reserve(int64_t bytes);

  private:
    void* data_ = nullptr;
    int64_t size_ = 0;
};

class Session {
  public:
    Session(const ModelWeights& model, const Backend& backend, int64_t num_blocks, int64_t num_threads);

    // Throws std::invalid_argument for tokens, positions and blocks that are not there: nothing has been written then.
    void step(const StepWork& work);
    const CachePages& cache() const { return cache_; }
    const ModelWeights& model() const { return model_; }
    const Backend& backend() const { return backend_; }

  private:
    void place(const StepWork& work);
    void check(const StepWork& work) const;
    void look_ahead(const StepWork& work);
    void lay_out(const StepWork& work);
    void find_live(const StepWork& work);
    void plan_attention(const StepWork& work);
    void plan_last_attention();

    const ModelWeights model_;
    const Backend& backend_;
    const bool has_small_weights_;
    Pool pool_;
    CachePages cache_{};
    Workspace space_{};
    Buffer pages_;
    std::optional<PageFiller> filler_;  // of the pages: ends before they do
    Buffer buffers_[17];
    std::vector<PlacedSpan> spans_;
    std::vector<int32_t> positions_;
    std::vector<int32_t> past_;
    std::vector<int32_t> live_;
    bool is_all_live_ = true;
    std::vector<AttentionUnit> units_, last_units_;
};
