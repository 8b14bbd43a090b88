#include "decode.h"

#include <poll.h>

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <string>
#include <vector>

#include "draw.h"

namespace {

using Clock = std::chrono::steady_clock;

void check(const DecodeWork& work) {
    const StepWork& step = work.step;
    if (work.most_passes < 1)
        throw std::invalid_argument("most_passes is " + std::to_string(work.most_passes) + "; it must be 1 or more");
    if (step.num_rows != step.num_spans || step.num_wanted != step.num_spans)
        throw std::invalid_argument("a decode step has a row and its logits for each span");
    for (int64_t i = 0; i < step.num_spans; ++i)
        if (step.spans[i].num_blocks * kBlockSize < step.spans[i].start + work.most_passes)
            throw std::invalid_argument("a block table is too short for so many passes");
}

bool is_all_finite(const StepWork& step) {
    const uint8_t* begin = step.is_finite;
    const uint8_t* end = begin + step.num_rows + step.num_wanted;
    return std::find(begin, end, uint8_t{0}) == end;
}

// Whether any sequence has just been given a token that ends it.
bool has_ended(const DecodeWork& work, const int64_t* chosen) {
    const int64_t* endings = work.endings;
    for (int64_t i = 0; i < work.step.num_spans; ++i) {
        const int64_t* next = endings + work.num_endings[i];
        if (std::find(endings, next, chosen[i]) != next) return true;
        endings = next;
    }
    return false;
}

// Whether there is something to read, or nobody left who writes.
bool has_news(int64_t descriptor) {
    if (descriptor < 0) return false;
    pollfd asked{static_cast<int>(descriptor), POLLIN, 0};
    return poll(&asked, 1, 0) > 0;
}

double seconds_between(Clock::time_point start, Clock::time_point end) {
    return std::chrono::duration<double>(end - start).count();
}

}  // namespace

void decode(Session& session, DecodeWork& work) {
    check(work);
    const int64_t count = work.step.num_spans;
    StepWork step = work.step;
    std::vector<int32_t> tokens(step.tokens, step.tokens + count);
    std::vector<StepSpan> spans(step.spans, step.spans + count);
    std::vector<DrawRow> rows(count, DrawRow{});
    step.tokens = tokens.data();
    step.spans = spans.data();
    work.num_passes = work.num_chosen = 0;
    work.forward_seconds = work.choose_seconds = 0;
    const Clock::time_point start = Clock::now();
    Clock::time_point now = start;
    do {
        session.step(step);
        const Clock::time_point passed = Clock::now();
        work.forward_seconds += seconds_between(now, passed);
        ++work.num_passes;
        if (!is_all_finite(step)) return;
        int64_t* chosen = work.chosen + work.num_chosen * count;
        for (int64_t i = 0; i < count; ++i) rows[i] = {i, spans[i].start + 1, {}};
        choose_tokens(step.logits, session.model().vocab_size, count, rows.data(), work.programs, chosen);
        ++work.num_chosen;
        for (int64_t i = 0; i < count; ++i) {
            tokens[i] = static_cast<int32_t>(chosen[i]);
            ++spans[i].start;
        }
        now = Clock::now();
        work.choose_seconds += seconds_between(passed, now);
        if (has_ended(work, chosen)) return;
    } while (work.num_passes < work.most_passes && seconds_between(start, now) < work.seconds && !has_news(work.watched));
}
