// The simulated devices: what a profile says of them, and which one is current in a thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace xpusim {

constexpr int kMaxDevices = 16;

struct DeviceConfig {
  std::string name = "Intel(R) Arc(TM) B580 Graphics";
  int64_t capacity = 12LL << 30;
  int64_t max_allocation = 0;  // bytes of the largest single allocation; 0: no limit
  double memory_fraction = 1.0;
  bool memory_fraction_is_set = false;  // only then does torch's allocator keep to the capacity
  bool has_fp64 = true;
  bool reports_free_memory = true;
  bool reports_no_memory_free = false;
  int exhaustion_error = 0;  // what a kernel raises when memory has run out; 0: the allocator raises
};

// The devices that the machine has. The next question for their number enumerates them anew.
void set_machine(std::vector<DeviceConfig> devices);

// How many of them ZE_AFFINITY_MASK and ONEAPI_DEVICE_SELECTOR leave, as they stood when the first question was asked:
// the driver reads them once.
int device_count() noexcept;

DeviceConfig& device_config(int device);
// Which of the machine's devices a visible one is.
int physical_index(int device);

int current_device() noexcept;
void set_current_device(int device);                    // checks the index
void set_current_device_unchecked(int device) noexcept;  // for destructors
void check_device(int device);

// Checked before every kernel with a float64 argument or result.
bool has_fp64(int device) noexcept;

}  // namespace xpusim
