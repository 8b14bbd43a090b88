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

struct Team {
    Pool* pool;

    // Runs function(Range, thread) over all of [0, count), in pieces that no two threads share, and returns when the
    // last is done.
    template <class Function>
    void share(int64_t count, const Function& function) const {
        run(count, &function, [](const void* context, int64_t begin, int64_t end, int64_t thread) {
            (*static_cast<const Function*>(context))(Range{begin, end}, thread);
        });
    }

  private:
    void run(int64_t count, const void* context, StageFunction function) const;
};
