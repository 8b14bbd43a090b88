#include "memory.h"

#include <cstdlib>
#include <cstring>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {
constexpr int64_t kHugePage = int64_t{2} << 20;
constexpr int64_t kCacheLine = 64;

size_t round_up(int64_t bytes, int64_t unit) { return static_cast<size_t>((bytes + unit - 1) / unit * unit); }

#if defined(__linux__)
// Whole huge pages, cut from a mapping one page larger. Nothing is touched: a cache takes memory as it fills.
void* map_huge(size_t size) {
    void* all = mmap(nullptr, size + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all == MAP_FAILED) return nullptr;
    char* begin = static_cast<char*>(all);
    const size_t skipped = round_up(static_cast<int64_t>(reinterpret_cast<uintptr_t>(begin)), kHugePage) -
                           reinterpret_cast<uintptr_t>(begin);
    if (skipped) munmap(begin, skipped);
    if (skipped < kHugePage) munmap(begin + skipped + size, kHugePage - skipped);
    madvise(begin + skipped, size, MADV_HUGEPAGE);  // advice: where it is refused, small pages serve
    return begin + skipped;
}
#endif
}  // namespace

void* allocate_pages(int64_t bytes) {
#if defined(__linux__)
    if (bytes >= kHugePage) return map_huge(round_up(bytes, kHugePage));
#endif
    const size_t size = round_up(bytes, kCacheLine);
    void* memory = std::aligned_alloc(static_cast<size_t>(kCacheLine), size);
    if (memory) std::memset(memory, 0, size);
    return memory;
}

void free_pages(void* memory, int64_t bytes) {
#if defined(__linux__)
    if (bytes >= kHugePage) {
        munmap(memory, round_up(bytes, kHugePage));
        return;
    }
#endif
    (void)bytes;
    std::free(memory);
}
