// Zeroed memory on cache lines, on huge pages where it is large enough for them.
#pragma once
#include <cstdint>

void* allocate_pages(int64_t bytes);  // null when there is none left
void free_pages(void* memory, int64_t bytes);  // as many bytes as were asked for
