// The threads of one engine: the caller of a step, and others that help it with each stage when they are there.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "team.h"

// Every thread begins a stage with a share of its own and then takes from the others', so a stage is over when its
// items are done, not when every thread has come by: one that the system has put aside between two stages holds nobody
// up. Between steps a thread spins briefly, for steps follow each other within microseconds, and then sleeps: an idle
// engine costs nothing.
class Pool {
  public:
    explicit Pool(int64_t num_threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    void run_stage(int64_t count, const void* context, StageFunction function, const Panels& upcoming);
    int64_t size() const { return size_; }

  private:
    // The stage's number and how many items of the share are left in one word: a thread that comes late cannot take an
    // item of a stage whose function it has not read.
    struct Ticket {
        uint32_t stage, left;
    };
    // All that a thread reads of a stage, in one cache line that no other helper writes to before its own share is used
    // up: lines that go to and fro between processors cost as much as the small stages.
    struct alignas(64) Share {
        std::atomic<Ticket> ticket{Ticket{0, 0}};
        std::atomic<int64_t> end{0};
        std::atomic<const void*> context{nullptr};
        std::atomic<StageFunction> function{nullptr};
        std::atomic<const char*> upcoming{nullptr};  // what the thread reads first soon, to fetch while it waits
        std::atomic<int64_t> upcoming_bytes{0};
    };
    // Of one thread, how far it has fetched what is upcoming.
    struct Fetched {
        const char* from = nullptr;
        int64_t bytes = 0;
    };
    void close();
    void wake();
    void serve(int64_t thread);
    int64_t work(int64_t thread);
    int64_t work_off(Share& share, int64_t thread);
    void report(int64_t items);
    static void idle(const Share& share, Fetched& fetched);
    bool await_stage(int64_t thread, uint32_t seen, Fetched& fetched);
    void await_items(int64_t items);
    bool has_news(int64_t thread, uint32_t seen) const {
        return closing_.load() || shares_[static_cast<size_t>(thread)].ticket.load().stage != seen;
    }

    const int64_t size_;
    std::vector<Share> shares_;
    uint32_t stage_ = 0;
    Fetched fetched_;  // by the caller
    alignas(64) std::atomic<int64_t> done_{0};  // items, but for the caller's
    alignas(64) std::atomic<bool> closing_{false};
    std::atomic<int64_t> asleep_{0};
    std::atomic<bool> is_awaited_{false};
    std::mutex mutex_;
    std::condition_variable called_;
    std::condition_variable finished_;
    std::vector<std::thread> threads_;
};
