#include "pool.h"

#include <algorithm>

namespace {

constexpr int kSpinsBeforeSleep = 2000;      // pauses of some 40 cycles: about 30 microseconds
constexpr int64_t kMostAhead = 128 << 10;    // bytes that a thread fetches ahead: a part of its second cache
constexpr int64_t kCacheLine = 64;
constexpr int64_t kContextLines = 4;         // on their way while a thread takes items
constexpr int64_t kLinesAtOnce = 8;          // between two looks at whether there is work

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

}  // namespace

void Team::run(int64_t count, const void* context, StageFunction function, const Panels& upcoming) const {
    pool->run_stage(count, context, function, upcoming);
}

Pool::Pool(int64_t num_threads) : size_(num_threads), shares_(static_cast<size_t>(num_threads)) {
    try {
        for (int64_t thread = 1; thread < size_; ++thread) threads_.emplace_back([this, thread] { serve(thread); });
    } catch (...) {  // the system refused one: those that run must end, as no destructor will be called
        close();
        throw;
    }
}

Pool::~Pool() { close(); }

void Pool::close() {
    closing_ = true;
    wake();
    for (std::thread& thread : threads_) thread.join();
}

void Pool::wake() {
    if (asleep_.load() == 0) return;
    { const std::lock_guard<std::mutex> lock(mutex_); }  // whoever is about to sleep has looked before, or sleeps now
    called_.notify_all();
}

void Pool::run_stage(int64_t count, const void* context, StageFunction function, const Panels& upcoming) {
    if (size_ == 1 || count <= 1) return count ? function(context, 0, count, 0) : void();
    ++stage_;
    done_.store(0, std::memory_order_relaxed);
    const int64_t mine = count / size_, first = mine - mine / 2;  // of its own share this thread takes half unasked
    for (int64_t thread = size_ - 1; thread >= 0; --thread) {
        Share& share = shares_[static_cast<size_t>(thread)];
        const int64_t begin = count * thread / size_, end = count * (thread + 1) / size_;
        const Panels soon = upcoming.part(thread, size_);
        share.end.store(end, std::memory_order_relaxed);
        share.context.store(context, std::memory_order_relaxed);
        share.function.store(function, std::memory_order_relaxed);
        share.upcoming.store(soon.data, std::memory_order_relaxed);
        share.upcoming_bytes.store(std::min(kMostAhead, soon.count * soon.bytes), std::memory_order_relaxed);
        const int64_t left = thread ? end - begin : end - first;
        share.ticket.store(Ticket{stage_, static_cast<uint32_t>(left)}, std::memory_order_release);
    }
    wake();
    if (first) function(context, 0, first, 0);
    const int64_t items = first + work(0);
    // Again for one that fell asleep just as the stage began. Not ordered before it: that would wait for the lines of
    // the shares to come over from the threads that watch them.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (items < count) wake();
    await_items(count - items);
}

// Fetches some of what is upcoming, or pauses if it has been fetched.
void Pool::idle(const Share& share, Fetched& fetched) {
    const char* from = share.upcoming.load(std::memory_order_relaxed);
    if (from != fetched.from) fetched = {from, 0};
    if (fetched.bytes >= share.upcoming_bytes.load(std::memory_order_relaxed)) return relax();
    for (int64_t line = 0; line < kLinesAtOnce; ++line, fetched.bytes += kCacheLine)
        __builtin_prefetch(from + fetched.bytes, 0, 2);
}

// Who helps may have been put aside in the middle of an item. Asleep, this thread leaves its processor to it; yielding
// would not, as the system moves threads to processors that have nothing to do.
void Pool::await_items(int64_t items) {
    for (int spins = 0; spins < kSpinsBeforeSleep; ++spins) {
        if (done_.load() == items) return;
        idle(shares_[0], fetched_);
    }
    std::unique_lock<std::mutex> lock(mutex_);
    is_awaited_ = true;
    finished_.wait(lock, [&] { return done_.load() == items; });
    is_awaited_ = false;
}

// Takes items of the current stage until there are none, from its own share first. Returns how many; who helps has
// reported them.
int64_t Pool::work(int64_t thread) {
    int64_t items = 0;
    for (int64_t i = 0; i < size_; ++i) {
        const int64_t taken = work_off(shares_[static_cast<size_t>((thread + i) % size_)], thread);
        if (thread && taken) report(taken);
        items += taken;
    }
    return items;
}

// Takes half of what is left of a share again and again: long runs of memory first, and at the end so little that the
// threads finish together. What is read of the stage counts only if taking items of that very stage succeeds
// afterwards: while one is left, nothing of the stage is overwritten. A ticket says itself how many are left, so that
// of a finished stage none can be taken whatever the next one has stored already.
int64_t Pool::work_off(Share& share, int64_t thread) {
    int64_t items = 0;
    Ticket ticket = share.ticket.load(std::memory_order_acquire);
    while (ticket.left > 0) {
        const int64_t first = share.end.load(std::memory_order_relaxed) - ticket.left;
        const void* context = share.context.load(std::memory_order_relaxed);
        const StageFunction function = share.function.load(std::memory_order_relaxed);
        const uint32_t taken = ticket.left - ticket.left / 2;
        for (int64_t line = 0; line < kContextLines; ++line)
            __builtin_prefetch(static_cast<const char*>(context) + line * kCacheLine);
        if (!share.ticket.compare_exchange_weak(ticket, Ticket{ticket.stage, ticket.left - taken})) continue;
        function(context, first, first + taken, thread);
        items += taken;
        ticket = share.ticket.load(std::memory_order_acquire);
    }
    return items;
}

// Once for what was taken of a share: until then the stage is not over.
void Pool::report(int64_t items) {
    done_.fetch_add(items);
    if (!is_awaited_.load()) return;
    { const std::lock_guard<std::mutex> lock(mutex_); }
    finished_.notify_one();
}

bool Pool::await_stage(int64_t thread, uint32_t seen, Fetched& fetched) {
    for (int spins = 0; spins < kSpinsBeforeSleep; ++spins) {
        if (has_news(thread, seen)) return !closing_;
        idle(shares_[static_cast<size_t>(thread)], fetched);
    }
    std::unique_lock<std::mutex> lock(mutex_);
    ++asleep_;
    called_.wait(lock, [&] { return has_news(thread, seen); });
    --asleep_;
    return !closing_;
}

void Pool::serve(int64_t thread) {
    uint32_t seen = 0;
    Fetched fetched;
    while (await_stage(thread, seen, fetched)) {
        seen = shares_[static_cast<size_t>(thread)].ticket.load(std::memory_order_acquire).stage;
        work(thread);
    }
}
