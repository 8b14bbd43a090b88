#include "pool.h"

#include <algorithm>

namespace {

constexpr int kSpinsBeforeSleep = 2000;  // pauses of some 40 cycles: about 30 microseconds
constexpr int64_t kPiecesPerThread = 4;  // large enough to read memory in long runs, small enough to even out

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

}  // namespace

void Team::run(int64_t count, const void* context, StageFunction function) const {
    pool->run_stage(count, context, function);
}

Pool::Pool(int64_t num_threads) : size_(num_threads) {
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

void Pool::run_stage(int64_t count, const void* context, StageFunction function) {
    const int64_t pieces = std::min(count, size_ * kPiecesPerThread);
    if (size_ == 1 || pieces <= 1) return count ? function(context, 0, count, 0) : void();
    count_.store(count, std::memory_order_relaxed);
    pieces_.store(pieces, std::memory_order_relaxed);
    context_.store(context, std::memory_order_relaxed);
    function_.store(function, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    ticket_.store(Ticket{ticket_.load(std::memory_order_relaxed).stage + 1, static_cast<uint32_t>(pieces)});
    wake();
    work(0);
    await_pieces(pieces);
}

// Who helps may have been put aside in the middle of a piece. Asleep, this thread leaves its processor to it; yielding
// would not, as the system moves threads to processors that have nothing to do.
void Pool::await_pieces(int64_t pieces) {
    for (int spins = 0; spins < kSpinsBeforeSleep; ++spins) {
        if (done_.load() == pieces) return;
        relax();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    is_awaited_ = true;
    finished_.wait(lock, [&] { return done_.load() == pieces; });
    is_awaited_ = false;
}

// Takes pieces of the current stage until there are none. What is read of the stage counts only if taking a piece of
// that very stage succeeds afterwards: while one is left, nothing of the stage is overwritten. A ticket says itself how
// many are left, so that of a finished stage none can be taken whatever the next one has stored already.
void Pool::work(int64_t thread) {
    Ticket ticket = ticket_.load(std::memory_order_acquire);
    while (ticket.left > 0) {
        const int64_t count = count_.load(std::memory_order_relaxed), pieces = pieces_.load(std::memory_order_relaxed);
        const void* context = context_.load(std::memory_order_relaxed);
        const StageFunction function = function_.load(std::memory_order_relaxed);
        const int64_t piece = pieces - ticket.left;
        if (!ticket_.compare_exchange_weak(ticket, Ticket{ticket.stage, ticket.left - 1})) continue;
        function(context, count * piece / pieces, count * (piece + 1) / pieces, thread);
        if (done_.fetch_add(1) + 1 == pieces && is_awaited_.load()) {
            { const std::lock_guard<std::mutex> lock(mutex_); }
            finished_.notify_one();
        }
        ticket = ticket_.load(std::memory_order_acquire);
    }
}

bool Pool::await_stage(uint32_t seen) {
    for (int spins = 0; spins < kSpinsBeforeSleep; ++spins) {
        if (has_news(seen)) return !closing_;
        relax();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    ++asleep_;
    called_.wait(lock, [&] { return has_news(seen); });
    --asleep_;
    return !closing_;
}

void Pool::serve(int64_t thread) {
    uint32_t seen = 0;
    while (await_stage(seen)) {
        seen = ticket_.load(std::memory_order_acquire).stage;
        work(thread);
    }
}
