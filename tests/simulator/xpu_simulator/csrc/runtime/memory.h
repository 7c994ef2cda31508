// The device's memory: a caching allocator over host pages, with the sizes, the pools and the figures of torch's own
// XPU allocator (c10/xpu/XPUCachingAllocator.cpp). Pages are committed only when touched, so that a 64 GB device
// costs nothing. Also the pinned host memory that the device knows of.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

namespace xpusim {

struct Stat {
  int64_t current = 0;
  int64_t peak = 0;
  int64_t allocated = 0;
  int64_t freed = 0;
};

// All blocks, those of the small pool, those of the large one.
using StatArray = std::array<Stat, 3>;

struct MemoryStats {
  StatArray allocation;
  StatArray segment;
  StatArray active;
  StatArray inactive_split;
  StatArray allocated_bytes;
  StatArray reserved_bytes;
  StatArray active_bytes;
  StatArray inactive_split_bytes;
  StatArray requested_bytes;
  int64_t num_alloc_retries = 0;
  int64_t num_ooms = 0;
};

// Throws OutOfMemory. The block belongs to the device's current stream of this thread.
void* allocate(int device, size_t bytes);
// Takes what allocate() gave; a pointer that is not a device pointer is left alone, and false returned.
bool deallocate(void* pointer) noexcept;
// The device on which a pointer was allocated (its start, not its inside); -1: none.
int device_of(const void* pointer) noexcept;
void record_stream(void* pointer, int64_t stream);

// Which allocation a block is of: its start may be another's later. 0: none.
struct Allocation {
  uint64_t serial = 0;
  uint64_t pool = 0;  // the private pool that it lies in, 0: none
};
Allocation allocation_of(const void* pointer) noexcept;
// A graph keeps a private pool's memory (+1), or does no more (-1).
void use_pool(int device, uint64_t pool, int change);
void empty_cache();

MemoryStats memory_stats(int device);
std::string memory_stats_as_json(int device);
void reset_peak_stats(int device);
void reset_accumulated_stats(int device);
std::pair<int64_t, int64_t> memory_info(int device);  // free, total; raises where the device can't tell
// Whether more is reserved than the device has, which a driver that overcommits allows.
bool memory_is_exhausted(int device) noexcept;
std::string out_of_memory_text(int device, int64_t requested);

void* allocate_pinned(size_t bytes);
void deallocate_pinned(void* pointer) noexcept;
bool is_pinned(const void* pointer) noexcept;  // also inside of an allocation

}  // namespace xpusim
