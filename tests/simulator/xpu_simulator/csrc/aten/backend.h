// What the ATen layer's own files share: the device's allocator, its generators, and the scope of a kernel.
#pragma once

#include <ATen/core/Generator.h>
#include <c10/core/Device.h>

#include "releases.h"

namespace xpusim {

constexpr c10::DeviceType kXPU = c10::DeviceType::XPU;

DeviceAllocator* device_allocator();

// Frees a block of device memory; a DataPtr that carries it lies in device memory.
void free_device_memory(void* pointer);

// While one lives, what this thread asks of the CPU allocator comes from the device: a kernel's results and its
// temporaries lie in device memory, and too large a one raises before anything is computed.
class KernelScope {
 public:
  static constexpr int kHost = -1;  // for a while the CPU's memory again

  explicit KernelScope(int device);
  ~KernelScope();
  KernelScope(const KernelScope&) = delete;
  KernelScope& operator=(const KernelScope&) = delete;

 private:
  const int previous_;
};

// The CPU generator behind a generator of a simulated device, or behind the device's default one.
at::Generator cpu_generator(const std::optional<at::Generator>& generator, int device);

// See backend.cpp. Returns the number of operators registered with the fallback.
int register_fallbacks();

}  // namespace xpusim
