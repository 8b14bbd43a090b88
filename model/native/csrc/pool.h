// The threads of one engine: the caller of a step, and others that help it with each stage when they are there.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "team.h"

// A stage is over when its items are done, not when every thread has come by: one that the system has put aside between
// two stages holds nobody up. Between steps a thread spins briefly, for steps follow each other within microseconds, and
// then sleeps: an idle engine costs nothing.
class Pool {
  public:
    explicit Pool(int64_t num_threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    void run_stage(int64_t count, const void* context, StageFunction function);
    int64_t size() const { return size_; }

  private:
    // The stage's number and how many of its pieces are left in one word: a thread that comes late cannot take a piece
    // of a stage whose function it has not read.
    struct Ticket {
        uint32_t stage, left;
    };
    void close();
    void wake();
    void serve(int64_t thread);
    void work(int64_t thread);
    bool await_stage(uint32_t seen);
    void await_pieces(int64_t pieces);
    bool has_news(uint32_t seen) const { return closing_.load() || ticket_.load().stage != seen; }

    const int64_t size_;
    std::atomic<int64_t> count_{0};
    std::atomic<int64_t> pieces_{0};
    std::atomic<const void*> context_{nullptr};
    std::atomic<StageFunction> function_{nullptr};
    alignas(64) std::atomic<Ticket> ticket_{Ticket{0, 0}};
    alignas(64) std::atomic<int64_t> done_{0};
    alignas(64) std::atomic<bool> closing_{false};
    std::atomic<int64_t> asleep_{0};
    std::atomic<bool> is_awaited_{false};
    std::mutex mutex_;
    std::condition_variable called_;
    std::condition_variable finished_;
    std::vector<std::thread> threads_;
};
