// Faults to order. A launch number counts kernels from the moment the order is given; 1 is the next kernel.
#pragma once

#include <cstdint>
#include <string>

namespace xpusim {

// An empty text stands for the caching allocator's own out-of-memory error.
void order_out_of_memory(int64_t at_launch, std::string text);
void order_device_lost(int64_t at_launch);
void order_no_free_memory_query();
// From now on the driver overcommits, and a kernel raises this error of the unified runtime (20, 39 or 40) once more
// memory is reserved than there is. 0: as the profile says.
void order_exhaustion(int error);
int exhaustion_error(int device) noexcept;
void clear_faults();

bool free_memory_query_fails() noexcept;

// Called before every kernel: counts it, and raises what was ordered for it.
void launch(int device);

// Called by everything else that reaches the device: raises once it is lost.
void check_alive();

}  // namespace xpusim
