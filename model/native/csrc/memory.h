// Zeroed memory on cache lines, on huge pages where it is large enough for them.
#pragma once
#include <atomic>
#include <cstdint>
#include <thread>

void* allocate_pages(int64_t bytes);  // null when there is none left
void free_pages(void* memory, int64_t bytes);  // as many bytes as were asked for

// Asks the system for a large mapping's pages while others already use it, by a thread of its own: the first touch of a
// huge page clears two megabytes, and on a virtual machine may wait for the host to find them. Where the system does not
// know how, they come as they are touched.
class PageFiller {
  public:
    // `count` areas of `area_bytes` one after the other: all their beginnings come before their ends.
    PageFiller(char* begin, int64_t area_bytes, int64_t count);
    ~PageFiller();
    PageFiller(const PageFiller&) = delete;
    PageFiller& operator=(const PageFiller&) = delete;

  private:
    std::atomic<bool> closing_{false};
    std::thread thread_;
};
