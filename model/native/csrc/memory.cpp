#include "memory.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <system_error>
#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace {
constexpr int64_t kHugePage = int64_t{2} << 20;
constexpr int64_t kSmallPage = 4096;
constexpr int64_t kCacheLine = 64;

size_t round_up(int64_t bytes, int64_t unit) { return static_cast<size_t>((bytes + unit - 1) / unit * unit); }

#if defined(__linux__)
// Whole huge pages, cut from a mapping one page larger. Nothing is touched.
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

#ifdef MADV_POPULATE_WRITE
constexpr int kPopulate = MADV_POPULATE_WRITE;
#else
constexpr int kPopulate = 23;  // Linux 5.14; older headers do not name it
#endif

// The pages that hold these bytes, unchanged. A huge page at a time: meanwhile nobody else can map anything.
bool populate(char* begin, int64_t bytes) {
    const auto address = reinterpret_cast<uintptr_t>(begin), first = address / kSmallPage * kSmallPage;
    return madvise(reinterpret_cast<void*>(first), address - first + static_cast<size_t>(bytes), kPopulate) == 0;
}

// Of a cache larger than the machine would be wise to give, no more than a quarter of the memory.
void populate_areas(char* begin, int64_t area_bytes, int64_t count, const std::atomic<bool>& closing) {
    const int64_t most = int64_t{sysconf(_SC_PHYS_PAGES)} / 4 * sysconf(_SC_PAGESIZE) / count;
    for (int64_t at = 0; at < std::min(area_bytes, most); at += kHugePage)
        for (int64_t area = 0; area < count; ++area)
            if (closing || !populate(begin + area * area_bytes + at, std::min(kHugePage, area_bytes - at))) return;
}
#endif
}  // namespace

#if defined(__linux__)
PageFiller::PageFiller(char* begin, int64_t area_bytes, int64_t count) {
    if (area_bytes * count < kHugePage) return;  // its memory has been cleared already
    try {
        thread_ = std::thread([this, begin, area_bytes, count] { populate_areas(begin, area_bytes, count, closing_); });
    } catch (const std::system_error&) {  // no thread to be had: pages come as they are touched
    }
}
#else
PageFiller::PageFiller(char*, int64_t, int64_t) {}
#endif

PageFiller::~PageFiller() {
    closing_ = true;
    if (thread_.joinable()) thread_.join();
}

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
