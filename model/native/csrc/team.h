// Threads that share a step stage by stage. Which thread computes what never changes a bit: rows and columns are shared
// out, sums are not.
#pragma once
#include <cstdint>

class Pool;

// Items [begin, end) of a stage, on the thread with this number.
using StageFunction = void (*)(const void* context, int64_t begin, int64_t end, int64_t thread);

struct Range {
    int64_t begin, end;
};

// Memory that a stage to come reads in runs of so many bytes, shared out as its items will be. None if count is 0.
struct Panels {
    const char* data;
    int64_t bytes, count;

    Panels part(int64_t number, int64_t all) const {
        const int64_t first = count * number / all, last = count * (number + 1) / all;
        return {data + first * bytes, bytes, last - first};
    }
};

struct Team {
    Pool* pool;

    // Runs function(Range, thread) over all of [0, count), in pieces that no two threads share, and returns when the
    // last is done. A thread that has nothing left to do fetches what is `upcoming`.
    template <class Function>
    void share(int64_t count, const Function& function, const Panels& upcoming = {}) const {
        run(count, &function, [](const void* context, int64_t begin, int64_t end, int64_t thread) {
            (*static_cast<const Function*>(context))(Range{begin, end}, thread);
        }, upcoming);
    }

  private:
    void run(int64_t count, const void* context, StageFunction function, const Panels& upcoming) const;
};
